"""Tokens: made and shown once, listed without their secret, revoked; and the one that this node's files give."""

from __future__ import annotations

import datetime
import enum
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from psycopg import Connection
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bazaruto.control import access
from bazaruto.control.access import Identity, NotAllowed, Role
from bazaruto.control.engine import rundir
from bazaruto.database import statements

SQL = statements(__package__, "tokens.sql")
NAME = r"^[a-z0-9][a-z0-9._@+-]{0,62}$"
DURATION = re.compile(r"(\d{1,9})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST_SECONDS, LONGEST_SECONDS = 60, 3650 * 86400
ADMIN = "admin"  # the name of tokens that file permission gives
LAST_ADMIN = (
    "This is the last token of an admin without limits that works. Make another one first: "
    "`bazaruto token create NAME --role admin`, or `bazaruto token admin` on a control node."
)


class WrongToken(Exception):
    """A token that cannot be made; every wrong field is named."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors))
        self.errors = list(errors)


class NoSuchToken(Exception):
    """There is no such token."""


class TokenClash(Exception):
    """What is asked does not fit what has become of the token; the text says why."""


class TokenStatus(enum.StrEnum):
    """What has become of a token."""

    WORKING = "working"
    EXPIRED = "expired"  # its time is over, by the database's clock
    REVOKED = "revoked"  # somebody ended it


def _in_utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)


Moment = Annotated[datetime.datetime, AfterValidator(_in_utc)]
Limits = Annotated[list[str], Field(min_length=1, max_length=200)]


class Token(BaseModel):
    """One token; its secret is nowhere."""

    id: str = Field(description="Its public half, by which it is revoked")
    name: str = Field(description="Whose it is: several tokens of one name are one person")
    role: Role
    status: TokenStatus
    environments: list[str] = Field(description="Those it is good for; empty: every one")
    operations: list[str] = Field(description="Likewise")
    created_at: Moment
    created_by: str | None
    expires_at: Moment | None
    last_used_at: Moment | None = Field(description="To the minute")
    revoked_at: Moment | None
    revoked_by: str | None
    revoke_reason: str | None


class NewToken(Token):
    """A token when it is made: the only time it is shown."""

    token: str


class TokenRequest(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME, description="Whose it is: the person, or the program")
    role: Role
    environments: Limits | None = Field(default=None, description="Only these; without: every one")
    operations: Limits | None = Field(default=None, description="Only these; without: every one")
    expires: str | None = Field(
        default=None, pattern=f"^{DURATION.pattern}$", description="After how long: 90m, 12h, 30d; without: never"
    )


class RevokeRequest(BaseModel):
    """The end of a token."""

    model_config = ConfigDict(extra="forbid")

    reason: str | None = Field(default=None, max_length=1024, description="Why, for whoever reads it later")


def create(
    connection: Connection[Any],
    wanted: TokenRequest,
    by: Identity,
    environments: Collection[str],
    operations: Collection[str],
) -> NewToken:
    """Make a token; `environments` and `operations` are those there are. Raises NotAllowed or WrongToken."""
    access.require(by, wanted.role)
    _refuse_more_than(by.environments, wanted.environments, "environments")
    _refuse_more_than(by.operations, wanted.operations, "operations")
    wrong = [
        *_unknown("environments", wanted.environments, environments),
        *_unknown("operations", wanted.operations, operations),
    ]
    seconds = _seconds(wanted.expires)
    if seconds is not None and not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        wrong.append(("expires", "must be between one minute (1m) and ten years (3650d)"))
    if wrong:
        raise WrongToken(wrong)
    _refuse_to_outlive(connection, by, seconds)
    return _insert(connection, wanted, by.name, seconds)


def page(
    connection: Connection[Any], by: Identity, before: tuple[datetime.datetime, str] | None, limit: int
) -> list[Token]:
    """Tokens within somebody's limits, newest first."""
    created_at, identity = before or (None, None)
    values = {
        "created_at": created_at,
        "id": identity,
        "environments": list(by.environments),
        "operations": list(by.operations),
        "limit": limit,
    }
    return [Token.model_validate(row) for row in connection.execute(SQL.page_of_tokens, values)]


def find(connection: Connection[Any], token: str) -> Token:
    """One token. Raises NoSuchToken."""
    row = connection.execute(SQL.one_token, {"id": token}).fetchone()
    if row is None:
        raise NoSuchToken("There is no such token.")
    return Token.model_validate(row)


def revoke(connection: Connection[Any], token: str, by: Identity, reason: str | None) -> Token:
    """End a token at once. Raises NoSuchToken, NotAllowed, or TokenClash when it was revoked or is the last admin's."""
    connection.execute(SQL.one_at_a_time)
    known = find(connection, token)
    _refuse_more_than(by.environments, known.environments, "environments")
    _refuse_more_than(by.operations, known.operations, "operations")
    if known.status is TokenStatus.REVOKED:
        raise TokenClash(f"It was revoked by {known.revoked_by} already.")
    unlimited = known.role is Role.ADMIN and not known.environments and not known.operations
    if unlimited and known.status is TokenStatus.WORKING and not _others(connection, token):
        raise TokenClash(LAST_ADMIN)
    row = connection.execute(SQL.revoke, {"id": token, "by": by.name, "reason": reason}).fetchone()
    return Token.model_validate(row)


def ensure_admin(connection: Connection[Any], home: Path) -> Path | None:
    """Make the first admin token when there is no token at all; returns the file it was written to."""
    connection.execute(SQL.one_at_a_time)
    row = connection.execute(SQL.count_tokens).fetchone()
    if row and row["tokens"]:
        return None
    _write(home, _insert(connection, TokenRequest(name=ADMIN, role=Role.ADMIN), None, None))
    return keep_admin(home)


def replace_admin(connection: Connection[Any], home: Path, by: str) -> tuple[NewToken, str | None]:
    """A new admin token beside this node's file, and the id of the one it replaces, which is revoked; `keep_admin`
    follows when that is durable. Whoever may write that file is an admin, whatever became of every other token.
    """
    connection.execute(SQL.one_at_a_time)
    before = _of_file(admin_file(home))
    made = _insert(connection, TokenRequest(name=ADMIN, role=Role.ADMIN), by, None)
    _write(home, made)
    values = {"id": before, "by": by, "reason": f"replaced by {made.id}"}
    replaced = connection.execute(SQL.revoke, values).fetchone() if before else None
    return made, before if replaced else None


def keep_admin(home: Path) -> Path:
    """Put the new admin token where this node's commands find it."""
    path = admin_file(home)
    _beside(path).replace(path)
    return path


def admin_file(home: Path) -> Path:
    """Where this node's own admin token is."""
    return home / "control" / "admin.token"


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _write(home: Path, made: NewToken) -> None:
    path = admin_file(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rundir.write_private(_beside(path), f"{made.token}\n")


def _of_file(path: Path) -> str | None:
    """The id of the token in a file; None when there is none."""
    try:
        token = access.TOKEN.fullmatch(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None  # which is why somebody makes a new one
    return token[1] if token else None


def _insert(connection: Connection[Any], wanted: TokenRequest, created_by: str | None, seconds: int | None) -> NewToken:
    identity = secrets.token_hex(6)
    token = f"bzr_{identity}_{secrets.token_urlsafe(32)}"
    values = {
        "id": identity,
        "name": wanted.name,
        "role": wanted.role,
        "hash": access.digest(token),
        "environments": list(dict.fromkeys(wanted.environments or ())),
        "operations": list(dict.fromkeys(wanted.operations or ())),
        "created_by": created_by,
        "seconds": seconds,
    }
    row: Mapping[str, Any] = connection.execute(SQL.insert_token, values).fetchone() or {}
    return NewToken.model_validate({**row, "token": token})


def _refuse_more_than(own: Collection[str], wanted: Collection[str] | None, kind: str) -> None:
    """Nobody gives, or takes, what is beyond their own limits."""
    if own and not (wanted and set(wanted) <= set(own)):
        raise NotAllowed(f"Your token is only for the {kind} {', '.join(own)}: so are those it may make or end.")


def _refuse_to_outlive(connection: Connection[Any], by: Identity, seconds: int | None) -> None:
    row = connection.execute(SQL.would_outlive, {"maker": by.token, "seconds": seconds}).fetchone()
    if row:
        raise NotAllowed(f"Your token ends at {_in_utc(row['expires_at']):%Y-%m-%dT%H:%M:%SZ}: so must those it makes.")


def _unknown(field: str, wanted: Collection[str] | None, known: Collection[str]) -> list[tuple[str, str]]:
    unknown = [name for name in wanted or () if name not in known]
    kind = field.removesuffix("s")
    return (
        [(field, f"there is no such {kind}: {', '.join(unknown)[:200]}; there are: {', '.join(known)}")]
        if unknown
        else []
    )


def _seconds(expires: str | None) -> int | None:
    match = DURATION.fullmatch(expires) if expires else None
    return int(match[1]) * SECONDS[match[2]] if match else None


def _others(connection: Connection[Any], token: str) -> int:
    row = connection.execute(SQL.other_unlimited_admins, {"id": token}).fetchone()
    return int(row["tokens"]) if row else 0
