"""Gives the disk back what removed events took: partitions are dropped, written anew, or at least vacuumed.

Any of it may be refused by somebody who is reading; then it is tried again a little later, and left to the next time.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import LiteralString, TypeVar

import psycopg
from psycopg import Connection, sql
from psycopg.rows import DictRow

from bazaruto.control.retention import plan
from bazaruto.control.retention.evidence import SQL
from bazaruto.control.retention.plan import Partition

LOCK_MILLISECONDS = 1000  # whoever reads waits behind a lock that is waited for: not longer than this
ATTEMPTS = 5
PAUSE_SECONDS = 0.5  # between them, so that others get their turn
Answer = TypeVar("Answer")
TABLES = ("runs", "run_changes", "idempotency_keys")


@dataclasses.dataclass
class Reclaimed:
    """What was given back, by name of partition."""

    dropped: list[str] = dataclasses.field(default_factory=list)
    rewritten: list[str] = dataclasses.field(default_factory=list)
    busy: list[str] = dataclasses.field(default_factory=list)  # in use all the time: left to the next time


def reclaim(connection: Connection[DictRow], drop: Sequence[Partition], *, vacuum: bool) -> Reclaimed:
    """Drop these partitions, write anew what has become worth it, and vacuum the rest. Needs autocommit."""
    done = Reclaimed()
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(LOCK_MILLISECONDS)))
    for partition in drop:
        if (dropped := _patiently(functools.partial(_drop, connection, partition))) is None:
            done.busy.append(partition.name)
        elif dropped:
            done.dropped.append(partition.name)
        else:  # a run has come to need it: only what is nobody's goes
            connection.execute(SQL.delete_orphans, {"day": partition.day})
    touched = {row["day"]: row["removed"] for row in connection.execute(SQL.to_rewrite)}
    left = [each for each in plan.partitions(connection) if each.day in touched]
    rewrite = plan.to_rewrite(connection, left, {})
    for partition in rewrite:
        if _vacuum(connection, partition.name, "VACUUM (FULL, ANALYZE) {}"):
            connection.execute(SQL.rewritten, {"day": partition.day, "removed": touched[partition.day]})
            done.rewritten.append(partition.name)
        else:
            done.busy.append(partition.name)
    if vacuum:
        for table in [*TABLES, *(each.name for each in left if each not in rewrite)]:
            if not _vacuum(connection, table, "VACUUM (ANALYZE) {}"):
                done.busy.append(table)
    connection.execute(SQL.forget_rewritten)
    return done


def _drop(connection: Connection[DictRow], partition: Partition) -> bool:
    """Drop a partition; False when a run has come to need it."""
    with connection.transaction():
        connection.execute(SQL.lock_events)  # before the partition, as readers do
        row = connection.execute(SQL.day_is_needed, {"day": partition.day}).fetchone()
        if row is None or row["needed"]:
            return False
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(partition.name)))
    return True


def _vacuum(connection: Connection[DictRow], table: str, statement: LiteralString) -> bool:
    """False when the table was in use all the time."""
    words = sql.SQL(statement).format(sql.Identifier(table))
    return _patiently(lambda: connection.execute(words)) is not None


def _patiently(what: Callable[[], Answer]) -> Answer | None:
    """The answer, tried for again while somebody else holds a lock; None when that was so all the time."""
    for attempt in range(ATTEMPTS):
        try:
            return what()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE_SECONDS)
    return None
