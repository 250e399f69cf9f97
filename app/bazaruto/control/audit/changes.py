"""The audit: whoever changes something does it through here, so that no change is without an entry, and none is
entered that was not made. Reads cost nothing.

An entry is written in the transaction of its change. Its head goes to a file of this control node before and after
the commit; when that cannot be written, the change is not made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import psycopg
from psycopg_pool import ConnectionPool

from bazaruto import logs
from bazaruto.control.audit import chain
from bazaruto.control.audit.heads import AuditUnwritable, Heads, Line
from bazaruto.control.keys import Key, KeyName, Keys, KeyUnusable
from bazaruto.control.node import node_name
from bazaruto.database import Connection, statements

__all__ = ["Actor", "Audit", "AuditUnwritable", "Change"]

SQL = statements(__package__, "changes.sql")
ACCEPTED, REFUSED = "accepted", "refused"
log = logs.get(__name__)


@dataclasses.dataclass(frozen=True)
class Actor:
    """Who does something, and from where."""

    name: str
    token: str | None = None  # the public half of the token
    address: str | None = None
    request_id: str | None = None


class About(TypedDict, total=False):
    """What a change is about, as far as it is known."""

    target: str | None  # a run, a token's name, a key
    environment: str | None
    operation: str | None
    parameters: Mapping[str, Any] | None  # secrets are out already


@dataclasses.dataclass
class Change:
    """A change under way; what is known of it only later is filled in before it ends."""

    connection: Connection
    action: str
    target: str | None = None
    environment: str | None = None
    operation: str | None = None
    parameters: Mapping[str, Any] | None = None  # secrets are out already
    outcome: str = ACCEPTED
    detail: str | None = None
    needless: bool = False  # nothing was changed after all: nothing is entered
    begins_file: bool = False  # the file of heads begins anew with this entry


class Audit:
    """The audit of one control node. May be shared by threads."""

    def __init__(self, home: Path, pool: ConnectionPool[Connection]) -> None:
        self.keys = Keys(home)
        self.node = node_name(home)
        self.heads = Heads(home / "control" / "audit")
        self._pool = pool

    @contextlib.contextmanager
    def change(self, actor: Actor, action: str, **about: Unpack[About]) -> Iterator[Change]:
        """One transaction and its entry, both or neither. What is raised inside undoes it, and is entered by nobody.

        Raises AuditUnwritable when the audit cannot be written; then nothing was changed.
        """
        with self._pool.connection() as connection:
            change = Change(connection, action, **about)
            yield change
            if not change.needless:
                self.enter(actor, change)

    def refused(self, actor: Actor, action: str, why: str, **about: Unpack[About]) -> None:
        """Enter what somebody was not allowed, or did wrong. An audit that cannot be written leaves it at the log:
        nothing was changed, and the refusal stands.
        """
        try:
            with self.change(actor, action, **about) as change:
                change.outcome, change.detail = REFUSED, why
        except AuditUnwritable as error:
            log.warn("a refusal was not entered into the audit", action=action, actor=actor.name, error=str(error))

    def hold(self, connection: Connection) -> tuple[int, bytes]:
        """Keep everybody else from adding an entry until the transaction ends; where the chain ends now."""
        row = connection.execute(SQL.lock_head).fetchone() or {}
        return row["seq"], bytes(row["mac"])

    def enter(self, actor: Actor, change: Change) -> None:
        """Write the entry and commit, which is the end of the change. Raises AuditUnwritable."""
        try:
            self._write(actor, change)
        except psycopg.errors.IdleInTransactionSessionTimeout as error:  # this process was frozen, and others went on
            raise psycopg.OperationalError(f"the transaction stood still for too long: {error}") from error

    def _write(self, actor: Actor, change: Change) -> None:
        connection = change.connection
        last, previous = self.hold(connection)
        key, own = self._own(connection)
        now = datetime.datetime.now(datetime.UTC)
        intents = self.heads.catch_up(None if change.begins_file else own)
        concluded = [self._concluded(connection, intent, own) for intent in intents]
        entry = chain.Entry(
            seq=last + 1,
            at=now,
            node=self.node,
            actor=chain.text(actor.name) or "",
            token=chain.text(actor.token),
            address=chain.text(actor.address),
            request_id=chain.text(actor.request_id),
            action=change.action,
            target=chain.text(change.target),
            environment=chain.text(change.environment),
            operation=chain.text(change.operation),
            parameters=chain.parameters(change.parameters),
            outcome=change.outcome,
            detail=chain.text(change.detail, chain.LONGEST_DETAIL),
            key=key.fingerprint,
            previous=previous,
        )
        mac = chain.mac(key.material, entry)
        self.heads.append([*concluded, Line(entry.seq, mac, "intent")], now)
        connection.execute(SQL.insert_entry, {**dataclasses.asdict(entry), "mac": mac})
        connection.commit()
        self.heads.conclude(Line(entry.seq, mac, "head"), now)
        change.needless = True  # nothing is left to be entered

    def check(self, connection: Connection) -> int:
        """Whether a change could be entered now; how many entries there are. Raises AuditUnwritable."""
        _, own = self._own(connection)
        self.heads.catch_up(own)
        row = connection.execute(SQL.end_of_chain).fetchone() or {}
        entries: int = row["seq"]
        return entries

    def _own(self, connection: Connection) -> tuple[Key, Line | None]:
        """The key, when it can be used, and what this node entered last."""
        row = connection.execute(SQL.at_head, {"node": self.node}).fetchone() or {}
        try:
            key = self.keys.matching(KeyName.AUDIT, row["key"])
        except KeyUnusable as error:
            raise AuditUnwritable(f"Nothing is changed without an audit. {error}") from error
        return key, None if row["own_seq"] is None else Line(row["own_seq"], bytes(row["own_mac"]), "head")

    def _concluded(self, connection: Connection, intent: Line, own: Line | None) -> Line:
        """What became of an intent: it is an entry, or its transaction was never committed."""
        if own and (own.seq, own.mac) == (intent.seq, intent.mac):
            return dataclasses.replace(intent, state="head")
        row = connection.execute(SQL.mac_of_entry, {"seq": intent.seq}).fetchone()
        committed = row is not None and bytes(row["mac"]) == intent.mac
        return dataclasses.replace(intent, state="head" if committed else "void")
