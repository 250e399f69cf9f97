"""Runs jobs until told to stop; survives a lost database, and takes over what dead workers left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Collection

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException
from procrastinate.worker import Worker
from psycopg_pool import PoolTimeout

from bazaruto import database, logs, systemd
from bazaruto.service import jobs, tasks
from bazaruto.service.context import Service, reading
from bazaruto.service.jobs import SQL, Queue

log = logs.get(__name__)
POLL_SECONDS = 1.0  # LISTEN is lost with a connection; this finds jobs without it
RESTART_SECONDS = 1.0  # after the database was lost
_LOST = (ConnectorException, psycopg.Error, PoolTimeout, OSError)


def run(service: Service) -> int:
    """Work until SIGTERM or SIGINT, let running jobs end, and return the exit status."""
    return asyncio.run(_Working(service).run())


class _Working:
    """The worker's life: one procrastinate worker after another, as often as the database is lost."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stop = asyncio.Event()
        self._worker: Worker | None = None
        self._missing: set[int] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        care = asyncio.create_task(self._care(), name="care")
        systemd.ready()
        try:
            while not self._stop.is_set():
                try:
                    await self._work()
                except _LOST as error:
                    log.warn("The worker lost its database and starts again", error=type(error).__name__)
                if not self._stop.is_set():
                    await self._pause(RESTART_SECONDS)
        finally:
            care.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await care
        log.info("Worker stopped")
        return 0

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._cut_off()
        grace = self._service.settings.jobs.shutdown_grace
        log.info("Worker asked to stop; running jobs may end", grace=grace)
        self._stop.set()
        asyncio.get_running_loop().call_later(grace, self._cut_off)
        if self._worker is not None:
            self._worker.stop()  # type: ignore[no-untyped-call] # procrastinate has no types here

    def _cut_off(self) -> None:
        """End now: a job is a thread, which nothing else can end. Another worker takes over what it was doing."""
        log.warn("Worker ended while jobs were running; they run again")
        os._exit(1)

    async def _work(self) -> None:
        """One procrastinate worker, until it is stopped or the database is lost."""
        settings = self._service.settings
        connector = procrastinate.PsycopgConnector(
            conninfo=settings.database_url,
            kwargs={"application_name": "bazaruto-worker", "connect_timeout": 5},
            min_size=1,
            max_size=settings.jobs.concurrency + 3,
            timeout=settings.db.acquire_timeout,
        )
        async with tasks.build(self._service, connector).open_async() as app:
            self._worker = Worker(
                app,
                queues=[queue.value for queue in Queue],
                name="bazaruto",
                concurrency=settings.jobs.concurrency,
                fetch_job_polling_interval=POLL_SECONDS,
                update_heartbeat_interval=jobs.HEARTBEAT_SECONDS,
                stalled_worker_timeout=jobs.DEAD_AFTER_SECONDS,
                install_signal_handlers=False,
            )
            if self._stop.is_set():
                return
            try:
                await self._worker.run()  # type: ignore[no-untyped-call] # procrastinate has no types here
            finally:
                self._worker = None

    async def _care(self) -> None:
        """Every few seconds: stay registered, and put back what dead workers left."""
        while True:
            try:
                running = {context.job.id for context in self._worker._running_jobs.values()} if self._worker else set()
                await asyncio.to_thread(self._take_over, self._worker.worker_id if self._worker else None, running)
            except _LOST as error:
                log.warn("Dead workers could not be looked for", error=type(error).__name__)
            await asyncio.sleep(jobs.HEARTBEAT_SECONDS)

    def _take_over(self, own_id: int | None, running: set[int | None]) -> None:
        with reading(self._service.pool) as connection:
            lost: set[int] = set()
            if own_id is not None:
                connection.execute(SQL.keep_worker, {"id": own_id})
                taken = {row["id"] for row in connection.execute(SQL.jobs_of_worker, {"id": own_id}).fetchall()}
                # Ended here, but the end was never written, as the database was away just then. Seen twice,
                # because a job is taken in the database a moment before it is among those running.
                missing = taken - running
                lost, self._missing = missing & self._missing, missing
            take_over(connection, lost)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


def take_over(connection: database.Connection, lost: Collection[int] = ()) -> int:
    """Put lost jobs and those of dead workers back into the queue, or give them up; returns how many."""
    values = {
        "dead_after": jobs.DEAD_AFTER_SECONDS,
        "max_attempts": jobs.MAX_ATTEMPTS,
        "lost": list(lost),
    }
    taken = connection.execute(SQL.take_from_dead_workers, values).fetchall()
    for job in taken:
        log.warn("Job taken from a dead worker", job_id=job["id"], task=job["task_name"], now=job["status"])
    connection.execute(SQL.forget_dead_workers, {"dead_after": jobs.DEAD_AFTER_SECONDS})
    return len(taken)
