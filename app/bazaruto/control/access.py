"""Who may what: bearer tokens found by their public half and compared in constant time, roles, and limits."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import Connection

from bazaruto import logs
from bazaruto.database import statements

SQL = statements(__package__, "access.sql")
TOKEN = re.compile(r"bzr_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
NOBODY = hashlib.sha256(b"nobody").digest()  # compared with when there is no such token, to take as long

log = logs.get(__name__)


class Role(enum.StrEnum):
    """What a token is for. Each may what the ones before may, and more."""

    VIEWER = "viewer"  # looks at everything within its limits
    OPERATOR = "operator"  # launches, cancels and retries
    APPROVER = "approver"  # decides on what others have planned
    ADMIN = "admin"  # gives and takes access, and answers for what cannot be known

    def includes(self, other: Role) -> bool:
        """Whether this role may whatever the other may."""
        ladder = list(Role)
        return ladder.index(self) >= ladder.index(other)


class NotAllowed(Exception):
    """The token works and is not enough; the text says which role or limit is missing."""


class NotIdentified(Exception):
    """Nobody is shown to ask; the text says what is wrong with the token, to whoever holds its secret."""


class UnknownToken(NotIdentified):
    """No token has this id, or it is none at all."""


class WrongSecret(NotIdentified):
    """The id is a token's, the secret is not."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who asks."""

    name: str  # the person: several tokens of one name are one person
    role: Role
    token: str = ""  # the token's id, its public half; "" for whom no token was needed
    environments: tuple[str, ...] = ()  # it is good for; none named: for every one
    operations: tuple[str, ...] = ()  # likewise


def require(identity: Identity, role: Role, environment: str | None = None, operation: str | None = None) -> None:
    """Raise NotAllowed unless the identity has this role, and may touch this environment and operation."""
    if not identity.role.includes(role):
        raise NotAllowed(f"This needs the role {role}, and {identity.name}'s token has the role {identity.role}.")
    for kind, name, allowed in (
        ("environment", environment, identity.environments),
        ("operation", operation, identity.operations),
    ):
        if name is not None and allowed and name not in allowed:
            raise NotAllowed(f"{identity.name}'s token is not for this {kind}, but for: {', '.join(allowed)}.")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A token as somebody shows it."""

    id: str  # its public half
    token: str = dataclasses.field(repr=False)


def shown(header: str) -> Shown | None:
    """The token of an `Authorization: Bearer …`; None when it is none."""
    scheme, _, token = header.partition(" ")
    match = TOKEN.fullmatch(token.strip())
    return Shown(match[1], match[0]) if scheme.lower() == "bearer" and match else None


def identify(connection: Connection[Any], token: Shown | None) -> Identity:
    """Whose token this is, by the database's clock. Raises NotIdentified."""
    row: Mapping[str, Any] | None = None
    if token is not None:
        row = connection.execute(SQL.token_by_id, {"id": token.id}).fetchone()
    if token is None or not _is_secret_of(token, row) or row is None:
        raise (WrongSecret if row else UnknownToken)("This is no valid token.")
    if row["revoked"]:
        raise NotIdentified(f"This token of {row['name']} was revoked.")
    if row["expired"]:
        raise NotIdentified(f"This token of {row['name']} has expired.")
    if row["unseen"]:
        _mark_used(connection, token.id)
    return Identity(row["name"], Role(row["role"]), token.id, tuple(row["environments"]), tuple(row["operations"]))


def digest(token: str) -> bytes:
    """What is stored of a token. Its secret half has 256 random bits, so a fast hash will do."""
    return hashlib.sha256(token.encode()).digest()


def _is_secret_of(token: Shown, row: Mapping[str, Any] | None) -> bool:
    """Takes as long whatever is wrong. Tokens of the first version have only their secret half hashed."""
    known = bytes(row["hash"]) if row else NOBODY
    secret = token.token.split("_", 2)[2]
    matches = [hmac.compare_digest(digest(text), known) for text in (token.token, secret)]
    return any(matches)


def _mark_used(connection: Connection[Any], token: str) -> None:
    """A database that takes no writes keeps nobody from looking."""
    try:
        with connection.transaction():
            connection.execute(SQL.mark_used, {"id": token})
    except psycopg.Error as error:
        log.warn("a token's use was not noted", token=token, error=f"{type(error).__name__}: {error}"[:300])
