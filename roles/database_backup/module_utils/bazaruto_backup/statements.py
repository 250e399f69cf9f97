"""The SQL of backups and restores, each statement with its purpose.

It lies in Python because Ansible sends only a module's Python to the host, no `.sql` file beside it.
"""

from __future__ import annotations

# What the server is.
SERVER_VERSION = "SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000"

# Take the lock that two backups, or two restores, of one database compete for; false when somebody has it.
TRY_ADVISORY_LOCK = "SELECT pg_try_advisory_lock(%s)"

# Who holds an advisory lock (its key split as pg_locks shows it).
ADVISORY_LOCK_HOLDER = """
SELECT pid, application_name, to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
  FROM pg_locks
  JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'advisory' AND granted AND objsubid = 1
   AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND classid::bigint = (%(key)s::bigint >> 32) & 4294967295 AND objid::bigint = %(key)s::bigint & 4294967295
 LIMIT 1
"""

# The snapshot that pg_dump and the row counts share, and its time.
EXPORT_SNAPSHOT = "SELECT pg_export_snapshot(), now()"

# Every table whose rows a dump holds: no system's, no extension's, no temporary ones.
TABLES = """
SELECT nspname, relname, pg_table_size(pg_class.oid)
  FROM pg_class
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind = 'r' AND relpersistence <> 't'
   AND nspname <> 'information_schema' AND nspname !~ '^pg_'
   AND NOT EXISTS (
       SELECT FROM pg_depend
        WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e'
   )
 ORDER BY pg_table_size(pg_class.oid) DESC, 1, 2
"""

# Keys, references and checks as the server spells them. Not-null is left out: PostgreSQL 18 alone lists it here.
CONSTRAINTS = """
SELECT nspname, relname, conname, pg_get_constraintdef(pg_constraint.oid)
  FROM pg_constraint
  JOIN pg_class ON pg_class.oid = conrelid
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE contype IN ('p', 'u', 'f', 'c', 'x')
   AND nspname <> 'information_schema' AND nspname !~ '^pg_'
 ORDER BY 1, 2, 3
"""

# Unique indexes that are no constraint, e.g. on lower(email), and triggers: rules of the domain live in them too.
UNIQUE_INDEXES = """
SELECT nspname, tables.relname, indexes.relname, pg_get_indexdef(indexrelid)
  FROM pg_index
  JOIN pg_class AS indexes ON indexes.oid = indexrelid
  JOIN pg_class AS tables ON tables.oid = indrelid
  JOIN pg_namespace ON pg_namespace.oid = tables.relnamespace
 WHERE indisunique AND nspname <> 'information_schema' AND nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
 ORDER BY 1, 2, 3
"""
TRIGGERS = """
SELECT nspname, relname, tgname, pg_get_triggerdef(pg_trigger.oid)
  FROM pg_trigger
  JOIN pg_class ON pg_class.oid = tgrelid
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE NOT tgisinternal AND nspname <> 'information_schema' AND nspname !~ '^pg_'
 ORDER BY 1, 2, 3
"""

# Roles that a restore of this database needs: owners, and whoever was granted something.
ROLES = """
SELECT DISTINCT rolname
  FROM pg_shdepend
  JOIN pg_roles ON pg_roles.oid = refobjid
 WHERE refclassid = 'pg_authid'::regclass
   AND (dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        OR (classid = 'pg_database'::regclass
            AND objid = (SELECT oid FROM pg_database WHERE datname = current_database())))
   AND rolname !~ '^pg_'
 ORDER BY 1
"""

# What belongs to a database and not into its dump; read from any database of the cluster. The locale's name
# moved between versions (daticulocale, datlocale), so the row is read as JSON.
DATABASE = """
SELECT pg_database.oid,
       pg_get_userbyid(datdba) AS owner,
       pg_encoding_to_char(encoding) AS encoding,
       datcollate AS collate,
       datctype AS ctype,
       coalesce(to_jsonb(pg_database) ->> 'datlocprovider', 'c') AS locale_provider,
       coalesce(to_jsonb(pg_database) ->> 'datlocale', to_jsonb(pg_database) ->> 'daticulocale') AS locale,
       datconnlimit AS connection_limit,
       shobj_description(pg_database.oid, 'pg_database') AS comment,
       spcname AS tablespace,
       datacl IS NOT NULL AS has_grants
  FROM pg_database
  JOIN pg_tablespace ON pg_tablespace.oid = dattablespace
 WHERE datname = %s
"""

# Grants on a database.
DATABASE_GRANTS = """
SELECT coalesce(pg_roles.rolname, 'PUBLIC') AS grantee, privilege_type AS privilege, is_grantable AS grantable
  FROM pg_database
 CROSS JOIN aclexplode(datacl)
  LEFT JOIN pg_roles ON pg_roles.oid = grantee
 WHERE datname = %s
 ORDER BY 1, 2
"""

# ALTER DATABASE … SET and ALTER ROLE … IN DATABASE … SET.
DATABASE_SETTINGS = """
SELECT coalesce(rolname, '') AS role, split_part(setting, '=', 1) AS name,
       substr(setting, strpos(setting, '=') + 1) AS value
  FROM pg_db_role_setting
  JOIN pg_database ON pg_database.oid = setdatabase
 CROSS JOIN unnest(setconfig) AS setting
  LEFT JOIN pg_roles ON pg_roles.oid = setrole
 WHERE datname = %s
 ORDER BY 1, 2
"""

# Bytes of a database on disk.
DATABASE_SIZE = "SELECT pg_database_size(%s::name)"

# Where the cluster's data lies.
DATA_DIRECTORY = "SELECT current_setting('data_directory')"

# Databases whose name begins so.
DATABASES_NAMED = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1"

# Two-phase transactions that would survive the swap in the wrong database.
PREPARED_TRANSACTIONS = "SELECT gid FROM pg_prepared_xacts WHERE database = %s ORDER BY prepared"

# Tables that say when a row was made.
TABLES_WITH_CREATED_AT = """
SELECT nspname, relname
  FROM pg_attribute
  JOIN pg_class ON pg_class.oid = attrelid
  JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE attname = 'created_at' AND atttypid = 'timestamptz'::regtype AND relkind = 'r'
   AND nspname <> 'information_schema' AND nspname !~ '^pg_'
 ORDER BY 1, 2
"""

# Whether a session holds the lock that lets no new session into a database.
RENAME_HOLDS_LOCK = """
SELECT count(*) FROM pg_locks
 WHERE pid = %s AND granted AND locktype = 'object' AND mode = 'AccessExclusiveLock'
   AND classid = 'pg_database'::regclass AND objid = (SELECT oid FROM pg_database WHERE datname = %s)
"""

# End whoever waits at a database's door: after a rename PostgreSQL would tell them that there is no such database.
END_WAITING_AT_THE_DOOR = """
SELECT count(pg_terminate_backend(pid)) FROM pg_locks
 WHERE NOT granted AND locktype = 'object' AND mode = 'RowExclusiveLock'
   AND classid = 'pg_database'::regclass AND objid = (SELECT oid FROM pg_database WHERE datname = %s)
"""

# End every session in these databases but one; how many there were.
END_SESSIONS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE datname = ANY(%s) AND pid <> ALL(%s)
"""

# Roles that this cluster lacks, of those that are named.
MISSING_ROLES = (
    "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)"
)

# Whether the service's function that holds a restored database's jobs is there.
HAS_HOLD_JOBS = "SELECT to_regprocedure('public.hold_jobs()') IS NOT NULL"

# From here on with the rights of the database's owner only: its functions are not the superuser's.
BECOME_OWNER = """
SELECT set_config('role', pg_get_userbyid(datdba), false) FROM pg_database WHERE datname = current_database()
"""

# Move what waits in the job queue aside, until somebody releases or drops it.
HOLD_JOBS = "SELECT public.hold_jobs()"
