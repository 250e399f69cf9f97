-- The rules of the insurance business as questions: each returns what breaks it, so no row means it holds.
-- They ask the data alone, whatever constraints the restored database has: a backup in which a reference was removed
-- together with its foreign key is found here and nowhere else. A table that is not there breaks its rules too.

-- name: emails_are_unique_whatever_their_case
SELECT lower(email COLLATE "C") FROM users GROUP BY 1 HAVING count(*) > 1;

-- name: roles_of_users_are_known
SELECT id FROM users WHERE role IS NULL OR role NOT IN ('customer', 'agent', 'admin');

-- name: every_token_has_a_user
SELECT tokens.id FROM tokens WHERE NOT EXISTS (SELECT FROM users WHERE users.id = tokens.user_id);

-- name: every_policy_has_a_user
SELECT number FROM policies WHERE NOT EXISTS (SELECT FROM users WHERE users.id = policies.user_id);

-- name: numbers_of_policies_are_unique
SELECT number FROM policies GROUP BY 1 HAVING count(*) > 1;

-- name: statuses_of_policies_are_known
SELECT number FROM policies WHERE status IS NULL OR status NOT IN ('draft', 'active', 'lapsed', 'canceled');

-- name: terms_of_policies_begin_before_they_end
SELECT number FROM policies WHERE (starts_on <= ends_on) IS NOT TRUE;

-- name: premiums_are_positive_and_within_coverage
SELECT number FROM policies WHERE (premium_minor > 0 AND premium_minor <= coverage_minor) IS NOT TRUE;

-- name: every_claim_has_a_policy
SELECT number FROM claims WHERE NOT EXISTS (SELECT FROM policies WHERE policies.id = claims.policy_id);

-- name: numbers_of_claims_are_unique
SELECT number FROM claims GROUP BY 1 HAVING count(*) > 1;

-- name: amounts_of_claims_are_positive_and_covered
SELECT claims.number
  FROM claims JOIN policies ON policies.id = claims.policy_id
 WHERE (claims.amount_minor > 0 AND claims.amount_minor <= policies.coverage_minor) IS NOT TRUE;

-- name: claims_are_in_the_currency_of_their_policy
SELECT claims.number
  FROM claims JOIN policies ON policies.id = claims.policy_id
 WHERE claims.currency IS DISTINCT FROM policies.currency;

-- name: incidents_lie_within_the_term_of_their_policy
SELECT claims.number
  FROM claims JOIN policies ON policies.id = claims.policy_id
 WHERE (claims.incident_on BETWEEN policies.starts_on AND policies.ends_on) IS NOT TRUE;

-- name: nothing_is_claimed_on_policies_never_in_force
SELECT claims.number
  FROM claims JOIN policies ON policies.id = claims.policy_id
 WHERE policies.status = 'draft';

-- name: statuses_of_claims_are_known
SELECT number FROM claims
 WHERE status IS NULL OR status NOT IN ('submitted', 'in_review', 'approved', 'rejected', 'paid');

-- name: every_step_in_the_history_has_a_claim
SELECT id FROM claim_history WHERE NOT EXISTS (SELECT FROM claims WHERE claims.id = claim_history.claim_id);

-- name: the_history_of_every_claim_ends_with_its_status
SELECT claims.number
  FROM claims
  LEFT JOIN LATERAL (
      SELECT to_status FROM claim_history WHERE claim_id = claims.id ORDER BY claim_history.id DESC LIMIT 1
  ) AS last_step ON true
 WHERE last_step.to_status IS DISTINCT FROM claims.status;

-- name: the_steps_in_the_history_follow_each_other
SELECT claim_id
  FROM (
      SELECT claim_id, from_status, lag(to_status) OVER (PARTITION BY claim_id ORDER BY id) AS before,
             row_number() OVER (PARTITION BY claim_id ORDER BY id) AS step
        FROM claim_history
  ) AS steps
 WHERE (step = 1 AND from_status IS NOT NULL) OR (step > 1 AND from_status IS DISTINCT FROM before);
