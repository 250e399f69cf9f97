-- name: begin_planning, of a run that was just accepted
UPDATE runs SET status = 'waiting', approval = 'planning', plan_run = %(plan)s, waiting_for = %(plan)s,
                waiting_reason = %(reason)s
WHERE id = %(id)s
RETURNING *;

-- name: insert_plan, the same launch in check mode, with its own id
INSERT INTO runs (id, day, operation, environment, effect, exclusion, status, parameters, variables, secret_variables,
                  check_mode, diff, host_limit, reason, requested_by, timeout_seconds, idle_timeout_seconds, tolerates,
                  revision, dirty, content_digest, plan_for)
SELECT %(id)s, %(day)s, operation, environment, effect, exclusion, 'queued', parameters, %(variables)s,
       secret_variables, true, true, host_limit, %(reason)s, requested_by, timeout_seconds, idle_timeout_seconds,
       tolerates, revision, dirty, content_digest, id
FROM runs WHERE id = %(plan_for)s;

-- name: plans_that_ended, with the run each is for; one that somebody else looks at is theirs
SELECT r.id, r.approval, r.plan, r.plan_run, r.confirming_run, r.requested_by, r.approved_by,
       r.content_digest, p.status AS ended_as, p.error AS ended_error, clock_timestamp() AS now
FROM runs r LEFT JOIN runs p ON p.id = coalesce(r.confirming_run, r.plan_run)
WHERE r.status = 'waiting' AND r.approval IN ('planning', 'confirming') AND r.finished_at IS NULL
  AND (p.id IS NULL OR p.finished_at IS NOT NULL)
ORDER BY r.position FOR UPDATE OF r SKIP LOCKED;

-- name: day_of_run, by which its events are found
SELECT day FROM runs WHERE id = %(id)s;

-- name: predicted, every event of a plan that says of something that it would change, or how
SELECT body FROM events
WHERE day = %(day)s AND run = %(run)s
  AND (body ->> 'type' = 'runner_on_file_diff' OR body ->> 'changed' = 'true')
ORDER BY seq;

-- name: planned, and to be approved until it expires by this clock
UPDATE runs SET approval = 'pending', plan = %(plan)s, waiting_for = NULL, waiting_reason = %(reason)s,
                approval_expires_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = %(id)s AND status = 'waiting' AND approval = 'planning';

-- name: approve, once: of any number at the same moment one finds it pending
UPDATE runs SET approval = 'confirming', approved_at = clock_timestamp(), approved_by = %(by)s,
                approve_reason = %(why)s, confirming_run = %(confirming)s, waiting_for = NULL,
                waiting_reason = %(reason)s
WHERE id = %(id)s AND status = 'waiting' AND approval = 'pending' AND approval_expires_at > clock_timestamp()
  AND requested_by <> %(by)s AND (%(plan)s::text IS NULL OR plan_run = %(plan)s)
RETURNING *;

-- name: wait_for_confirmation
UPDATE runs SET waiting_for = confirming_run WHERE id = %(id)s;

-- name: grant, since what it would change is still what was approved
UPDATE runs SET approval = 'granted', status = 'queued', waiting_for = NULL, waiting_reason = NULL
WHERE id = %(id)s AND status = 'waiting' AND approval = 'confirming';

-- name: expired, which nobody approved in time, or which did not start in time
SELECT id, approval, approval_expires_at FROM runs
WHERE status IN ('queued', 'waiting') AND approval IN ('pending', 'confirming', 'granted') AND finished_at IS NULL
  AND approval_expires_at <= clock_timestamp()
FOR UPDATE SKIP LOCKED;

-- name: reject, for good, and with it forget what was sealed
UPDATE runs SET status = 'rejected', approval = 'rejected', finished_at = clock_timestamp(), error = %(error)s,
                rejected_by = %(by)s, reject_reason = %(why)s, waiting_for = NULL, waiting_reason = NULL,
                variables = NULL
WHERE id = %(id)s AND status IN ('queued', 'waiting') AND approval = ANY (%(states)s::text[])
RETURNING operation, 0.0 AS seconds, coalesce(confirming_run, plan_run) AS planning_run;

-- name: waiting_for_approval, for the metrics
SELECT count(*) AS runs FROM runs WHERE approval = 'pending' AND finished_at IS NULL;
