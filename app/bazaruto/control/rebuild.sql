-- name: not_over, running ones first: what they hold is free when they have ended
SELECT * FROM runs WHERE finished_at IS NULL ORDER BY status <> 'running', position;

-- name: had_started, says its directory: as it was when it was claimed
UPDATE runs SET status = 'running', node = %(node)s, started_at = %(started_at)s, waiting_for = NULL,
                waiting_reason = NULL, variables = NULL,
                approval = CASE WHEN approval IS NOT NULL THEN 'granted' END
WHERE id = %(id)s AND status IN ('queued', 'waiting')
RETURNING id;

-- name: end_unknown, a run that waited when the backup was made; what was not approved then is rejected
UPDATE runs SET status = CASE WHEN approval IN ('planning', 'pending', 'confirming') THEN 'rejected'
                              ELSE 'interrupted' END,
                reject_reason = CASE WHEN approval IN ('planning', 'pending', 'confirming') THEN %(error)s END,
                approval = CASE WHEN approval IN ('planning', 'pending', 'confirming') THEN 'rejected' ELSE approval END,
                error = %(error)s, waiting_for = NULL, waiting_reason = NULL, variables = NULL,
                finished_at = clock_timestamp()
WHERE id = %(id)s AND status IN ('queued', 'waiting')
RETURNING operation, status, 0.0 AS seconds;

-- name: counts, of what there is now
SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM events) AS events,
       (SELECT count(*) FROM audit_entries) AS audit_entries,
       (SELECT count(*) FROM access_tokens WHERE revoked_at IS NULL) AS tokens;

-- name: last_entry
SELECT seq, mac FROM audit_head;
