-- Users, and the tokens with which they prove who they are.

CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email text NOT NULL,
    name text NOT NULL,
    role text NOT NULL DEFAULT 'customer',
    password_hash text, -- argon2id; NULL: cannot log in
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT users_email_form CHECK (
        char_length(email) <= 254 AND email ~ '^[!-?A-~]+@[0-9A-Za-z.-]+$'
    ),
    CONSTRAINT users_name_length CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT users_role_known CHECK (role IN ('customer', 'agent', 'admin')),
    CONSTRAINT users_password_is_argon2id CHECK (password_hash LIKE '$argon2id$%')
);

-- Ann@x.example and ann@x.example are one person; "C" keeps Turkish dotless i out of it.
CREATE UNIQUE INDEX users_email_any_case ON users (lower(email COLLATE "C"));
CREATE INDEX idx_users_email ON users (email);
CREATE INDEX users_newest ON users (created_at DESC, id DESC);

CREATE TABLE tokens (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    token_sha256 bytea NOT NULL, -- the token itself is kept nowhere
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tokens_are_sha256 CHECK (octet_length(token_sha256) = 32),
    CONSTRAINT tokens_expire_later CHECK (expires_at > created_at)
);

CREATE UNIQUE INDEX tokens_by_hash ON tokens (token_sha256);
CREATE INDEX tokens_of_user ON tokens (user_id);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);
