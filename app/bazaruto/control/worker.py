"""The worker: claims runs, starts their supervisors, follows them into PostgreSQL; and adopts what it finds running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import procrastinate
import psycopg
from psycopg_pool import PoolTimeout

from bazaruto import logs
from bazaruto.config import DatabaseSettings, Settings
from bazaruto.control import approvals, catalog, follow, launch, observe, queue, runs, sealing, settling
from bazaruto.control.audit import ends
from bazaruto.control.audit.changes import Audit
from bazaruto.control.content import Content, ContentError, Snapshot, UnknownContentError
from bazaruto.control.engine import journal, launcher, rundir, surroundings
from bazaruto.control.node import node_name
from bazaruto.database import Connection, Pool, open_pool

log = logs.get(__name__)
STEP_SECONDS = 0.05  # between two looks at the journals of living runs
HEARTBEAT_SECONDS = 5.0  # between two signs of life, which people and health checks read
IDLE_SECONDS = 1.0  # between two looks for work that nobody woke us for
ADOPT_SECONDS = 0.5  # between two looks for runs that nobody follows, and for those to cancel: another may be woken
CONCURRENT_RUNS = 16  # supervisors of one worker; more runs stay queued
CANNOT_START = (
    OSError,
    sealing.CannotUnsealError,
    launch.UnknownOperationError,
    UnknownContentError,
    ContentError,
    catalog.CatalogueError,
)
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)  # the database is, for the moment


class Worker:
    """One process' share of the work; any number of them may run."""

    def __init__(self, settings: Settings, content: Content, pool: Pool, name: str) -> None:
        self._name = name  # also of its pool's connections: live_workers holds the one against the other
        self._settings = settings
        self._content = content
        self._pool = pool
        self._seal = sealing.load(settings.home)
        self._node = node_name(settings.home)
        self._ends = ends.Ends(Audit(settings.home, pool))
        self._settler = settling.Settler(settings, pool, self._node)
        self._followers: dict[str, follow.Follower] = {}
        self._launcher = launcher.Launcher(
            surroundings.environment(settings.home, settings.content_directory, launcher.NO_RUN)
        )
        self._has_cleaned = False
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._look_for_work_at = 0.0
        self._adopt_at = 0.0
        self._heartbeat_at = 0.0
        self._away = False

    def wake(self) -> None:
        """There may be work: a run to start, or one to cancel."""
        self._look_for_work_at = 0.0
        self._adopt_at = 0.0
        self._woken.set()

    def stop(self) -> None:
        """Stop claiming and following; the supervisors go on, and are adopted by the next worker."""
        self._stopping.set()
        self._woken.set()

    def run(self) -> None:
        """Work until stopped. A database that is away delays everything, and loses nothing."""
        self._launcher.start()
        log.info("worker started", node=self._node)
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                self._turn()
            except AWAY as error:
                self._say_away(error)
                self._stopping.wait(IDLE_SECONDS)
            else:
                self._away = False
            self._woken.wait(self._patience())
        for follower in self._followers.values():
            follower.close()
        self._settler.close()
        self._launcher.stop()
        self._say_that_it_leaves()
        log.info("worker stopped", still_running=sorted(self._followers))

    def _patience(self) -> float:
        if any(follower.behind for follower in self._followers.values()):
            return 0.0
        return STEP_SECONDS if self._followers else IDLE_SECONDS

    def _turn(self) -> None:
        now = time.monotonic()
        if not self._has_cleaned:
            self._remove_leftovers()
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_SECONDS  # before looking: who wakes us meanwhile must not be forgotten
            self._adopt()
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT_SECONDS
            self._say_that_it_lives()
        ended = [self._follow(), self._settler.step()]
        if any(ended) or now >= self._look_for_work_at:
            self._look_for_work_at = now + IDLE_SECONDS
            self._ends.step()
            self._start_what_may_start()

    def _remove_leftovers(self) -> None:
        """Secrets of claims that no worker lived to commit, of runs that have been ended since."""
        found = [path.parent.name for path in (self._settings.home / "control" / "runs").glob("*/private")]
        with self._pool.connection() as connection:
            ended = connection.execute(runs.SQL.ended_among, {"ids": found}).fetchall()
        for directory in (launch.directory_of(self._settings, row["id"]) for row in ended):
            if not rundir.is_locked(directory.supervisor_lock):
                directory.remove_secrets()
        self._has_cleaned = True

    def _say_that_it_lives(self) -> None:
        environments = list(self._settings.control_environments)
        with self._pool.connection() as connection:
            connection.execute(
                runs.SQL.worker_seen, {"id": self._name, "node": self._node, "environments": environments}
            )

    def _say_that_it_leaves(self) -> None:
        with contextlib.suppress(*AWAY), self._pool.connection() as connection:
            connection.execute(runs.SQL.worker_left, {"id": self._name})

    def _adopt(self) -> None:
        """Follow every running run of this node that no living worker follows; end those that are to be canceled."""
        with self._pool.connection() as connection:
            rows = connection.execute(runs.SQL.running_on_node, {"node": self._node}).fetchall()
        for row in rows:
            try:
                follower = self._followers.get(row["id"]) or self._adopted(row)
                if row["cancel_requested_at"]:
                    self._cancel(row, follower)
            except OSError:  # its trouble must not be the other runs'; it is tried again
                log.exception("run cannot be adopted or canceled", run=row["id"])

    def _cancel(self, row: Mapping[str, Any], follower: follow.Follower | None) -> None:
        """Also a run that another worker follows: that one may be frozen."""
        wish = rundir.Cancellation(row["cancel_requested_by"], row["cancel_reason"])
        if follower:
            follower.cancel(wish)
        else:
            follow.cancel(launch.directory_of(self._settings, row["id"]), wish)

    def _adopted(self, row: Mapping[str, Any]) -> follow.Follower | None:
        directory = launch.directory_of(self._settings, row["id"])
        follower = follow.adopt(directory, row["id"], row["day"])
        if follower:
            log.info("run adopted", run=row["id"])
            self._followers[row["id"]] = follower
        return follower

    def _follow(self) -> bool:
        """Bring every followed run up to date; True when one has ended."""
        ended = [run for run, follower in self._followers.items() if self._step(follower)]
        for run in ended:
            log.info("run ended", run=run)
            self._followers.pop(run).close()
        return bool(ended)

    def _step(self, follower: follow.Follower) -> bool:
        """One step of one run; its trouble must not be the other runs'."""
        try:
            return follower.step(self._pool)
        except AWAY:
            raise
        except Exception as error:
            log.exception("run cannot be followed", run=follower.run)
            return self._give_up(follower, f"{type(error).__name__}: {error}")

    def _give_up(self, follower: follow.Follower, reason: str) -> bool:
        try:
            return follower.give_up(self._pool, reason)
        except AWAY:
            raise
        except Exception:
            log.exception("run cannot even be given up; it is tried again", run=follower.run)
            return False

    def _start_what_may_start(self) -> None:
        with self._pool.connection() as connection:
            approvals.expire(connection)
            approvals.advance(connection, self._settings.control_approval_expires)
        while len(self._followers) < CONCURRENT_RUNS and self._start_one():
            pass
        with self._pool.connection() as connection:
            runs.mark_waiting(connection)

    def _start_one(self) -> bool:
        """Claim a run and start it; False when nothing may start.

        The locks are held before the claim is committed, so no other worker can take the run for dead.
        """
        supervisor_lock = None
        with contextlib.ExitStack() as undo:
            try:
                with self._pool.connection() as connection:
                    row = runs.claim(connection, self._node, self._settings.control_environments)
                    if row is None:
                        return False
                    if row["approval"] and (changed := approvals.changed_content(row, self._content)):
                        connection.rollback()  # the claim
                        approvals.void(connection, row["id"], changed)
                        return True
                    prepared = self._prepare(row, connection)
                    if prepared is None:
                        return True
                    directory, supervisor_lock, catalogue = prepared
                    undo.callback(os.close, supervisor_lock)
            except psycopg.errors.UniqueViolation:
                return True  # another worker was faster; look again
            try:
                pid = launch.start(self._settings.home, catalogue.directory, directory, supervisor_lock, self._launcher)
            except OSError:
                log.exception("supervisor could not be started; the run ends as interrupted", run=row["id"])
            else:
                log.info("run started", run=row["id"], operation=row["operation"], pid=pid)
            follower = follow.adopt(directory, row["id"], row["day"])
            if follower:
                self._followers[row["id"]] = follower
        return True

    def _prepare(
        self, row: Mapping[str, Any], connection: Connection
    ) -> tuple[rundir.RunDirectory, int, catalog.Catalogue] | None:
        """The claimed run's directory with its lock held, and its content; None when it cannot start, which ends it."""
        run: str = row["id"]
        try:
            variables = self._seal.open(bytes(row["variables"] or b""))
            catalogue = self._content_of(row).catalogue
            directory = launch.prepare(self._settings, catalogue, row, variables)
            lock = rundir.try_lock(directory.supervisor_lock)
            if lock is None:
                raise BlockingIOError(f"{directory.supervisor_lock} is held by another process")
        except launch.AlreadyStartedError as error:
            log.warn("run is followed, not started again", run=run, error=str(error))
            self._adopt_at = 0.0
            return None
        except CANNOT_START as error:
            log.exception("run could not be started", run=run, error=str(error))
            now = journal.utc()
            reason = f"It could not be started: {error}; nothing of it was done."
            runs.end(connection, run, rundir.Outcome("failed", now, now, events=0, error=reason))
            return None
        connection.execute(runs.SQL.forget_variables, {"id": run})
        return directory, lock, catalogue

    def _content_of(self, row: Mapping[str, Any]) -> Snapshot:
        """What the run was accepted with; what there is now for one that was accepted before that was recorded."""
        digest = row["content_digest"]
        return self._content.at(digest) if digest else self._content.current()

    def _say_away(self, error: Exception) -> None:
        if not self._away:
            log.warn("the control database is away; living runs go on and are caught up later", error=str(error))
        self._away = True


def main(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT."""
    logs.configure(settings, "control-worker")
    logging.getLogger("procrastinate").setLevel(logging.WARNING)  # a line for each time it wakes says nothing
    observe.refuse_without_tables(settings)
    name = secrets.token_hex(4)
    worker = Worker(settings, Content.of(settings), _pool(settings, name), name)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    threading.Thread(target=_listen, args=(settings.control_database_url, worker), daemon=True).start()
    worker.run()
    return 0


def _pool(settings: Settings, name: str) -> Pool:
    small = DatabaseSettings(min_connections=1, max_connections=2, acquire_timeout=2.0)
    return open_pool(settings.control_database_url, small, f"bazaruto-worker {name}")


def _listen(url: str, worker: Worker) -> None:
    """Let procrastinate's jobs wake the worker, for ever; while it cannot, the worker looks by itself."""
    while True:
        try:
            asyncio.run(_wait_for_jobs(url, worker))
        except (psycopg.Error, procrastinate.exceptions.ConnectorException, OSError) as error:
            log.warn("waiting for jobs again", error=f"{type(error).__name__}: {error}"[:300])
        time.sleep(IDLE_SECONDS)


async def _wait_for_jobs(url: str, worker: Worker) -> None:
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=3)
    app = queue.application(connector, worker.wake)
    async with app.open_async():
        for job in await app.job_manager.get_stalled_jobs(queue=queue.WAKE):  # of a worker that was killed
            await app.job_manager.finish_job(job, procrastinate.jobs.Status.FAILED, delete_job=True)
        await app.run_worker_async(
            queues=[queue.WAKE],
            fetch_job_polling_interval=queue.POLL_SECONDS,
            delete_jobs=procrastinate.jobs.DeleteJobCondition.ALWAYS,
            install_signal_handlers=False,
        )
