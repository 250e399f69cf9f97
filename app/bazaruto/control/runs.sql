-- name: insert_run
INSERT INTO runs (id, day, operation, environment, effect, exclusion, status, parameters, variables, secret_variables,
                  check_mode, diff, host_limit, reason, requested_by, timeout_seconds)
VALUES (%(id)s, %(day)s, %(operation)s, %(environment)s, %(effect)s, %(exclusion)s, 'queued', %(parameters)s,
        %(variables)s, %(secret_variables)s, %(check_mode)s, %(diff)s, %(host_limit)s, %(reason)s, %(requested_by)s,
        %(timeout_seconds)s)
RETURNING *;

-- name: insert_change
INSERT INTO run_changes (run, status, reason) VALUES (%(run)s, %(status)s, %(reason)s);

-- name: one_run
SELECT * FROM runs WHERE id = %(id)s;

-- name: changes_of_run
SELECT at, status, reason FROM run_changes WHERE run = %(run)s ORDER BY at;

-- name: page_of_runs, newest first, before a position
SELECT * FROM runs
WHERE (%(before)s::bigint IS NULL OR position < %(before)s)
  AND (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(operation)s::text IS NULL OR operation = %(operation)s)
  AND (%(environment)s::text IS NULL OR environment = %(environment)s)
ORDER BY position DESC LIMIT %(limit)s;

-- name: claim_run, the oldest that nothing stands in the way of: the one right to run
UPDATE runs SET status = 'running', waiting_for = NULL, node = %(node)s, started_at = clock_timestamp()
WHERE status IN ('queued', 'waiting')
  AND id = (
    SELECT r.id FROM runs r
    WHERE r.status IN ('queued', 'waiting')
      AND NOT EXISTS (
        SELECT FROM runs o
        WHERE o.environment = r.environment AND o.exclusion = r.exclusion AND o.id <> r.id
          AND (o.status = 'running' OR (o.status IN ('queued', 'waiting') AND o.position < r.position)))
    ORDER BY r.position LIMIT 1 FOR UPDATE OF r SKIP LOCKED)
RETURNING *;

-- name: forget_variables, once they lie in the run's directory
UPDATE runs SET variables = NULL WHERE id = %(id)s;

-- name: mark_waiting, every run that cannot start yet: for the one right before it in the line
WITH blocked AS (
    SELECT r.id, b.id AS blocker
    FROM runs r
    CROSS JOIN LATERAL (
        SELECT o.id FROM runs o
        WHERE o.environment = r.environment AND o.exclusion = r.exclusion AND o.id <> r.id
          AND (o.status = 'running' OR (o.status IN ('queued', 'waiting') AND o.position < r.position))
        ORDER BY o.status = 'running', o.position DESC LIMIT 1) b
    WHERE r.status IN ('queued', 'waiting')
), marked AS (
    UPDATE runs SET status = 'waiting', waiting_for = blocked.blocker
    FROM blocked
    WHERE runs.id = blocked.id AND runs.status IN ('queued', 'waiting')
      AND runs.waiting_for IS DISTINCT FROM blocked.blocker
    RETURNING runs.id, runs.waiting_for
)
INSERT INTO run_changes (run, status, reason)
SELECT id, 'waiting', 'waiting for run ' || waiting_for FROM marked;

-- name: running_on_node
SELECT id, day FROM runs WHERE status = 'running' AND node = %(node)s ORDER BY position;

-- name: end_run, once: a terminal state never changes
UPDATE runs SET status = %(status)s, finished_at = %(finished_at)s, error = %(error)s, result = %(result)s,
                hosts = %(hosts)s, events = %(events)s, waiting_for = NULL, variables = NULL
WHERE id = %(id)s AND status = 'running'
RETURNING operation, extract(epoch FROM finished_at - started_at) AS seconds;

-- name: count_ended, of an operation in a status; kept apart so that it outlives the runs
INSERT INTO run_totals AS t (operation, status, runs, seconds) VALUES (%(operation)s, %(status)s, 1, %(seconds)s)
ON CONFLICT (operation, status) DO UPDATE SET runs = t.runs + 1, seconds = t.seconds + excluded.seconds;

-- name: totals, for the metrics
SELECT operation, status, runs, seconds FROM run_totals;

-- name: queue_depth, for the metrics
SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
       count(*) FILTER (WHERE status = 'waiting') AS waiting,
       count(*) FILTER (WHERE status = 'running') AS running,
       coalesce(extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE status = 'queued')), 0) AS oldest_queued_seconds
FROM runs WHERE status IN ('queued', 'waiting', 'running');

-- name: running, wherever
SELECT id, day FROM runs WHERE status = 'running';

-- name: workers_connected, of any node
SELECT count(*) AS workers
FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bazaruto-worker';
