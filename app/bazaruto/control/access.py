"""Who may ask: bearer tokens, found by their public half, compared by the hash of their secret one."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import re
import secrets
from pathlib import Path
from typing import Any

from psycopg import Connection

from bazaruto.control.engine import rundir
from bazaruto.database import statements

SQL = statements(__package__, "access.sql")
TOKEN = re.compile(r"bzr_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
NOBODY = hashlib.sha256(b"nobody").digest()  # compared with when there is no such token, to take as long


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
    """The token is valid and not enough; the text says which role or limit is missing."""


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


def identify(connection: Connection[Any], header: str) -> Identity | None:
    """Whose `Authorization: Bearer …` this is; None for nobody's."""
    scheme, _, token = header.partition(" ")
    match = TOKEN.fullmatch(token.strip())
    if scheme.lower() != "bearer" or not match:
        return None
    row = connection.execute(SQL.token_by_id, {"id": match[1]}).fetchone()
    known = bytes(row["hash"]) if row else NOBODY
    if not hmac.compare_digest(_hash(match[2]), known) or row is None:
        return None
    return Identity(name=row["name"], role=Role(row["role"]), token=match[1])


def ensure_admin_token(connection: Connection[Any], home: Path) -> Path | None:
    """Make the first admin token when there is no token at all; returns the file it was written to."""
    connection.execute(SQL.one_at_a_time)
    row = connection.execute(SQL.count_tokens).fetchone()
    if row and row["tokens"]:
        return None
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    path = home / "control" / "admin.token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name("admin.token.partial")
    rundir.write_private(partial, f"bzr_{identity}_{secret}\n")
    partial.replace(path)
    values = {"id": identity, "name": "admin", "role": "admin", "hash": _hash(secret)}
    connection.execute(SQL.insert_token, values)
    return path


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
