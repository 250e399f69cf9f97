-- name: newest_worker
-- The number under which the last worker announced itself; each start gets a higher one.
SELECT coalesce(max(id), 0) FROM procrastinate_workers;

-- name: rights
-- What a server of one's own grants the role that the settings name.
SELECT rolname, rolsuper OR rolcreatedb, has_schema_privilege('public', 'CREATE')
  FROM pg_roles WHERE rolname = current_user;
