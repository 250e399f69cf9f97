"""PostgreSQL for both faces: the pool, named statements, and writes that can be held."""

from __future__ import annotations

import importlib.resources
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool

from bazaruto.config import DatabaseSettings
from bazaruto.migrations import MigrationFailed, migrate, pending, pending_on

__all__ = [
    "WRITE_HOLD_KEY",
    "Connection",
    "MigrationFailed",
    "Pool",
    "Statements",
    "WritesHeld",
    "migrate",
    "open_pool",
    "pending",
    "pending_on",
    "probe",
    "statements",
    "write",
    "writes_are_held",
]

WRITE_HOLD_KEY = 7_234_017_283_807_667_301  # advisory lock: shared by writers, exclusive for who holds them
UNTRUSTED_AFTER_SECONDS = 30.0  # a connection idle for longer is asked before it is given away
ANSWER_GRACE_SECONDS = 2.0  # beyond statement_timeout, until a silent server is given up
RECONNECT_SECONDS = 5.0  # how long one attempt to reconnect goes on; the next request starts another

RV = TypeVar("RV")


class WritesHeld(Exception):
    """Writes are held for the moment: try again in some seconds."""


class Connection(psycopg.Connection[DictRow]):
    """A pooled connection that knows when it was used last, and gives up on a server that does not answer."""

    used_at = 0.0
    answer_timeout: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for the server, but not for ever: a frozen one cannot enforce statement_timeout."""
        if timeout is not None or self.answer_timeout is None:
            return super().wait(gen, interval=interval, timeout=timeout)
        try:
            return super().wait(gen, interval=interval, timeout=self.answer_timeout)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise psycopg.OperationalError("the server did not answer in time") from None


class Pool(ConnectionPool[Connection]):
    """psycopg's pool; connections are tested when there is a reason to doubt them, not for each request."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._given = 0
        self._counting = threading.Lock()
        super().__init__(*arguments, **options)

    @property
    def in_use(self) -> int:
        """Connections given away at the moment; psycopg's own figures count those being opened too."""
        return self._given

    def getconn(self, timeout: float | None = None) -> Connection:
        """Give a connection away that is alive.

        psycopg's own `check` waits a second, then two, for each dead connection it meets; after a restart of
        the server all are dead, so here they are thrown out at once until a living or a new one comes.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            connection = super().getconn(deadline - time.monotonic())
            if _is_alive(connection):
                break
            connection.close()
            super().putconn(connection)
        with self._counting:
            self._given += 1
        return connection

    def putconn(self, conn: Connection) -> None:
        """Take a connection back and remember when."""
        conn.used_at = time.monotonic()
        with self._counting:
            self._given -= 1
        super().putconn(conn)


def open_pool(url: str, settings: DatabaseSettings, application_name: str) -> Pool:
    """A pool that opens in the background: the process starts, and lives on, without the database."""

    limit = int(settings.statement_timeout * 1000)  # a frozen process holds no lock for longer either

    def configure(connection: Connection) -> None:
        connection.answer_timeout = settings.statement_timeout + ANSWER_GRACE_SECONDS
        connection.used_at = time.monotonic()

    return Pool(
        make_conninfo(
            url,
            application_name=application_name,
            options=f"-c statement_timeout={limit} -c idle_in_transaction_session_timeout={limit} -c timezone=UTC",
            connect_timeout=str(max(2, round(settings.acquire_timeout))),
            keepalives="1",
            keepalives_idle="30",
            keepalives_interval="10",
            keepalives_count="3",
            tcp_user_timeout="30000",
        ),
        connection_class=Connection,
        kwargs={"row_factory": dict_row},
        min_size=settings.min_connections,
        max_size=settings.max_connections,
        max_lifetime=settings.max_lifetime,
        max_idle=settings.idle_timeout,
        timeout=settings.acquire_timeout,
        reconnect_timeout=RECONNECT_SECONDS,
        configure=configure,
        name=application_name,
        open=True,
    )


def _is_alive(connection: Connection) -> bool:
    """Whether it can be given away.

    A server that stopped or restarted has closed the socket, which one poll(2) shows without a round trip.
    """
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLRDHUP)
    if not poll.poll(0) and time.monotonic() - connection.used_at <= UNTRUSTED_AFTER_SECONDS:
        return True
    try:
        ConnectionPool.check_connection(connection)
    except psycopg.Error:
        return False
    return True


@contextmanager
def write(pool: ConnectionPool[Any]) -> Iterator[Connection]:
    """One transaction that changes data; raises WritesHeld while someone holds writes back."""
    with pool.connection() as connection, connection.transaction():
        if writes_are_held(connection):
            raise WritesHeld
        yield connection


def writes_are_held(connection: psycopg.Connection[DictRow]) -> bool:
    """Whether somebody holds writes; when nobody does, nobody can until the transaction ends."""
    row = connection.execute("SELECT pg_try_advisory_xact_lock_shared(%s) AS allowed", [WRITE_HOLD_KEY]).fetchone()
    return row is None or not row["allowed"]


def probe(url: str, application_name: str) -> Callable[[], None]:
    """A health check with a connection of its own, so that a busy pool is not mistaken for a dead database."""
    lock = threading.Lock()
    kept: list[psycopg.Connection[Any]] = []

    def ask() -> None:
        with lock:
            if not kept or kept[0].closed:
                kept[:] = [psycopg.connect(url, autocommit=True, connect_timeout=2, application_name=application_name)]
            try:
                kept[0].execute("SELECT 1")
            except psycopg.Error:
                kept.pop().close()
                kept[:] = [psycopg.connect(url, autocommit=True, connect_timeout=2, application_name=application_name)]
                kept[0].execute("SELECT 1")

    return ask


class Statements:
    """The named statements of one `.sql` file, as attributes."""

    def __init__(self, named: dict[str, str], source: str) -> None:
        self.__dict__.update(named)
        self._source = source

    def __getattr__(self, name: str) -> LiteralString:
        raise AttributeError(f"{self._source} has no statement named {name!r}")


_NAME = re.compile(r"^-- name: *([a-z]\w*)[^\n]*$", re.MULTILINE)


def statements(package: str, file_name: str) -> Statements:
    """Read `-- name: …` statements from the file beside the package's modules."""
    text = importlib.resources.files(package).joinpath(file_name).read_text(encoding="utf-8")
    matches = list(_NAME.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    named: dict[str, str] = {}
    for match, end in zip(matches, ends, strict=True):
        if match[1] in named:
            raise ValueError(f"{package}/{file_name} names {match[1]!r} twice")
        named[match[1]] = text[match.end() : end].strip().rstrip(";")
    return Statements(named, f"{package}/{file_name}")
