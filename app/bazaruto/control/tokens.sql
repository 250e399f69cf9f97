-- name: one_at_a_time, so that two processes do not both make the first token, nor two admins revoke each other's last
SELECT pg_advisory_xact_lock(hashtext('bazaruto.first_admin_token'));

-- name: count_tokens
SELECT count(*) AS tokens FROM access_tokens;

-- name: insert_token
INSERT INTO access_tokens (id, name, role, hash, environments, operations, created_by, expires_at)
VALUES (%(id)s, %(name)s, %(role)s, %(hash)s, %(environments)s, %(operations)s, %(created_by)s,
        clock_timestamp() + make_interval(secs => %(seconds)s))
RETURNING *, 'working' AS status;

-- name: would_outlive, a token of so many seconds (NULL: without an end) the one that makes it
SELECT expires_at FROM access_tokens
WHERE id = %(maker)s AND coalesce(clock_timestamp() + make_interval(secs => %(seconds)s) > expires_at,
                                  expires_at IS NOT NULL);

-- name: one_token
SELECT *, CASE WHEN revoked_at IS NOT NULL THEN 'revoked'
               WHEN expires_at <= clock_timestamp() THEN 'expired' ELSE 'working' END AS status
FROM access_tokens WHERE id = %(id)s;

-- name: page_of_tokens, newest first, that are within somebody's limits
SELECT *, CASE WHEN revoked_at IS NOT NULL THEN 'revoked'
               WHEN expires_at <= clock_timestamp() THEN 'expired' ELSE 'working' END AS status
FROM access_tokens
WHERE (%(created_at)s::timestamptz IS NULL OR (created_at, id) < (%(created_at)s, %(id)s))
  AND (%(environments)s::text[] = '{}' OR (environments <> '{}' AND environments <@ %(environments)s::text[]))
  AND (%(operations)s::text[] = '{}' OR (operations <> '{}' AND operations <@ %(operations)s::text[]))
ORDER BY created_at DESC, id DESC LIMIT %(limit)s;

-- name: other_unlimited_admins, that work
SELECT count(*) AS tokens FROM access_tokens
WHERE id <> %(id)s AND role = 'admin' AND environments = '{}' AND operations = '{}' AND revoked_at IS NULL
  AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: revoke, once: the first who does is the one who is named
UPDATE access_tokens SET revoked_at = clock_timestamp(), revoked_by = %(by)s, revoke_reason = %(reason)s
WHERE id = %(id)s AND revoked_at IS NULL
RETURNING *, 'revoked' AS status;
