-- name: user_for_login
-- Who logs in under this e-mail, in any case.
SELECT id, email, name, role, password_hash, created_at
  FROM users
 WHERE lower(email COLLATE "C") = lower(%(email)s::text COLLATE "C");

-- name: insert_token
-- Remember a token by its hash.
INSERT INTO tokens (user_id, token_sha256, expires_at)
VALUES (%(user_id)s, %(token_sha256)s, now() + make_interval(secs => %(lifetime)s))
RETURNING expires_at;

-- name: user_of_token
-- Whose token this is, while it has not expired.
SELECT users.id AS caller_id, users.role AS caller_role
  FROM tokens
  JOIN users ON users.id = tokens.user_id
 WHERE tokens.token_sha256 = %(token_sha256)s AND tokens.expires_at > now();

-- name: delete_token
-- Revoke one token.
DELETE FROM tokens WHERE token_sha256 = %(token_sha256)s;

-- name: delete_tokens_of_user
-- Revoke every token of one user.
DELETE FROM tokens WHERE user_id = %(user_id)s;

-- name: delete_expired_tokens
-- Forget tokens that no longer open anything.
DELETE FROM tokens WHERE expires_at <= now();
