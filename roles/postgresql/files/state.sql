-- What the files say, what is in force, and what is there: asked before and after a reload.
SELECT
    ARRAY(
        SELECT format('%s:%s: %s', sourcefile, sourceline, error)
          FROM pg_file_settings WHERE error IS NOT NULL AND error <> 'setting could not be applied'
        UNION ALL
        SELECT format('pg_hba.conf:%s: %s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL
    ) AS errors,
    -- ALTER SYSTEM beats every file, in silence.
    ARRAY(
        SELECT theirs.name FROM pg_file_settings AS theirs JOIN pg_file_settings AS ours USING (name)
         WHERE theirs.sourcefile LIKE '%/postgresql.auto.conf' AND ours.sourcefile LIKE '%/50-site.conf'
    ) AS overridden,
    -- Read from the file already, or not yet: killed between writing and reloading.
    (
        SELECT coalesce(max((pg_stat_file(path)).modification), '-infinity') > pg_conf_load_time()
          FROM (SELECT current_setting('hba_file') UNION ALL SELECT DISTINCT sourcefile FROM pg_file_settings)
            AS files (path)
    ) AS unread,
    ARRAY(SELECT name::text FROM pg_settings WHERE pending_restart ORDER BY name) AS waiting,
    ARRAY(SELECT datname::text FROM pg_database ORDER BY datname) AS databases
