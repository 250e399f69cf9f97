"""A run's events in PostgreSQL: the index of its journal, filled in batches and read in pages."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from psycopg import Connection

from bazaruto.database import statements

SQL = statements(__package__, "events.sql")
LOOK_EVENTS = 256  # that a stream takes at once; of the longest there are, 16 MB


@dataclasses.dataclass(frozen=True)
class EventPage:
    """Some events as JSON texts, just as the supervisor wrote them."""

    bodies: list[str]
    next: int  # the sequence number to ask after


def resume(connection: Connection[Any], day: datetime.date, run: str) -> int:
    """Make room for a run's events, and say up to which one they are there."""
    connection.execute(SQL.make_partition, {"day": day})
    return stored(connection, day, run)


def stored(connection: Connection[Any], day: datetime.date, run: str) -> int:
    """Up to which sequence number a run's events are there."""
    row = connection.execute(SQL.last_seq, {"day": day, "run": run}).fetchone()
    return int(row["seq"]) if row else 0


def store(connection: Connection[Any], day: datetime.date, run: str, batch: list[tuple[int, str]]) -> None:
    """Copy (seq, line) pairs that PostgreSQL does not have yet."""
    with connection.cursor() as cursor, cursor.copy(SQL.copy_events) as copy:
        for seq, line in batch:
            copy.write_row((day, run, seq, line))
    announce(connection, run)


def announce(connection: Connection[Any], run: str) -> None:
    """Wake whoever watches this run, when the caller's transaction is committed."""
    connection.execute(SQL.notify, {"run": run})


def page(connection: Connection[Any], day: datetime.date, run: str, after: int, limit: int) -> EventPage:
    """The events of a run after a sequence number."""
    values = {"day": day, "run": run, "after": after, "limit": limit}
    rows = connection.execute(SQL.page_of_events, values).fetchall()
    return EventPage(bodies=[row["body"] for row in rows], next=rows[-1]["seq"] if rows else after)


def to_stream(connection: Connection[Any], day: datetime.date, run: str, after: int) -> list[tuple[int, str]]:
    """The next (seq, JSON text) pairs: not more than a process can hold for each of its streams."""
    values = {"day": day, "run": run, "after": after, "limit": LOOK_EVENTS}
    return [(row["seq"], row["body"]) for row in connection.execute(SQL.page_of_events, values)]
