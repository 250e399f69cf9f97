-- Tokens with a role of four, limits, an end, and a record of who gave and who took them.
-- The version before knows no roles: it would take any token for an admin's. Tokens made from now on have their whole
-- text hashed, which it does not recognise; the first one, made before, goes on working there.

ALTER TABLE access_tokens
    DROP CONSTRAINT access_tokens_role_check,
    ADD CONSTRAINT access_tokens_role CHECK (role IN ('viewer', 'operator', 'approver', 'admin')),
    ADD COLUMN environments  text[] NOT NULL DEFAULT '{}',  -- it is good for; empty: every one
    ADD COLUMN operations    text[] NOT NULL DEFAULT '{}',  -- likewise
    ADD COLUMN created_by    text,                          -- NULL: made at the first start
    ADD COLUMN expires_at    timestamptz,                   -- NULL: never
    ADD COLUMN last_used_at  timestamptz,                   -- to the minute
    ADD COLUMN revoked_at    timestamptz,
    ADD COLUMN revoked_by    text,
    ADD COLUMN revoke_reason text;

CREATE INDEX access_tokens_by_age ON access_tokens (created_at, id);
