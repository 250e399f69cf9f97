"""What the control plane says of itself: health checks and metrics."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bazaruto import control, database
from bazaruto.config import Settings
from bazaruto.control import approvals, events, launch, runs
from bazaruto.control.audit.changes import Audit, AuditUnwritable
from bazaruto.database import Pool
from bazaruto.health import Check, Health, NotWell, SingleFlight, Status
from bazaruto.tls import Certificate

MIGRATIONS = Path(control.__path__[0]) / "migrations"
LEAST_FREE_BYTES = 256 * 1024 * 1024
TAIL_BYTES = 256 * 1024  # holds a journal's last line
SECONDS_TO_COLLECT = 1.0
RENEWAL_IS_DUE = datetime.timedelta(days=14)  # before the certificate expires; certbot renews 30 days before


def health(settings: Settings, pool: Pool, audit: Audit, certificate: Certificate | None = None) -> Health:
    """What must be well: its database; and in detail migrations, workers, keys, the audit, disk and certificate."""
    ask = database.probe(settings.control_database_url, "bazaruto-health")
    return Health(
        [
            Check("database", lambda: ask() or None, needed_to_serve=True),
            Check("migrations", lambda: _migrations(settings), detailed_only=True, when_failing=Status.DEGRADED),
            Check("workers", lambda: _workers(pool), detailed_only=True, when_failing=Status.DEGRADED),
            Check("keys", lambda: _keys(pool, audit), detailed_only=True, when_failing=Status.DEGRADED),
            Check("audit", lambda: _audit(pool, audit), detailed_only=True, when_failing=Status.DEGRADED),
            Check("disk", lambda: _disk(settings), detailed_only=True, when_failing=Status.DEGRADED),
            *_certificate(settings, certificate),
        ]
    )


class NotMigratedError(Exception):
    """The control database is older than this program."""


def refuse_without_tables(settings: Settings) -> None:
    """Raise NotMigratedError for a database that lacks migrations; one that is away is waited for later."""
    try:
        missing = database.pending(settings.control_database_url, MIGRATIONS)
    except psycopg.OperationalError:
        return  # the health says so, and the pool tries again
    if missing:
        raise NotMigratedError(f"The control database lacks {', '.join(missing)}: run `bazaruto migrate` first.")


def _certificate(settings: Settings, certificate: Certificate | None) -> Iterator[Check]:
    """Whether it will still be believed in a while."""
    if certificate is None:
        return

    def look() -> dict[str, Any]:
        left = certificate.expires_at - datetime.datetime.now(datetime.UTC)
        if left < RENEWAL_IS_DUE:
            path = settings.control_tls_certificate
            raise NotWell(
                f"{path} expires at {certificate.expires_at:%Y-%m-%dT%H:%M:%SZ}: renew it, it is taken up then"
            )
        return {"url": settings.control_address, "days_left": left.days}

    yield Check("certificate", look, detailed_only=True, when_failing=Status.DEGRADED)


def _migrations(settings: Settings) -> dict[str, Any]:
    missing = database.pending(settings.control_database_url, MIGRATIONS)
    if missing:
        raise NotWell(f"not applied: {', '.join(missing)}: run `bazaruto migrate`")
    return {"pending": 0}


def _workers(pool: Pool) -> dict[str, Any]:
    with pool.connection() as connection:
        row = connection.execute(runs.SQL.workers_alive).fetchone()
    if not row or not row["workers"]:
        raise NotWell("no worker is connected, or was heard of for 15 s: start `bazaruto worker`; runs wait until then")
    return {
        "count": row["workers"],
        "nodes": row["nodes"],
        "heartbeat_age_seconds": round(row["oldest_seen_seconds"], 1),
    }


def _keys(pool: Pool, audit: Audit) -> dict[str, Any]:
    with pool.connection() as connection:
        states = audit.keys.states(connection)
    if problems := [state.problem for state in states if state.problem]:
        raise NotWell(" ".join(problems))
    return {state.name: state.fingerprint for state in states}


def _audit(pool: Pool, audit: Audit) -> dict[str, Any]:
    with pool.connection() as connection:
        try:
            return {"entries": audit.check(connection)}
        except AuditUnwritable as error:
            raise NotWell(f"changes are refused: {error}") from error


def _disk(settings: Settings) -> dict[str, Any]:
    free = shutil.disk_usage(settings.home).free
    if free < LEAST_FREE_BYTES:
        raise NotWell(f"{settings.home} has {free} bytes free: free some space")
    return {"free_bytes": free}


class RunCollector(Collector):
    """bazaruto_runs_total and its company; a database that hangs costs a second, and these lines."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._flight = SingleFlight(self._collect, SECONDS_TO_COLLECT)

    def describe(self) -> list[Metric]:
        """Nothing: describing would ask the database before there is one."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            metrics, _ = self._flight.get()
        except Exception:  # noqa: BLE001 - said by `up`, which is 0 then
            yield GaugeMetricFamily("bazaruto_control_database_up", "Whether the control database answers", 0)
            return
        yield from metrics

    def _collect(self) -> list[Metric]:
        ended = CounterMetricFamily("bazaruto_runs", "Runs that ended", labels=["operation", "status"])
        seconds = CounterMetricFamily("bazaruto_run_seconds", "How long they took", labels=["operation", "status"])
        depth = GaugeMetricFamily("bazaruto_queue_depth", "Runs that have not ended", labels=["status"])
        age = GaugeMetricFamily("bazaruto_queue_oldest_seconds", "Since the oldest queued run was accepted")
        with self._pool.connection() as connection:
            for row in connection.execute(runs.SQL.totals):
                ended.add_metric([row["operation"], row["status"]], row["runs"])
                seconds.add_metric([row["operation"], row["status"]], row["seconds"])
            row = connection.execute(runs.SQL.queue_depth).fetchone() or {}
            for status in ("queued", "waiting", "running"):
                depth.add_metric([status], row.get(status, 0))
            age.add_metric([], float(row.get("oldest_queued_seconds", 0)))
            waiting = (connection.execute(approvals.SQL.waiting_for_approval).fetchone() or {}).get("runs", 0)
            lag = self._lag(connection)
        return [
            ended,
            seconds,
            depth,
            age,
            GaugeMetricFamily("bazaruto_runs_waiting_for_approval", "Runs that somebody has to decide on", waiting),
            GaugeMetricFamily("bazaruto_events_lag", "Events in journals here that PostgreSQL does not have", lag),
            GaugeMetricFamily("bazaruto_control_database_up", "Whether the control database answers", 1),
        ]

    def _lag(self, connection: psycopg.Connection[Any]) -> int:
        lag = 0
        for row in connection.execute(runs.SQL.running).fetchall():
            path = launch.directory_of(self._settings, row["id"]).events_file
            lag += max(0, _last_seq(path) - events.stored(connection, row["day"], row["id"]))
        return lag


def _last_seq(path: Path) -> int:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0  # it has not begun, or runs on another node
    return int(json.loads(lines[-2])["seq"]) if len(lines) > 1 else 0
