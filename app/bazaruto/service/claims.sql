-- name: attribute_changes
-- Say who changes claims in this transaction, how and why; the history's trigger reads it.
SELECT set_config('bazaruto.changed_by', %(changed_by)s, true),
       set_config('bazaruto.via', %(via)s, true),
       set_config('bazaruto.reason', %(reason)s, true);

-- name: policy_for_claim
-- What a claim is measured against; locked, so that its status stays until the claim is there.
SELECT id, number, user_id, coverage_minor, currency, starts_on, ends_on, status
  FROM policies
 WHERE id = %(id)s
   FOR SHARE;

-- name: insert_claim
-- Submit a claim.
INSERT INTO claims (policy_id, amount_minor, currency, incident_on, description)
VALUES (%(policy_id)s, %(amount_minor)s, %(currency)s, %(incident_on)s, %(description)s)
RETURNING id, number, policy_id, amount_minor, currency, incident_on, description, status, created_at, updated_at;

-- name: claim_by_id
-- One claim and its policy's holder.
SELECT claims.id, claims.number, claims.policy_id, claims.amount_minor, claims.currency, claims.incident_on,
       claims.description, claims.status, claims.created_at, claims.updated_at, policies.user_id
  FROM claims
  JOIN policies ON policies.id = claims.policy_id
 WHERE claims.id = %(id)s;

-- name: history_of_claim
-- What happened to a claim, oldest first.
SELECT from_status, to_status, changed_by, via, reason, created_at
  FROM claim_history
 WHERE claim_id = %(claim_id)s
 ORDER BY id;

-- name: list_claims
-- A page of claims, newest first.
SELECT claims.id, claims.number, claims.policy_id, claims.amount_minor, claims.currency, claims.incident_on,
       claims.description, claims.status, claims.created_at, claims.updated_at, policies.user_id
  FROM claims
  JOIN policies ON policies.id = claims.policy_id
 WHERE (%(user_id)s::uuid IS NULL OR policies.user_id = %(user_id)s)
   AND (%(policy_id)s::uuid IS NULL OR claims.policy_id = %(policy_id)s)
   AND (%(status)s::text IS NULL OR claims.status = %(status)s)
   AND (%(before_time)s::timestamptz IS NULL
        OR (claims.created_at, claims.id) < (%(before_time)s::timestamptz, %(before_id)s::uuid))
 ORDER BY claims.created_at DESC, claims.id DESC
 LIMIT %(limit)s;

-- name: set_claim_status
-- Move a claim on from where it was seen; no row: someone was faster.
UPDATE claims
   SET status = %(status)s, updated_at = clock_timestamp()
 WHERE id = %(id)s AND status = %(from_status)s
RETURNING id, number, policy_id, amount_minor, currency, incident_on, description, status, created_at, updated_at;

-- name: claim_for_assessment
-- What decides about a claim that nobody has looked at.
SELECT claims.id, claims.amount_minor, claims.currency, claims.incident_on, claims.status,
       policies.product, policies.starts_on
  FROM claims
  JOIN policies ON policies.id = claims.policy_id
 WHERE claims.id = %(id)s
   FOR UPDATE OF claims;
