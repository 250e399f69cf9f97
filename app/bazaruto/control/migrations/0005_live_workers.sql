-- Workers that live: connected at this moment, and heard of lately. A killed one is gone at once, a frozen one soon.

CREATE VIEW live_workers AS
SELECT w.* FROM workers w
WHERE w.seen_at > clock_timestamp() - interval '15 seconds'
  AND EXISTS (SELECT FROM pg_stat_activity a
              WHERE a.datname = current_database() AND a.application_name = 'bazaruto-worker ' || w.id);
