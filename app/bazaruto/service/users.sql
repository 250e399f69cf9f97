-- name: insert_user
-- Create a user.
INSERT INTO users (email, name, role, password_hash)
VALUES (%(email)s, %(name)s, %(role)s, %(password_hash)s)
RETURNING id, email, name, role, created_at;

-- name: user_by_id
-- One user, without the password's hash.
SELECT id, email, name, role, created_at FROM users WHERE id = %(id)s;

-- name: list_users
-- A page of users, newest first.
SELECT id, email, name, role, created_at
  FROM users
 WHERE (%(role)s::text IS NULL OR role = %(role)s)
   AND (%(email)s::text IS NULL OR lower(email COLLATE "C") = lower(%(email)s::text COLLATE "C"))
   AND (%(before_time)s::timestamptz IS NULL
        OR (created_at, id) < (%(before_time)s::timestamptz, %(before_id)s::uuid))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s;
