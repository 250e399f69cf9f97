"""Who is asking: bearer tokens, roles, and what each may see."""

from __future__ import annotations

import hashlib
import uuid
from typing import NamedTuple

import bottle
import psycopg
from psycopg.rows import DictRow

from bazaruto import database, web
from bazaruto.problems import Problem
from bazaruto.service.fields import Role, is_id

SQL = database.statements(__package__, "login.sql")
TOKEN_PREFIX = "bz_"  # noqa: S105 - how a leaked one is recognized, not a secret
STAFF = frozenset({Role.AGENT, Role.ADMIN})


class Caller(NamedTuple):
    """Who sent a request."""

    id: uuid.UUID
    role: Role

    @property
    def is_staff(self) -> bool:
        """Whether this is an agent or an admin."""
        return self.role in STAFF

    def must_own(self, user_id: uuid.UUID) -> None:
        """403 unless it is the caller's own, or the caller is staff."""
        if not self.is_staff and user_id != self.id:
            raise forbidden()

    def whose(self, user_id: str | None) -> str | None:
        """Whose rows a list may show when it is asked for this user's: None is everybody's, for staff only."""
        if user_id is not None:
            self.must_own(uuid.UUID(user_id))
        return user_id if self.is_staff else str(self.id)


def hash_token(token: str) -> bytes:
    """Under what a token is remembered."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def presented_hash() -> bytes:
    """The hash of the request's bearer token; 401 without one. Asks no database."""
    scheme, _, token = bottle.request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer" or not token.startswith(TOKEN_PREFIX):
        raise unauthorized("Send the token of a login as `Authorization: Bearer …`.")
    return hash_token(token)


def identify(connection: psycopg.Connection[DictRow], token_sha256: bytes) -> Caller:
    """Whose token this is; 401 for one that is unknown, revoked or expired."""
    row = connection.execute(SQL.user_of_token, {"token_sha256": token_sha256}).fetchone()
    return identified(row)


def identified(row: DictRow | None) -> Caller:
    """The caller of a row with caller_id and caller_role, which are taken out of it; 401 without a row."""
    if row is None:
        raise unauthorized("The token is unknown, revoked or expired: log in again.")
    caller = Caller(row.pop("caller_id"), Role(row.pop("caller_role")))
    web.set_user(str(caller.id))
    return caller


def require(caller: Caller, roles: frozenset[Role]) -> None:
    """403 unless the caller has one of these roles."""
    if caller.role not in roles:
        raise forbidden()


def path_id(text: str, what: str) -> str:
    """The id in a path; 404 for anything that cannot be one."""
    if not is_id(text):
        raise not_found(what)
    return text


def unauthorized(detail: str) -> Problem:
    """401."""
    return Problem(401, detail=detail, headers={"WWW-Authenticate": 'Bearer realm="bazaruto"'})


def forbidden() -> Problem:
    """403."""
    return Problem(403, detail="Your role does not allow this.")


def not_found(what: str) -> Problem:
    """404."""
    return Problem(404, detail=f"There is no such {what}.")
