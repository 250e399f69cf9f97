-- name: insert_policy
-- Create a policy as a draft.
INSERT INTO policies (user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on)
VALUES (%(user_id)s, %(product)s, %(coverage_minor)s, %(premium_minor)s, %(currency)s, %(starts_on)s, %(ends_on)s)
RETURNING id, number, user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on, status,
          created_at, updated_at;

-- name: policy_for_token
-- Who asks, and the policy asked for: no row for a token that opens nothing, an empty policy when there is none.
SELECT users.id AS caller_id, users.role AS caller_role,
       policies.id, policies.number, policies.user_id, policies.product, policies.coverage_minor,
       policies.premium_minor, policies.currency, policies.starts_on, policies.ends_on, policies.status,
       policies.created_at, policies.updated_at
  FROM tokens
  JOIN users ON users.id = tokens.user_id
  LEFT JOIN policies ON policies.id = %(id)s
 WHERE tokens.token_sha256 = %(token_sha256)s AND tokens.expires_at > now();

-- name: list_policies
-- A page of policies, newest first.
SELECT id, number, user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on, status,
       created_at, updated_at
  FROM policies
 WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
   AND (%(status)s::text IS NULL OR status = %(status)s)
   AND (%(product)s::text IS NULL OR product = %(product)s)
   AND (%(before_time)s::timestamptz IS NULL
        OR (created_at, id) < (%(before_time)s::timestamptz, %(before_id)s::uuid))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s;

-- name: lock_policy
-- A policy about to move on.
SELECT id, status, ends_on FROM policies WHERE id = %(id)s FOR UPDATE;

-- name: set_policy_status
-- Move a policy on; the trigger refuses what may not follow.
UPDATE policies
   SET status = %(status)s, updated_at = now()
 WHERE id = %(id)s
RETURNING id, number, user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on, status,
          created_at, updated_at;

-- name: lapse_ended
-- Lapse every active policy whose term is over.
UPDATE policies
   SET status = 'lapsed', updated_at = now()
 WHERE status = 'active' AND ends_on < (now() AT TIME ZONE 'UTC')::date;
