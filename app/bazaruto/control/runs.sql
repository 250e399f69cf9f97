-- name: insert_run
INSERT INTO runs (id, day, operation, environment, effect, exclusion, status, parameters, variables, secret_variables,
                  check_mode, diff, host_limit, reason, requested_by, timeout_seconds, idle_timeout_seconds, tolerates,
                  retry_of, revision, dirty, content_digest)
VALUES (%(id)s, %(day)s, %(operation)s, %(environment)s, %(effect)s, %(exclusion)s, 'queued', %(parameters)s,
        %(variables)s, %(secret_variables)s, %(check_mode)s, %(diff)s, %(host_limit)s, %(reason)s, %(requested_by)s,
        %(timeout_seconds)s, %(idle_timeout_seconds)s, %(tolerates)s, %(retry_of)s, %(revision)s, %(dirty)s,
        %(content_digest)s)
RETURNING *;

-- name: insert_change
INSERT INTO run_changes (run, status, reason) VALUES (%(run)s, %(status)s, %(reason)s);

-- name: one_run, and whether a worker serves its environment
SELECT runs.*, NOT EXISTS (
    SELECT FROM live_workers w
    WHERE w.environments = '{}' OR runs.environment = ANY (w.environments)) AS unserved
FROM runs WHERE id = %(id)s;

-- name: changes_of_run
SELECT at, status, reason FROM run_changes WHERE run = %(run)s ORDER BY at;

-- name: page_of_runs, newest first, before a position
SELECT * FROM runs
WHERE (%(before)s::bigint IS NULL OR position < %(before)s)
  AND (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(operation)s::text IS NULL OR operation = %(operation)s)
  AND (%(environment)s::text IS NULL OR environment = %(environment)s)
  AND (%(environments)s::text[] = '{}' OR environment = ANY (%(environments)s::text[]))
  AND (%(operations)s::text[] = '{}' OR operation = ANY (%(operations)s::text[]))
ORDER BY position DESC LIMIT %(limit)s;

-- name: claim_run, the oldest that nothing stands in the way of (goes_before: 0007_approvals.sql): the one right to run
UPDATE runs SET status = 'running', waiting_for = NULL, waiting_reason = NULL, node = %(node)s,
                started_at = clock_timestamp()
WHERE status IN ('queued', 'waiting')
  AND id = (
    SELECT r.id FROM runs r
    WHERE r.status IN ('queued', 'waiting')
      AND (r.approval IS NULL OR (r.approval = 'granted' AND r.approval_expires_at > clock_timestamp()))
      AND (%(environments)s::text[] = '{}' OR r.environment = ANY (%(environments)s::text[]))
      AND NOT EXISTS (SELECT FROM goes_before(r))
      AND NOT EXISTS (
        SELECT FROM runs l
        WHERE l.environment = r.environment AND l.left_running <> '{}' AND l.waived_at IS NULL
          AND (r.effect = 'destroy' OR r.exclusion IN ('change', l.exclusion)))
    ORDER BY r.position LIMIT 1 FOR UPDATE OF r SKIP LOCKED)
RETURNING *;

-- name: forget_variables, once they lie in the run's directory
UPDATE runs SET variables = NULL WHERE id = %(id)s;

-- name: mark_waiting, every run that cannot start yet: for the one right before it in the line, or for what one left
WITH blocked AS (
    SELECT r.id, b.id AS blocker, b.reason
    FROM runs r
    CROSS JOIN LATERAL (
        SELECT o.id, 'waiting for run ' || o.id AS reason, 1 AS rank, o.status = 'running' AS running, o.position
        FROM goes_before(r) o
        UNION ALL
        SELECT l.id, 'waiting until it is known that run ' || l.id || ' left nothing running on '
                     || array_to_string(l.left_running, ', '), 2, false, l.position
        FROM runs l
        WHERE l.environment = r.environment AND l.left_running <> '{}' AND l.waived_at IS NULL
          AND (r.effect = 'destroy' OR r.exclusion IN ('change', l.exclusion))
        ORDER BY rank, running, position DESC LIMIT 1) b
    WHERE r.status IN ('queued', 'waiting') AND coalesce(r.approval, 'granted') = 'granted'
), marked AS (
    UPDATE runs SET status = 'waiting', waiting_for = blocked.blocker, waiting_reason = blocked.reason
    FROM blocked
    WHERE runs.id = blocked.id AND runs.status IN ('queued', 'waiting')
      AND runs.waiting_reason IS DISTINCT FROM blocked.reason
    RETURNING runs.id, runs.waiting_reason
)
INSERT INTO run_changes (run, status, reason)
SELECT id, 'waiting', waiting_reason FROM marked;

-- name: running_on_node, and whether somebody wants one of them ended
SELECT id, day, cancel_requested_at, cancel_requested_by, cancel_reason
FROM runs WHERE status = 'running' AND node = %(node)s ORDER BY position;

-- name: ended_among, of these runs
SELECT id FROM runs WHERE id = ANY (%(ids)s::text[]) AND finished_at IS NOT NULL;

-- name: end_run, once: a terminal state never changes. Its length is measured where it ran, by a clock that cannot jump
UPDATE runs SET status = %(status)s, error = %(error)s, result = %(result)s, hosts = %(hosts)s, events = %(events)s,
                left_running = %(left_running)s, waiting_for = NULL, waiting_reason = NULL, variables = NULL,
                finished_at = greatest(started_at, least(clock_timestamp(),
                    coalesce(started_at + make_interval(secs => %(seconds)s), clock_timestamp())))
WHERE id = %(id)s AND status = 'running'
RETURNING operation, extract(epoch FROM finished_at - started_at) AS seconds;

-- name: cancel_before_start
UPDATE runs SET status = 'canceled', finished_at = clock_timestamp(), error = %(error)s, waiting_for = NULL,
                waiting_reason = NULL, variables = NULL, cancel_requested_at = clock_timestamp(),
                cancel_requested_by = %(by)s, cancel_reason = %(reason)s
WHERE id = %(id)s AND status IN ('queued', 'waiting') AND coalesce(approval, 'granted') = 'granted'
RETURNING operation, 0.0 AS seconds;

-- name: request_cancel, of a run that a supervisor plays; the first who asks is the one who is named
UPDATE runs SET cancel_requested_at = clock_timestamp(), cancel_requested_by = %(by)s, cancel_reason = %(reason)s
WHERE id = %(id)s AND status = 'running' AND cancel_requested_at IS NULL
RETURNING id;

-- name: unsettled_on_node, runs that may have left something running on hosts
SELECT id, left_running FROM runs WHERE left_running <> '{}' AND waived_at IS NULL AND node = %(node)s;

-- name: settle, what is known of a run's hosts by now
UPDATE runs SET left_running = %(left_running)s WHERE id = %(id)s AND left_running IS DISTINCT FROM %(left_running)s
RETURNING id;

-- name: waive
UPDATE runs SET waived_at = clock_timestamp(), waived_by = %(by)s, waive_reason = %(reason)s
WHERE id = %(id)s AND left_running <> '{}' AND waived_at IS NULL
RETURNING id;

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

-- name: worker_seen, again
INSERT INTO workers AS w (id, node, environments) VALUES (%(id)s, %(node)s, %(environments)s)
ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp();

-- name: worker_left
DELETE FROM workers WHERE id = %(id)s OR seen_at < clock_timestamp() - interval '1 day';

-- name: workers_alive
SELECT count(*) AS workers, count(DISTINCT node) AS nodes,
       coalesce(extract(epoch FROM clock_timestamp() - min(seen_at)), 0) AS oldest_seen_seconds
FROM live_workers;

-- name: enter_run, again, from its directory; a retry of a run that is not known stands alone
INSERT INTO runs (id, day, operation, environment, effect, exclusion, status, parameters, secret_variables, check_mode,
                  diff, host_limit, reason, requested_by, node, timeout_seconds, idle_timeout_seconds, tolerates,
                  created_at, started_at, finished_at, result, hosts, error, events, retry_of, revision, dirty,
                  content_digest, left_running, approval, plan_for, plan_run, confirming_run, plan,
                  approval_expires_at, approved_at, approved_by, approve_reason)
VALUES (%(id)s, %(day)s, %(operation)s, %(environment)s, %(effect)s, %(exclusion)s, %(status)s, %(parameters)s,
        %(secret_variables)s, %(check_mode)s, %(diff)s, %(host_limit)s, %(reason)s, %(requested_by)s, %(node)s,
        %(timeout_seconds)s, %(idle_timeout_seconds)s, %(tolerates)s, %(created_at)s, %(started_at)s, %(finished_at)s,
        %(result)s, %(hosts)s, %(error)s, %(events)s, (SELECT r.id FROM runs r WHERE r.id = %(retry_of)s),
        %(revision)s, %(dirty)s, %(content_digest)s, %(left_running)s, %(approval)s, %(plan_for)s, %(plan_run)s,
        %(confirming_run)s, %(plan)s, %(approval_expires_at)s, %(approved_at)s, %(approved_by)s, %(approve_reason)s);

-- name: enter_change, again, from its directory
INSERT INTO run_changes (run, at, status, reason) VALUES (%(run)s, %(at)s, %(status)s, %(reason)s);
