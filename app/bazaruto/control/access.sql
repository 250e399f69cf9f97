-- name: token_by_id
SELECT name, role, hash FROM access_tokens WHERE id = %(id)s;

-- name: one_at_a_time, so that two processes do not both make the first token
SELECT pg_advisory_xact_lock(hashtext('bazaruto.first_admin_token'));

-- name: count_tokens
SELECT count(*) AS tokens FROM access_tokens;

-- name: insert_token
INSERT INTO access_tokens (id, name, role, hash) VALUES (%(id)s, %(name)s, %(role)s, %(hash)s);
