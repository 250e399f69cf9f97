"""What a person answers for when a key or the file of heads is gone: said in the audit, and kept apart by `verify`."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator
from typing import Any

from bazaruto.control import keys
from bazaruto.control.audit import heads
from bazaruto.control.audit.chain import text
from bazaruto.control.audit.changes import Actor, Audit
from bazaruto.control.keys import KeyName, KeyUnusable
from bazaruto.database import Connection, statements

SQL = statements(__package__, "repairs.sql")
LONGEST_REASON = 1000


def accept_rotation(audit: Audit, actor: Actor, reason: str) -> int:
    """Begin a new file of heads; the entry that says so.

    Entries of this node that have no line any more cannot be held against anything; those that the file had and the
    database has lost are named. Raises AuditUnwritable.
    """
    with audit.change(actor, "audit.rotation", target=audit.heads.path.name) as change:
        last, _ = audit.hold(change.connection)
        change.parameters = {"reason": text(reason, LONGEST_REASON), "lost": _lost(audit, change.connection)}
        change.begins_file = True
        audit.heads.begin_anew(last, datetime.datetime.now(datetime.UTC))
    return last + 1


def _lost(audit: Audit, connection: Connection) -> list[int] | None:
    """From which to which entry the file knows what the database does not, as after one was restored."""
    committed: dict[int, bytes] = {}
    for path in heads.files(audit.heads.path.parent):
        for line in heads.lines(path, path.stat().st_size):
            if line and line.state == "head":
                committed[line.seq] = line.mac
    for row in connection.execute(SQL.macs):
        if committed.get(row["seq"]) == bytes(row["mac"]):
            del committed[row["seq"]]
    return [min(committed), max(committed)] if committed else None


def replace_key(audit: Audit, actor: Actor, name: KeyName, reason: str) -> None:
    """Make a new key; the one before is kept beside it, where there is one. Raises AuditUnwritable."""
    with audit.change(actor, "key.replace", target=name) as change:
        last, _ = audit.hold(change.connection)
        row = change.connection.execute(keys.SQL.current_key, {"name": name}).fetchone()
        before = row["fingerprint"] if row else None
        with _exchanged(audit.keys, name):
            fingerprint = audit.keys.current(name).fingerprint
            change.connection.execute(keys.SQL.insert_key, {"name": name, "fingerprint": fingerprint})
            change.parameters = {"reason": text(reason, LONGEST_REASON), "before": before, "after": fingerprint}
            if name is KeyName.AUDIT:
                told = _epochs(change.connection, before)
                change.parameters["keys"] = [*told, {"fingerprint": fingerprint, "first": last + 1}]
            audit.enter(actor, change)


def _epochs(connection: Connection, before: str | None) -> list[dict[str, Any]]:
    """Which key was in use from which entry on, as the replacement before this one tells it."""
    row = connection.execute(SQL.last_replacement).fetchone()
    told: list[dict[str, Any]] = json.loads(row["parameters"])["keys"] if row else []
    return told or [{"fingerprint": before, "first": 1}]


@contextlib.contextmanager
def _exchanged(of: keys.Keys, name: KeyName) -> Iterator[None]:
    """A new key in the place of the old one; the old one back when what follows fails."""
    path, kept = of.path(name), None
    if path.exists():
        kept = path.with_name(f"{name}.{_fingerprint(of, name)}")
        path.rename(kept)
    try:
        keys.write_key(path)
        yield
    except BaseException:  # the new one is kept too: whether it is in use may be known to the database only
        if path.exists():
            path.rename(path.with_name(f"{name}.{_fingerprint(of, name)}"))
        if kept:
            kept.rename(path)
        raise


def _fingerprint(of: keys.Keys, name: KeyName) -> str:
    """What the file before is kept as; what is no key, by when it was put aside."""
    try:
        return of.current(name).fingerprint
    except KeyUnusable:
        return f"no-key-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}"
