"""Follows one run's directory into PostgreSQL: its events in batches, then its outcome, exactly once.

The same for a run just started and for one found after a restart: it goes on where PostgreSQL's events end. Each
step is short and may fail with the database; then it is simply done again.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
from psycopg_pool import ConnectionPool

from bazaruto import logs, processes
from bazaruto.control import events, runs
from bazaruto.control.engine import ending, journal, remote, rundir, sweep
from bazaruto.control.engine.play import end_masters
from bazaruto.database import Connection

log = logs.get(__name__)
STEPS_BETWEEN_LOOKS = 10  # the supervisor's lock is looked at this much more rarely than its events
STUCK_SECONDS = (
    15.0  # beyond limit and grace, until guard and supervisor count as stuck; the guard's patience is shorter
)
FROZEN_SECONDS = 5.0  # an outcome that lies unrecorded for so long: whoever follows that run is frozen
SECONDS_TO_LEAVE = 5.0  # how long a supervisor may take to end after its outcome, until that is taken as it is


class Follower:
    """One run being followed by this process; the lock keeps other workers of the node from doing the same.

    It saves them the work. What is recorded once is PostgreSQL's to decide: one that follows without the lock, beside
    a frozen one, does no harm.
    """

    def __init__(self, run: str, day: datetime.date, directory: rundir.RunDirectory, lock: int | None) -> None:
        self.run = run
        self._day = day
        self._directory = directory
        self._lock = lock
        self._reader: journal.JournalReader | None = None
        self._steps = 0
        self._outcome_seen_at: float | None = None
        self._cancelled_at: float | None = None
        self._undertaker: ThreadPoolExecutor | None = None
        self._burial: Future[rundir.Outcome] | None = None
        self._bury_at = 0.0
        self.behind = False  # whether there is more to copy at once
        self._past_limit = False
        self._last_seq = 0

    def step(self, pool: ConnectionPool[Connection]) -> bool:
        """Bring PostgreSQL up to date; True when the run has ended and that is recorded."""
        outcome = self._ended()  # before the events are read: a journal is complete when there is an outcome
        self.behind = self._copy(pool)  # one batch, so that a run that prints much does not hold up the others
        return outcome is not None and not self.behind and self._record(pool, outcome)

    def _record(self, pool: ConnectionPool[Connection], outcome: rundir.Outcome) -> bool:
        """Record the end, once every event that is in the journal is in PostgreSQL."""
        with pool.connection() as connection:
            if events.stored(connection, self._day, self.run) != self._last_seq:
                self._reader = None
                return False
            known = max(outcome.events, self._last_seq)  # more than its directory tells, where that was lost
            runs.end(connection, self.run, dataclasses.replace(outcome, events=known))
        return True

    def give_up(self, pool: ConnectionPool[Connection], reason: str) -> bool:
        """End a run whose record cannot be read; not while anybody of it lives."""
        if rundir.is_locked(self._directory.supervisor_lock):
            return False
        ending.end_all(lambda: sweep.remains(self._directory))
        end_masters(self.run)
        self._directory.remove_secrets()
        now = journal.utc()
        error = f"Its record cannot be read: {reason}. Check the hosts before it is launched again."
        with pool.connection() as connection:
            known = events.stored(connection, self._day, self.run)  # perhaps by the follower before this one
            outcome = rundir.Outcome("interrupted", now, now, events=known, error=error)
            runs.end(connection, self.run, outcome)
        return True

    def cancel(self, wish: rundir.Cancellation) -> None:
        """Have the run ended: written down first, so that whoever ends it knows why, then signalled."""
        if cancel(self._directory, wish):
            self._cancelled_at = self._cancelled_at or time.monotonic()

    def close(self) -> None:
        """Stop following; somebody else may."""
        if self._undertaker:
            self._undertaker.shutdown()
        if self._lock is not None:
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
        try:
            with pool.connection() as connection:
                if events.stored(connection, self._day, self.run) != self._last_seq:
                    return True
                events.store(connection, self._day, self.run, batch)
        except psycopg.errors.UniqueViolation:
            return True  # somebody else, who is frozen no more, was faster
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
            return self._directory.outcome() or self._buried()
        if outcome is None:
            self._end_if_stuck()
        waited = time.monotonic() - (self._outcome_seen_at or time.monotonic())
        if waited <= SECONDS_TO_LEAVE:
            return None
        self._end_guards()  # with an outcome they have nothing left to do: they are frozen
        return outcome

    def _buried(self) -> rundir.Outcome | None:
        """The outcome written in the place of guard and supervisor; None while their remains are being ended."""
        if self._burial is None and time.monotonic() >= self._bury_at:
            self._undertaker = self._undertaker or ThreadPoolExecutor(1, "sweep")
            self._burial = self._undertaker.submit(sweep.bury, self._directory, self._past_limit)
        if self._burial is None or not self._burial.done():
            return None
        burial, self._burial = self._burial, None
        try:
            return burial.result()
        except FileNotFoundError:
            raise  # the directory is gone: there is nowhere to write to
        except OSError as error:
            log.warn("the outcome of a dead run cannot be written; trying again", run=self.run, error=str(error))
            self._bury_at = time.monotonic() + rundir.SECONDS_BETWEEN_WRITES
            return None

    def _end_if_stuck(self) -> None:
        """Kill guard and supervisor that let limit and grace pass; the guard does that for a stuck supervisor."""
        if self._overdue():
            self._past_limit = self._directory.private.exists()  # gone: only the outcome's writing is overdue
            self._end_guards()

    def _end_guards(self) -> None:
        guards = sweep.recorded(self._directory)
        for identity in guards:
            processes.send(identity, signal.SIGKILL)
        processes.wait_all(guards, time.monotonic() + ending.BURIAL_SECONDS)

    def _overdue(self) -> bool:
        spec = self._directory.spec()
        seconds = spec.seconds_since_claim()
        over = [
            *([] if self._cancelled_at is None else [time.monotonic() - self._cancelled_at]),
            *([] if seconds is None else [seconds - spec.timeout_seconds]),
        ]
        late = max(over, default=0.0) - ending.GRACE_SECONDS - STUCK_SECONDS
        # Its supervisor may be asking hosts, and then its guard.
        return late > 0 and late > 2 * remote.seconds_needed(self._directory)


def adopt(directory: rundir.RunDirectory, run: str, day: datetime.date) -> Follower | None:
    """Follow a run from its directory; None while another worker of this node does."""
    directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # it was lost: the run ends as interrupted
    lock = rundir.try_lock(directory.follower_lock)
    return Follower(run, day, directory, lock) if lock is not None or _is_left_lying(directory) else None


def _is_left_lying(directory: rundir.RunDirectory) -> bool:
    """Whether the run ended so long ago that a living follower would have recorded it."""
    try:
        ended_at = directory.outcome_file.stat().st_mtime
    except FileNotFoundError:
        return False
    return abs(time.time() - ended_at) > FROZEN_SECONDS  # a clock that jumped makes two follow, which does no harm


def cancel(directory: rundir.RunDirectory, wish: rundir.Cancellation) -> bool:
    """Have a run ended, whoever follows it; False when it is ending already."""
    try:
        directory.write_cancellation(wish)
    except FileNotFoundError:
        return False  # what was reserved for it is gone, since the outcome is being written
    supervisor = processes.read_pid_file(directory.supervisor_file)
    if supervisor:
        processes.send(supervisor, signal.SIGTERM)
        processes.send(supervisor, signal.SIGCONT)  # a frozen process acts on no signal but this one
    return True
