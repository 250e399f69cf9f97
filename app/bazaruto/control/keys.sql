-- name: current_key, the newest of its name
SELECT fingerprint, since FROM keys WHERE name = %(name)s ORDER BY position DESC LIMIT 1;

-- name: one_at_a_time, so that two processes do not both make the first keys
SELECT pg_advisory_xact_lock(hashtext('bazaruto.keys'));

-- name: insert_key
INSERT INTO keys (name, fingerprint) VALUES (%(name)s, %(fingerprint)s);
