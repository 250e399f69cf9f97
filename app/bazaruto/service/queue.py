"""The queue seen from outside: its state, what failed and why, a second try, and its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from psycopg.rows import DictRow
from pydantic import Field

from bazaruto import database, logs, web
from bazaruto.health import SingleFlight, StillRunning
from bazaruto.problems import Problem
from bazaruto.service.access import STAFF, identify, not_found, presented_hash, require
from bazaruto.service.context import Service, changing, only_row, reading
from bazaruto.service.fields import Input, Role, Text
from bazaruto.service.jobs import DEAD_AFTER_SECONDS, SQL

log = logs.get(__name__)
_JobId = Annotated[int, Field(ge=0, le=2**63 - 1)]
STATES = ("todo", "doing", "succeeded", "failed", "cancelled", "aborted")


class FailedList(Input):
    """Which failed jobs."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Text | None = None


def routes(app: web.App, service: Service) -> None:
    """Put failed jobs under /jobs."""
    app.route("/jobs/failed", "GET", partial(_failed, service))
    app.route("/jobs/failed/<job_id:re:[0-9]{1,18}>/retry", "POST", partial(_retry, service))


def summary(connection: database.Connection) -> dict[str, Any]:
    """The queue by state, what is held, the oldest waiting job's age, and the workers alive."""
    row = only_row(connection.execute(SQL.queue_summary, {"dead_after": DEAD_AFTER_SECONDS}))
    oldest = row["oldest_seconds"]
    return {
        "states": {state: row["states"].get(state, 0) for state in STATES},
        "held": row["held"],
        "oldest_age_seconds": None if oldest is None else round(max(0.0, float(oldest)), 3),
        "workers_alive": row["workers"],
    }


def _failed(service: Service) -> dict[str, Any]:
    """From this machine without a token, as the guide has it; there is nothing personal in it."""
    token = None if web.from_this_machine() else presented_hash()
    wanted = web.query(FailedList)
    before = web.decode_cursor(wanted.cursor, _JobId)[0] if wanted.cursor is not None else None
    with reading(service.pool) as connection:
        if token is not None:
            require(identify(connection, token), STAFF)
        values = {"limit": wanted.limit + 1, "before_id": before}
        rows = connection.execute(SQL.list_failed, values).fetchall()
    items = rows[: wanted.limit]
    return web.page(items, web.encode_cursor(items[-1]["id"]) if len(rows) > wanted.limit else None)


def _retry(service: Service, job_id: str) -> dict[str, Any]:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        require(caller, frozenset({Role.ADMIN}))
        job = connection.execute(SQL.retry_failed, {"id": int(job_id)}).fetchone()
        if job is None:
            if connection.execute(SQL.job_exists, {"id": int(job_id)}).fetchone():
                raise Problem(409, "Conflict", "The job has not failed: only failed jobs are retried.")
            raise not_found("job")
    log.info("Failed job queued again", job_id=int(job_id), task=job["task"], by=str(caller.id))
    return job


class JobMetrics(Collector):
    """Queue and outcomes as the database has them: the same from every instance; without it, only database_up 0."""

    def __init__(self, pool: database.Pool) -> None:
        self._pool = pool
        self._flight = SingleFlight(self._read)

    def collect(self) -> Iterator[Metric]:
        """Within a second, whatever the database does."""
        try:
            (sizes, statistics), _ = self._flight.get()
        except Exception as error:  # noqa: BLE001 - whatever it is, metrics must be served, and say so
            if not isinstance(error, StillRunning):
                log.debug("the queue's metrics could not be read", error=type(error).__name__)
            yield GaugeMetricFamily("database_up", "Whether the database answered", value=0)
            return
        yield GaugeMetricFamily("database_up", "Whether the database answered", value=1)
        yield GaugeMetricFamily("job_queue_size", "Jobs waiting to run", value=sizes["waiting"])
        yield GaugeMetricFamily("job_queue_held", "Jobs held until someone decides", value=sizes["held"])
        yield from _outcomes(statistics)

    def _read(self) -> tuple[DictRow, list[DictRow]]:
        with reading(self._pool) as connection:
            sizes = only_row(connection.execute(SQL.queue_sizes))
            return sizes, connection.execute(SQL.statistics).fetchall()


def _outcomes(statistics: list[DictRow]) -> Iterator[Metric]:
    jobs = CounterMetricFamily("jobs_processed", "Attempts that ended, by outcome", labels=["task", "outcome"])
    durations = HistogramMetricFamily(
        "job_processing_duration_seconds", "Seconds from an attempt's start to its end", labels=["task", "outcome"]
    )
    for row in statistics:
        labels = [row["task_name"], row["outcome"]]
        jobs.add_metric(labels, row["jobs"])
        buckets = [(f"{bound:g}", count) for bound, count in zip(row["bounds"], row["buckets"], strict=True)]
        durations.add_metric(labels, [*buckets, ("+Inf", row["jobs"])], sum_value=row["seconds"])
    yield jobs
    yield durations
