"""One LISTEN for all streams of a process: wakes those who watch a run when something of it was stored.

It is only a wake-up. Who waits looks by itself from time to time, because a notification can be lost with its server.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Iterator

import psycopg

from bazaruto import logs

CHANNEL = "run_events"  # its notifications carry the run's id
RECONNECT_SECONDS = 1.0

log = logs.get(__name__)


class Watch:
    """One stream's interest in one run."""

    def __init__(self) -> None:
        self._stirred = threading.Event()

    def stir(self) -> None:
        self._stirred.set()

    def wait(self, seconds: float) -> bool:
        """Wait until there may be something new; False when the time is over."""
        stirred = self._stirred.wait(seconds)
        self._stirred.clear()  # before the waiter looks: what comes meanwhile is another reason to look
        return stirred


class Feed:
    """Who watches which run, and the thread that listens as long as somebody does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._changed = threading.Condition()
        self._watches: dict[str, set[Watch]] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, run: str) -> Iterator[Watch]:
        """Be woken when something of this run was stored."""
        watch = Watch()
        with self._changed:
            self._watches.setdefault(run, set()).add(watch)
            self._ensure_thread()
            self._changed.notify_all()
        try:
            yield watch
        finally:
            with self._changed:
                self._watches[run].discard(watch)
                if not self._watches[run]:
                    del self._watches[run]

    def stir_all(self) -> None:
        """Wake everybody, whatever they watch."""
        with self._changed:
            for watches in self._watches.values():
                for watch in watches:
                    watch.stir()

    def _stir(self, run: str) -> None:
        with self._changed:
            for watch in self._watches.get(run, ()):
                watch.stir()

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._watches))
            try:
                self._listen()
            except psycopg.Error as error:
                log.warn("listening for events again", error=f"{type(error).__name__}: {error}"[:300])
            time.sleep(RECONNECT_SECONDS)

    def _listen(self) -> None:
        """Pass notifications on until the connection is lost, which raises psycopg.Error."""
        with psycopg.connect(
            self._url,
            autocommit=True,
            application_name="bazaruto-feed",
            connect_timeout=5,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
        ) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            self.stir_all()  # what was announced until now was not heard
            arrival = select.poll()
            arrival.register(connection.fileno(), select.POLLIN)
            while arrival.poll():
                connection.pgconn.consume_input()
                while (notification := connection.pgconn.notifies()) is not None:
                    self._stir(notification.extra.decode())
