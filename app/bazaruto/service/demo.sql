-- name: count_users
-- How many users there are, and whether the demo's are among them.
SELECT count(*) AS users, count(*) FILTER (WHERE id = %(admin_id)s) AS demo FROM users;

-- name: lock
-- One demo at a time.
LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE;

-- name: copy_users
-- Users, all at once.
COPY users (id, email, name, role, password_hash, created_at) FROM STDIN;

-- name: copy_policies
-- Policies, all drafts.
COPY policies (id, number, user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on,
               created_at, updated_at) FROM STDIN;

-- name: copy_claims
-- Claims, all submitted.
COPY claims (id, number, policy_id, amount_minor, currency, incident_on, description, created_at, updated_at)
FROM STDIN;

-- name: create_steps
-- What happens to policies and claims after that.
CREATE TEMPORARY TABLE demo_steps (id uuid, status text, at timestamptz) ON COMMIT DROP;

-- name: copy_steps
-- Steps, all at once.
COPY demo_steps (id, status, at) FROM STDIN;

-- name: step_policies
-- Move policies on to one status.
UPDATE policies
   SET status = steps.status, updated_at = steps.at
  FROM demo_steps AS steps
 WHERE policies.id = steps.id AND steps.status = %(status)s;

-- name: step_claims
-- Move claims on to one status.
UPDATE claims
   SET status = steps.status, updated_at = steps.at
  FROM (SELECT id, status, at FROM demo_steps WHERE status = %(status)s ORDER BY at, id) AS steps
 WHERE claims.id = steps.id;

-- name: advance_numbers
-- New policies and claims are numbered after the demo's.
SELECT setval('policy_numbers', %(policies)s), setval('claim_numbers', %(claims)s);

-- name: set_password
-- Give a demo user a new password.
UPDATE users SET password_hash = %(password_hash)s WHERE id = ANY(%(ids)s);
