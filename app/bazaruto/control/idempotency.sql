-- name: insert_key, or wait for the transaction that has it; nothing when it is taken
INSERT INTO idempotency_keys (requested_by, key, fingerprint, run)
VALUES (%(requested_by)s, %(key)s, %(fingerprint)s, %(run)s)
ON CONFLICT DO NOTHING RETURNING key;

-- name: launch_of_key, and whether the key its fingerprint was made with was replaced since
SELECT i.fingerprint, i.run, EXISTS (
    SELECT FROM keys k
    WHERE k.name = 'sealing.key' AND k.since > i.created_at
      AND EXISTS (SELECT FROM keys b WHERE b.name = k.name AND b.position < k.position)) AS of_another_key
FROM idempotency_keys i WHERE i.requested_by = %(requested_by)s AND i.key = %(key)s;

-- name: forget_old_keys, some at a time; those that another transaction forgets just now are left to it
DELETE FROM idempotency_keys WHERE (requested_by, key) IN (
    SELECT requested_by, key FROM idempotency_keys
    WHERE created_at < clock_timestamp() - make_interval(secs => %(seconds)s)
    ORDER BY created_at LIMIT 100 FOR UPDATE SKIP LOCKED);
