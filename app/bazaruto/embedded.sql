-- name: role_exists
-- One row when there is such a role.
SELECT FROM pg_roles WHERE rolname = %(role)s;

-- name: database_exists
-- One row when there is such a database.
SELECT FROM pg_database WHERE datname = %(database)s;

-- name: create_role
-- A role that may log in, and nothing else.
CREATE ROLE {role} LOGIN PASSWORD {password};

-- name: create_database
-- A database that the role owns.
CREATE DATABASE {database} OWNER {role};
