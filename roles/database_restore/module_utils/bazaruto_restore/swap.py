"""Swap two databases' names in one transaction while nobody can write in between."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

from ansible.module_utils.bazaruto_backup import statements
from ansible.module_utils.bazaruto_backup.connection import one
from ansible.module_utils.bazaruto_backup.refusal import Refused

try:
    import psycopg
    from psycopg import sql
except ImportError:
    # connection.require_psycopg has the sentence for this
    psycopg = None

if TYPE_CHECKING:
    from ansible.module_utils.bazaruto_backup.connection import Server

# The service takes this advisory lock shared in every transaction that writes; who has it exclusively holds all writes.
WRITE_HOLD_KEY = 7_234_017_283_807_667_301
# One restore, or undo, at a time in a cluster; held in the database postgres.
RESTORE_KEY = 7_234_017_283_807_667_312
MAINTENANCE_DATABASE = "postgres"
_LONGEST_NAME = 30
_RUN = re.compile(r"\d{8}[-_]\d{6}([-_][0-9a-z]{1,12})?")
_ATTEMPTS = 5
_POLL_SECONDS = 0.01


class Names:
    """What the databases of one restore are called."""

    def __init__(self, live: str, run: str) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", live) or len(live) > _LONGEST_NAME:
            raise Refused(
                f"the database name {live!r} is not of a-z, 0-9 and _ or longer than {_LONGEST_NAME}: rename it"
            )
        if not _RUN.fullmatch(run):
            raise Refused(
                f"the run {run!r} does not read YYYYmmdd-HHMMSS or YYYYmmdd-HHMMSS-xxxxxx: correct bazaruto_run_id"
            )
        suffix = run.replace("-", "_")
        self.live = live
        self.new = f"{live}_restore_{suffix}"
        self.kept = f"{live}_before_{suffix}"


def previous(session: psycopg.Connection[Any], live: str) -> list[str]:
    """Databases that restores have replaced, the newest first."""
    return _of_runs(session, f"{live}_before_")[::-1]


def unfinished(session: psycopg.Connection[Any], live: str) -> list[str]:
    """What killed restores left; only to be asked under RESTORE_KEY, when no other restore lives."""
    return _of_runs(session, f"{live}_restore_")


def _of_runs(session: psycopg.Connection[Any], prefix: str) -> list[str]:
    names = [str(name) for (name,) in session.execute(statements.DATABASES_NAMED, [prefix])]
    return [name for name in names if _RUN.fullmatch(name.removeprefix(prefix))]


def drop(session: psycopg.Connection[Any], name: str) -> None:
    """Remove a database with whoever is in it."""
    session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def refuse_prepared_transactions(session: psycopg.Connection[Any], live: str) -> None:
    """A prepared transaction belongs to no session: nothing could end it, and it would bar the swap."""
    prepared = [str(name) for (name,) in session.execute(statements.PREPARED_TRANSACTIONS, [live])]
    if prepared:
        raise Refused(
            f"{live} has prepared transactions ({', '.join(prepared[:3])}): "
            f"COMMIT PREPARED or ROLLBACK PREPARED them first (\\c {live})"
        )


class WriteHold:
    """Writes of the service held back by a session: they come back by themselves when it ends, however it ends."""

    def __init__(self, server: Server, live: str, wait_seconds: int) -> None:
        self._live = live
        self._session = server.connect(live)
        self._session.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{wait_seconds}s")))
        try:
            self._session.execute("SELECT pg_advisory_lock(%s)", [WRITE_HOLD_KEY])
        except psycopg.errors.LockNotAvailable as error:
            self._session.close()
            raise Refused(
                f"a transaction in {live} goes on writing for more than {wait_seconds} s: "
                "end it (pg_stat_activity shows whose it is), then try again"
            ) from error

    @property
    def pid(self) -> int:
        """The server process that holds it."""
        return self._session.info.backend_pid

    def refuse_lost(self) -> None:
        """Writes made since the hold broke would be lost unseen."""
        try:
            self._session.execute("SELECT 1")
        except psycopg.OperationalError as error:
            raise Refused(f"the hold on writes of {self._live} was lost, so nothing was swapped: try again") from error

    def release(self) -> None:
        """Let writes go on."""
        self._session.close()


def rename(session: psycopg.Connection[Any], old: str, new: str) -> None:
    """Give a database another name, where there is none that would have to make room."""
    session.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))


def swap(server: Server, live: str, incoming: str, kept: str, hold: WriteHold | None) -> float:
    """live → kept and incoming → live in one transaction; returns the seconds in which nobody got in.

    Renaming waits until nobody is in the database, and from its beginning lets nobody new in: so meanwhile another
    session ends the clients, and the holder of writes last of all.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        started = time.monotonic()
        error = _attempt(server, live, incoming, kept, hold)
        if error is None:
            return time.monotonic() - started
        if not isinstance(error, psycopg.errors.ObjectInUse) or attempt == _ATTEMPTS:
            raise Refused(
                f"the swap of {live} and {incoming} failed, both are as they were: {str(error).strip()}"
            ) from error
    raise AssertionError  # the loop returns or raises


def _attempt(server: Server, live: str, incoming: str, kept: str, hold: WriteHold | None) -> psycopg.Error | None:
    with (
        server.connect(MAINTENANCE_DATABASE, autocommit=False) as renaming,
        server.connect(MAINTENANCE_DATABASE) as ending,
    ):
        renaming.execute("SET LOCAL lock_timeout = '30s'")
        renames = _Renames(renaming, [(live, kept), (incoming, live)])
        renames.start()
        try:
            kept_out = [hold.pid] if hold else []
            while not renames.waiting.wait(_POLL_SECONDS):
                # In this order: once the door is closed and nobody is left inside, nobody can write any more.
                closed = one(ending, statements.RENAME_HOLDS_LOCK, renaming.info.backend_pid, live)[0]
                others = one(ending, statements.END_SESSIONS, [live, incoming], kept_out)[0]
                if closed and not others:
                    kept_out = []
            one(ending, statements.END_WAITING_AT_THE_DOOR, live)
            renames.may_commit = True
        finally:
            renames.go_on.set()
            renames.join()
    return renames.error


class _Renames(threading.Thread):
    """The renaming transaction, which blocks until nobody is left in the databases, and waits before it commits."""

    def __init__(self, session: psycopg.Connection[Any], pairs: list[tuple[str, str]]) -> None:
        super().__init__(daemon=True)
        self._session, self._pairs = session, pairs
        self.error: psycopg.Error | None = None
        self.waiting = threading.Event()  # both are renamed, or it failed
        self.go_on = threading.Event()
        self.may_commit = False

    def run(self) -> None:
        try:
            for old, new in self._pairs:
                rename(self._session, old, new)
            self.waiting.set()
            self.go_on.wait()
            if self.may_commit:
                self._session.commit()
            else:
                self._session.rollback()
        except psycopg.Error as error:
            self.error = error
            self.waiting.set()
            if not self._session.closed:
                self._session.rollback()
