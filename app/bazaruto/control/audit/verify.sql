-- name: hold_head, so that nobody is between an intent and its commit
SELECT seq, mac FROM audit_head FOR UPDATE;

-- name: one_moment, for all that follows
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- name: head, and the key in use
SELECT seq, mac, (SELECT fingerprint FROM keys WHERE name = 'audit.key' ORDER BY position DESC LIMIT 1) AS key
FROM audit_head;

-- name: turning_points, entries that say why keys and files changed
SELECT seq, at, node, actor, token, address, request_id, action, target, environment, operation,
       parameters::text AS parameters, outcome, detail, key, previous, mac
FROM audit_entries WHERE action IN ('key.replace', 'audit.rotation') AND outcome = 'accepted' ORDER BY seq;

-- name: all_entries
SELECT seq, at, node, actor, token, address, request_id, action, target, environment, operation,
       parameters::text AS parameters, outcome, detail, key, previous, mac
FROM audit_entries ORDER BY seq;
