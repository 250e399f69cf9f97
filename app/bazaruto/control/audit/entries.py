"""The audit's entries as people and programs read them: pages, and an export that never holds more than a page."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from psycopg import Connection
from psycopg_pool import ConnectionPool
from pydantic import AfterValidator, BaseModel, Field

from bazaruto.control.access import Identity
from bazaruto.database import Connection as PooledConnection
from bazaruto.database import statements

SQL = statements(__package__, "entries.sql")
AT_ONCE = 1000  # entries read at once for an export
HIGHEST = 2**63 - 1


def _in_utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)


Moment = Annotated[datetime.datetime, AfterValidator(_in_utc)]


class AuditEntry(BaseModel):
    """Who did what, from where, with which parameters, and what came of it."""

    seq: int = Field(description="From 1, without gaps")
    at: Moment
    node: str = Field(description="The control node that wrote it")
    actor: str
    token: str | None = Field(description="The public half of the token")
    address: str | None
    request_id: str | None
    action: str
    target: str | None = Field(description="A run, a token's name, a key")
    environment: str | None
    operation: str | None
    parameters: Any = Field(description='As given; secrets as "***"')
    outcome: str = Field(description="accepted, refused, or how a run ended")
    detail: str | None
    key: str = Field(description="Fingerprint of the key the mac was made with")
    previous: str = Field(description="The mac of the entry before, in hexadecimal")
    mac: str = Field(description="HMAC-SHA256 of the previous mac and all of the above")


class AuditFilter(BaseModel):
    """Which entries a list is to hold."""

    actor: str | None = Field(default=None, max_length=200)
    action: str | None = Field(default=None, max_length=63)
    run: str | None = Field(default=None, max_length=63, description="of this run")
    environment: str | None = Field(default=None, max_length=63)


def page(connection: Connection[Any], wanted: AuditFilter, by: Identity, before: int, limit: int) -> list[AuditEntry]:
    """Entries within somebody's limits, newest first. Whoever is limited sees only what is of his environments."""
    values = {**wanted.model_dump(), **_limits(by), "before": before, "limit": limit}
    # Never prepared: a plan for any filter would read all entries where an index finds the few of this one.
    return [of_row(row) for row in connection.execute(SQL.page_of_entries, values, prepare=False)]


def one(connection: Connection[Any], seq: int) -> AuditEntry:
    """An entry that there is."""
    return of_row(connection.execute(SQL.one_entry, {"seq": seq}).fetchone() or {})


def export(pool: ConnectionPool[PooledConnection], by: Identity, since: int) -> Iterator[bytes]:
    """Entries from one on, oldest first, each a line of JSON; no connection is held while the client reads."""
    after = since - 1
    while True:
        with pool.connection() as connection:
            values = {**_limits(by), "after": after, "limit": AT_ONCE}
            found = [of_row(row) for row in connection.execute(SQL.entries_to_export, values)]
        if not found:
            return
        yield "".join(f"{entry.model_dump_json()}\n" for entry in found).encode()
        after = found[-1].seq


def of_row(row: Mapping[str, Any]) -> AuditEntry:
    said = row["parameters"]
    values = {"parameters": None if said is None else json.loads(said), "previous": bytes(row["previous"]).hex()}
    return AuditEntry.model_validate({**row, **values, "mac": bytes(row["mac"]).hex()})


def _limits(by: Identity) -> dict[str, list[str]]:
    return {"environments": list(by.environments), "operations": list(by.operations)}
