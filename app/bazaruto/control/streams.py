"""Answers that last: a run's events as server-sent events, and the slots that keep them from starving all others.

A stream holds a thread as long as it lasts, so there are fewer slots than threads. It gives each event once, in order,
with the event's `seq` as its id; whoever was cut off asks again with the last id they have seen.
"""

from __future__ import annotations

import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests

from bazaruto import logs
from bazaruto.control import access, events, runs
from bazaruto.control.content import Content
from bazaruto.control.feed import Feed, Watch
from bazaruto.database import Connection, Pool
from bazaruto.problems import Problem

MEDIA = "text/event-stream"
HEARTBEAT_SECONDS = 10.0  # a stream that has nothing to say says so; clients and proxies know that it lives
ACCESS_SECONDS = 0.5  # between two looks at whether the token still works
LOOK_SECONDS = 1.0  # between two looks at the run when nothing woke the stream: a notification may be lost
ATTENTION_SECONDS = 0.25  # how soon a stream notices that its client has left
CONNECTION_SECONDS = 2.0  # waiting for a database connection before the stream looks whether it is still wanted
PART_BYTES = 64 * 1024  # given to the server at once; it holds back who gives more than the client reads
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, TooManyRequests)

log = logs.get(__name__)


class Slots:
    """How many answers may last at the same time."""

    def __init__(self, number: int) -> None:
        self._free = threading.BoundedSemaphore(number) if number else None

    def take(self) -> Callable[[], None]:
        """Take a slot; returns what gives it back, once. Raises a Problem when there is none."""
        if self._free is None or not self._free.acquire(blocking=False):
            detail = "As many streams are open as this server has room for: ask again soon, or read pages."
            raise Problem(503, detail=detail, headers={"Retry-After": "1"})
        return _Once(self._free.release)


class _Once:
    """Calls a function the first time it is called."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._calls = [call]

    def __call__(self) -> None:
        if self._calls:
            self._calls.pop()()


class Lasting:
    """An answer that holds a slot until it is closed."""

    def __init__(self, parts: Iterator[bytes], give_back: Callable[[], None]) -> None:
        self._parts = parts
        self._give_back = give_back

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        """Called by the server at the end, however it came."""
        try:
            close = getattr(self._parts, "close", None)
            if close is not None:
                close()
        finally:
            self._give_back()


@dataclasses.dataclass(frozen=True)
class Reader:
    """Who reads a stream."""

    authorization: str  # the header, checked again and again
    left: Callable[[], bool]  # whether the connection is gone


class Streams:
    """All event streams of a process."""

    def __init__(  # noqa: PLR0913 - the last two are for tests that cannot wait
        self,
        pool: Pool,
        feed: Feed,
        content: Content,
        slots: int,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        access_seconds: float = ACCESS_SECONDS,
    ) -> None:
        self.pool = pool
        self.feed = feed
        self.content = content
        self.slots = Slots(slots)
        self.heartbeat_seconds = heartbeat_seconds
        self.access_seconds = access_seconds
        self.ending = threading.Event()

    def open(self, run: str, after: int, reader: Reader) -> Lasting:
        """The events of a run after a sequence number, as they come; a Problem when there is no room."""
        if self.ending.is_set():
            raise Problem(503, detail="This server is stopping.", headers={"Retry-After": "1"})
        give_back = self.slots.take()
        return Lasting(_Stream(self, run, after, reader).parts(), give_back)

    def end(self) -> None:
        """End all streams now; their clients resume elsewhere, or here after the start."""
        self.ending.set()
        self.feed.stir_all()


@dataclasses.dataclass(frozen=True)
class _Look:
    """What the database had to say."""

    row: Mapping[str, Any]
    run: runs.RunDetails | None  # when it has changed since the last look
    events: list[tuple[int, str]]

    @property
    def over(self) -> bool:
        """Whether nothing can follow: a run's events are complete before it is terminal, and were asked for after."""
        return not self.events and runs.RunStatus(self.row["status"]).terminal


class _NotForThisReader(Exception):
    """The token works no longer, or the run was removed."""


class _Stream:
    """One client following one run."""

    def __init__(self, streams: Streams, run: str, after: int, reader: Reader) -> None:
        self._streams = streams
        self._run = run
        self._after = after
        self._reader = reader
        self._row: Mapping[str, Any] | None = None  # as it was shown last
        self._shown: runs.RunDetails | None = None
        self._allowed_until = time.monotonic() + streams.access_seconds  # it was asked before the stream was opened
        self._away = False

    def parts(self) -> Iterator[bytes]:
        """The stream, until its run has ended and everything was given, or somebody ends it."""
        yield b"retry: 1000\n\n"
        silent_since = time.monotonic()
        with self._streams.feed.watch(self._run) as watch:
            while self._wanted():
                try:
                    look = self._look()
                except _NotForThisReader:
                    return
                for part in self._told(look) if look else ():
                    yield part
                    silent_since = time.monotonic()
                if look and look.over:
                    yield _message("end", self._shown)
                    return
                if time.monotonic() - silent_since >= self._streams.heartbeat_seconds:
                    yield b": heartbeat\n\n"
                    silent_since = time.monotonic()
                if not look or not look.events:
                    self._rest(watch)

    def _wanted(self) -> bool:
        return not (self._reader.left() or self._streams.ending.is_set())

    def _rest(self, watch: Watch) -> None:
        """Until there may be something new, or it is time to look anyway."""
        until = time.monotonic() + LOOK_SECONDS
        while self._wanted() and (left := until - time.monotonic()) > 0:
            if watch.wait(min(ATTENTION_SECONDS, left)):
                return

    def _look(self) -> _Look | None:
        """What is new; None while the database is away."""
        try:
            with self._streams.pool.connection(CONNECTION_SECONDS) as connection:
                look = self._read(connection)
        except AWAY as error:
            if not self._away:
                log.warn(
                    "a stream waits for the database", run=self._run, error=f"{type(error).__name__}: {error}"[:300]
                )
            self._away = True
            return None
        self._away = False
        return look

    def _read(self, connection: Connection) -> _Look:
        self._check_access(connection)
        row = runs.find(connection, self._run)  # before its events: see _Look.over
        if row is None:
            raise _NotForThisReader
        day: datetime.date = row["day"]
        new = events.to_stream(connection, day, self._run, self._after)
        if row == self._row:
            return _Look(row, None, new)
        life = runs.changes(connection, self._run)
        operation = self._streams.content.operation(row["operation"])
        return _Look(row, runs.details_of_row(row, life, operation), new)

    def _check_access(self, connection: Connection) -> None:
        if time.monotonic() < self._allowed_until:
            return
        try:
            access.identify(connection, access.shown(self._reader.authorization))
        except access.NotIdentified as error:
            raise _NotForThisReader from error
        self._allowed_until = time.monotonic() + self._streams.access_seconds

    def _told(self, look: _Look) -> Iterator[bytes]:
        """The run if it changed, then its events; but its end only after the last of them."""
        ended = runs.RunStatus(look.row["status"]).terminal
        if look.run and not (ended and look.events):
            self._row, self._shown = look.row, look.run
            yield _message("run", look.run)
        gathered: list[bytes] = []
        size = 0
        for seq, body in look.events:
            self._after = seq
            gathered.append(f"id: {seq}\nevent: event\ndata: {body}\n\n".encode())
            size += len(gathered[-1])
            if size >= PART_BYTES:
                yield b"".join(gathered)
                gathered, size = [], 0
        if gathered:
            yield b"".join(gathered)


def asked_for(accept: str) -> bool:
    """Whether an `Accept` header asks for server-sent events; what accepts anything gets JSON."""
    ranges = [each.replace(" ", "").lower().split(";") for each in accept.split(",")]
    return any(kind == MEDIA and "q=0" not in parameters for kind, *parameters in ranges)


def _message(event: str, run: runs.RunDetails | None) -> bytes:
    body = run.model_dump_json() if run else "{}"
    return f"event: {event}\ndata: {body}\n\n".encode()
