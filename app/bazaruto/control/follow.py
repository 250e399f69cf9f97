"""Follows one run's directory into PostgreSQL: its events in batches, then its outcome, exactly once.

The same for a run just started and for one found after a restart: it goes on where PostgreSQL's events end. Each
step is short and may fail with the database; then it is simply done again.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time

from psycopg_pool import ConnectionPool

from bazaruto.control import events, journal, rundir, runs
from bazaruto.database import Connection

STEPS_BETWEEN_LOOKS = 10  # the supervisor's lock is looked at this much more rarely than its events

SECONDS_TO_LEAVE = 5.0  # how long a supervisor may take to end after its outcome, until that is taken as it is


class Follower:
    """One run being followed by this process; the lock keeps other workers of the node from doing the same."""

    def __init__(self, run: str, day: datetime.date, directory: rundir.RunDirectory, lock: int) -> None:
        self.run = run
        self._day = day
        self._directory = directory
        self._lock = lock
        self._reader: journal.JournalReader | None = None
        self._steps = 0
        self._outcome_seen_at: float | None = None
        self._last_seq = 0

    def step(self, pool: ConnectionPool[Connection]) -> bool:
        """Bring PostgreSQL up to date; True when the run has ended and that is recorded."""
        outcome = self._ended()  # before the events are read: a journal is complete when there is an outcome
        while self._copy(pool):
            pass
        return outcome is not None and self._record(pool, outcome)

    def _record(self, pool: ConnectionPool[Connection], outcome: rundir.Outcome) -> bool:
        """Record the end, once every event that is in the journal is in PostgreSQL."""
        if self._directory.outcome() is None:
            outcome = dataclasses.replace(outcome, events=self._last_seq)
            self._directory.remove_secrets()
        with pool.connection() as connection:
            if events.stored(connection, self._day, self.run) != self._last_seq:
                self._reader = None
                return False
            runs.end(connection, self.run, outcome)
        return True

    def give_up(self, pool: ConnectionPool[Connection], reason: str) -> bool:
        """End a run whose record cannot be read; not while its supervisor lives."""
        if rundir.is_locked(self._directory.supervisor_lock):
            return False
        self._directory.remove_secrets()
        outcome = dataclasses.replace(
            interrupted(self._directory), error=f"Its record cannot be read: {reason}", events=self._last_seq
        )
        with pool.connection() as connection:
            runs.end(connection, self.run, outcome)
        return True

    def close(self) -> None:
        """Stop following; somebody else may."""
        os.close(self._lock)

    def _copy(self, pool: ConnectionPool[Connection]) -> bool:
        """Copy one batch; True when there may be more.

        Where PostgreSQL stands is asked before each: a server that crashed may have forgotten what it had.
        """
        reader = self._reader or self._resume(pool)
        batch = reader.read()
        if not batch:
            return False
        self._reader = None  # until this batch is known to be stored
        with pool.connection() as connection:
            if events.stored(connection, self._day, self.run) != self._last_seq:
                return True
            events.store(connection, self._day, self.run, batch)
        self._reader = reader
        self._last_seq = batch[-1][0]
        return True

    def _resume(self, pool: ConnectionPool[Connection]) -> journal.JournalReader:
        with pool.connection() as connection:
            self._last_seq = events.resume(connection, self._day, self.run)
        self._reader = journal.JournalReader(self._directory.events_file, self._last_seq)
        return self._reader

    def _ended(self) -> rundir.Outcome | None:
        """The outcome, once nobody of the run lives any more."""
        outcome = self._directory.outcome()
        if outcome and self._outcome_seen_at is None:
            self._outcome_seen_at = time.monotonic()
        self._steps += 1
        if outcome is None and self._steps % STEPS_BETWEEN_LOOKS != 1:
            return None
        if not rundir.is_locked(self._directory.supervisor_lock):
            return self._directory.outcome() or interrupted(self._directory)
        waited = time.monotonic() - (self._outcome_seen_at or time.monotonic())
        return outcome if waited > SECONDS_TO_LEAVE else None


def interrupted(directory: rundir.RunDirectory) -> rundir.Outcome:
    """What is known of a run whose supervisor is dead and left no outcome."""
    now = journal.utc()
    began = directory.events_file.exists()
    known = "what it had done until then is in its events" if began else "no event of it was recorded"
    return rundir.Outcome(
        status=runs.RunStatus.INTERRUPTED,
        started_at=now,
        finished_at=now,
        events=0,
        error=f"Its supervisor died without an outcome; {known}. Check the hosts before it is launched again.",
    )


def adopt(directory: rundir.RunDirectory, run: str, day: datetime.date) -> Follower | None:
    """Follow a run from its directory; None while another worker of this node does."""
    directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # it was lost: the run ends as interrupted
    lock = rundir.try_lock(directory.follower_lock)
    return None if lock is None else Follower(run, day, directory, lock)
