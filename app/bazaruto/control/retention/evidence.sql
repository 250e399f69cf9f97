-- name: all_runs, newest first; each with its place among those that ended like it: newest is 1, dry runs apart
SELECT id, day, operation, environment, status, node, events, retry_of, waiting_for,
       plan_for, plan_run, confirming_run,
       left(content_digest, 16) AS snapshot,
       finished_at IS NULL AS living,
       events_removed_at IS NOT NULL AS without_events,
       left_running <> '{}' AND waived_at IS NULL AS unsettled,
       extract(epoch FROM clock_timestamp() - coalesce(finished_at, created_at))::float8 / 86400 AS age_days,
       rank() OVER (PARTITION BY operation, environment, check_mode, finished_at IS NULL ORDER BY created_at DESC, id) AS place
FROM runs ORDER BY created_at DESC, id;

-- name: runs_of_keys, that have not expired
SELECT DISTINCT run FROM idempotency_keys WHERE created_at >= clock_timestamp() - make_interval(secs => %(seconds)s);

-- name: partitions, a day each, and whether they may still be written to
SELECT p.day, p.name, p.day >= current_date - 1 AS in_use, pg_total_relation_size(p.oid) AS bytes
FROM (SELECT c.oid, c.relname AS name, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      WHERE i.inhparent = 'events'::regclass AND c.relname ~ '^events_\d{8}$') p
ORDER BY p.day;

-- name: events_of_days
SELECT day, run, count(*) AS events FROM events WHERE day = ANY (%(days)s::date[]) GROUP BY day, run;

-- name: events_of_runs
SELECT day, run, count(*) AS events FROM events
WHERE day = ANY (%(days)s::date[]) AND run = ANY (%(ids)s::text[]) GROUP BY day, run;

-- name: lock_runs, that are over; whoever wants to refer to one waits until it is known whether it stays
SELECT id FROM runs
WHERE id = ANY (%(ids)s::text[]) AND finished_at IS NOT NULL AND (left_running = '{}' OR waived_at IS NOT NULL)
ORDER BY id FOR UPDATE;

-- name: referred_to, by a run that is not among them
SELECT retry_of AS id FROM runs WHERE retry_of = ANY (%(ids)s::text[]) AND NOT id = ANY (%(ids)s::text[])
UNION
SELECT waiting_for FROM runs WHERE waiting_for = ANY (%(ids)s::text[]);

-- name: delete_events, and remember of which days
WITH gone AS (
    DELETE FROM events WHERE day = ANY (%(days)s::date[]) AND run = ANY (%(ids)s::text[]) RETURNING day
)
INSERT INTO events_to_rewrite AS t (day, removed) SELECT day, count(*) FROM gone GROUP BY day
ON CONFLICT (day) DO UPDATE SET removed = t.removed + excluded.removed;

-- name: delete_orphans, events of a day that no run has any more
WITH gone AS (
    DELETE FROM events e WHERE day = %(day)s AND NOT EXISTS (
        SELECT FROM runs r WHERE r.id = e.run AND r.events_removed_at IS NULL)
    RETURNING day
)
INSERT INTO events_to_rewrite AS t (day, removed) SELECT day, count(*) FROM gone GROUP BY day
ON CONFLICT (day) DO UPDATE SET removed = t.removed + excluded.removed;

-- name: delete_runs, with their lives and keys
DELETE FROM runs WHERE id = ANY (%(ids)s::text[]);

-- name: mark_without_events
UPDATE runs SET events_removed_at = clock_timestamp() WHERE id = ANY (%(ids)s::text[]);

-- name: known_runs, of these; and whether they have their events
SELECT id, events_removed_at IS NOT NULL AS without_events FROM runs WHERE id = ANY (%(ids)s::text[]);

-- name: day_is_needed, by a run whose events are kept, or are still to come
SELECT EXISTS (SELECT FROM runs WHERE day = %(day)s AND events_removed_at IS NULL
                                  AND (events > 0 OR finished_at IS NULL)) AS needed;

-- name: lock_events, so that nobody reads or writes while a partition goes
LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE;

-- name: to_rewrite
SELECT day, removed FROM events_to_rewrite ORDER BY day;

-- name: rewritten, but for what was deleted meanwhile
UPDATE events_to_rewrite SET removed = removed - %(removed)s WHERE day = %(day)s;

-- name: forget_rewritten, and days that have no partition any more
DELETE FROM events_to_rewrite
WHERE removed <= 0 OR to_regclass('events_' || to_char(day, 'YYYYMMDD')) IS NULL;

-- name: database_bytes
SELECT pg_database_size(current_database()) AS bytes;

-- name: snapshots_in_use
SELECT DISTINCT left(content_digest, 16) AS snapshot FROM runs WHERE content_digest IS NOT NULL;
