-- Which migrations were applied is written by nobody but the tables' owner, and read only through applied_migrations():
-- roles that are given by default what the owner makes lose these tables here, on every migration.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT DISTINCT known.oid::regclass AS bookkeeping,
               CASE entry.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(entry.grantee)) END AS grantee
          FROM pg_class AS known, aclexplode(known.relacl) AS entry
         WHERE known.relnamespace = current_schema()::regnamespace
           AND known.relname IN ('_yoyo_migration', '_yoyo_log', '_yoyo_version', 'yoyo_lock')
           AND entry.grantee <> known.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', given.bookkeeping, given.grantee);
    END LOOP;
END;
$$;

-- What a service asks before it says that it is ready: names, and nothing about when, where and by whom.
CREATE OR REPLACE FUNCTION applied_migrations() RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC SELECT migration_id::text FROM _yoyo_migration; END;
