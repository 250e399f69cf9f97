-- name: lock_head, the end of the chain: one writer at a time, and none that is frozen for longer than 10 s
SELECT seq, mac, set_config('idle_in_transaction_session_timeout', '10s', true) FROM audit_head FOR UPDATE;

-- name: end_of_chain, without a lock
SELECT seq FROM audit_head;

-- name: at_head, what this node wrote last, and the key in use; asked once the head is locked, since it may have moved
SELECT own.seq AS own_seq, own.mac AS own_mac,
       (SELECT fingerprint FROM keys WHERE name = 'audit.key' ORDER BY position DESC LIMIT 1) AS key
FROM (VALUES (true)) one
LEFT JOIN LATERAL (SELECT e.seq, e.mac FROM audit_entries e WHERE e.node = %(node)s ORDER BY e.seq DESC LIMIT 1) own
  ON true;

-- name: mac_of_entry
SELECT mac FROM audit_entries WHERE seq = %(seq)s;

-- name: insert_entry, and make it the end of the chain
WITH entry AS (
    INSERT INTO audit_entries (seq, at, node, actor, token, address, request_id, action, target, environment,
                               operation, parameters, outcome, detail, key, previous, mac)
    VALUES (%(seq)s, %(at)s, %(node)s, %(actor)s, %(token)s, %(address)s, %(request_id)s, %(action)s, %(target)s,
            %(environment)s, %(operation)s, %(parameters)s::json, %(outcome)s, %(detail)s, %(key)s, %(previous)s,
            %(mac)s)
    RETURNING seq, mac)
UPDATE audit_head SET seq = entry.seq, mac = entry.mac FROM entry;

-- name: take_end, of a run that has no entry yet; others than those that another worker takes just now
DELETE FROM audit_ends WHERE position = (SELECT position FROM audit_ends ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING run, operation, environment, status, error, node;
