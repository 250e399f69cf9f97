-- name: token_by_id, and what has become of it by the clock that everybody here shares
SELECT id, name, role, hash, environments, operations, expires_at, revoked_at,
       revoked_at IS NOT NULL AS revoked,
       coalesce(expires_at <= clock_timestamp(), false) AS expired,
       coalesce(last_used_at NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp(), true) AS unseen
FROM access_tokens WHERE id = %(id)s;

-- name: mark_used, at most once a minute, so that reading costs no writing
UPDATE access_tokens SET last_used_at = clock_timestamp() WHERE id = %(id)s;

-- name: token_ids, whatever has become of them
SELECT id FROM access_tokens;
