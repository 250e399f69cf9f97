"""Health, readiness, liveness, metrics and the heap profile, as the guide documents them."""

from __future__ import annotations

import gc
import os
import shutil
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bottle

from bazaruto import database, redis_pool, web
from bazaruto.config import Settings
from bazaruto.health import Check, Health, SingleFlight, Status, StillRunning
from bazaruto.metrics import Metrics
from bazaruto.problems import Problem
from bazaruto.service import queue
from bazaruto.service.access import identify, is_local, presented_hash, require
from bazaruto.service.context import Service, reading
from bazaruto.service.fields import Role
from bazaruto.service.rules import RulesFile

MIGRATIONS = Path(__file__).with_name("migrations")
PROBE_PATHS = frozenset(
    {"/livez", "/readyz", "/healthz", "/healthz/detailed", "/healthz/jobs", "/metrics", "/debug/pprof/heap"}
)
LITTLE_SPACE_BYTES = 512 * 1024 * 1024
_HEAP_LINES = 50


def checks(service: Service, watch: database.Pool) -> list[Check]:
    """What the service needs; `watch` has its own connections: a busy pool is not taken for a dead database."""
    settings = service.settings
    return [
        Check("database", partial(_database, watch), needed_to_serve=True),
        Check("redis", _redis(settings), when_failing=Status.DEGRADED),
        Check("pool", partial(_pool, service.pool), when_failing=Status.DEGRADED, detailed_only=True),
        Check("migrations", partial(_migrations, watch), detailed_only=True, needed_to_serve=True),
        Check("jobs", partial(_jobs, watch), when_failing=Status.DEGRADED, detailed_only=True),
        Check("rules", partial(_rules, service.rules), when_failing=Status.DEGRADED, detailed_only=True),
        Check("disk", partial(_disk, settings.home), when_failing=Status.DEGRADED, detailed_only=True),
    ]


def routes(app: web.App, service: Service, health: Health, metrics: Metrics, watch: database.Pool) -> None:
    """Put the monitoring endpoints at the root."""
    app.route("/livez", "GET", lambda: {"status": "alive"})
    app.route("/readyz", "GET", lambda: _answer(*health.readiness()))
    app.route("/healthz", "GET", lambda: _answer(*health.report()))
    app.route("/healthz/detailed", "GET", lambda: _answer(*health.report(detailed=True)))
    app.route("/healthz/jobs", "GET", partial(_queue, SingleFlight(partial(_summary, watch))))
    app.route("/metrics", "GET", partial(_metrics, metrics))
    app.route("/debug/pprof/heap", "GET", partial(_heap, service))


def start_heap_profile(wanted: bool) -> None:
    """Begin to trace allocations, when the setting asks for it; costs nothing else."""
    if wanted and not tracemalloc.is_tracing():
        tracemalloc.start(5)


def _answer(status: int, body: dict[str, Any]) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(body, status)


def _metrics(metrics: Metrics) -> bottle.HTTPResponse:
    body, content_type = metrics.render()
    return bottle.HTTPResponse(body, 200, {"Content-Type": content_type})


def _summary(watch: database.Pool) -> dict[str, Any]:
    with reading(watch) as connection:
        return queue.summary(connection)


def _queue(flight: SingleFlight[dict[str, Any]]) -> dict[str, Any]:
    try:
        return flight.get()[0]
    except StillRunning:
        raise Problem(503, detail="The database did not answer in time.", headers={"Retry-After": "1"}) from None


def _database(watch: database.Pool) -> None:
    with reading(watch) as connection:
        connection.execute("SELECT 1")


def _redis(settings: Settings) -> Callable[[], None]:
    if settings.redis_url:
        return redis_pool.probe(settings.redis_url, settings.redis, "bazarutod-health")
    return _no_redis


def _no_redis() -> None:
    raise RuntimeError("redis_url is not set")


def _pool(pool: database.Pool) -> dict[str, Any]:
    statistics = pool.get_stats()
    size, free = statistics["pool_size"], statistics["pool_available"]
    figures = {"max": pool.max_size, "open": size, "in_use": size - free, "waiting": statistics["requests_waiting"]}
    if figures["waiting"]:
        raise RuntimeError(f"{figures['waiting']} requests wait for one of {pool.max_size} connections")
    return figures


def _migrations(watch: database.Pool) -> dict[str, Any]:
    with reading(watch) as connection:
        missing = database.pending_on(connection, MIGRATIONS)
    if missing:
        raise RuntimeError(f"not applied: {', '.join(missing)}; run `bazarutod migrate`")
    return {"pending": 0}


def _jobs(watch: database.Pool) -> dict[str, Any]:
    found = _summary(watch)
    if not found["workers_alive"]:
        raise RuntimeError("no worker is alive; start `bazarutod worker`")
    if found["held"]:
        raise RuntimeError(f"{found['held']} jobs are held; run `bazarutod jobs release` or `bazarutod jobs drop`")
    return found


def _rules(rules: RulesFile) -> dict[str, Any]:
    active, refusal = rules.current(), rules.refusal()
    if refusal is not None:
        kept = f"version {active.rules.version} stays in force" if active else "none is in force"
        raise RuntimeError(f"the business rules were refused, {kept}: {refusal.error}")
    return {"version": active.rules.version if active else None}


def _disk(home: Path) -> dict[str, Any]:
    free = shutil.disk_usage(home).free
    if free < LITTLE_SPACE_BYTES:
        raise RuntimeError(f"{free} bytes are free for {home}, {LITTLE_SPACE_BYTES} is the least")
    return {"free_bytes": free}


def _heap(service: Service) -> bottle.HTTPResponse:
    """To this machine, or an admin."""
    if not is_local():
        token = presented_hash()
        with reading(service.pool) as connection:
            require(identify(connection, token), frozenset({Role.ADMIN}))
    text = "\n".join([*_memory(), *_allocations()]) + "\n"
    return bottle.HTTPResponse(text.encode(), 200, {"Content-Type": "text/plain; charset=utf-8"})


def _memory() -> list[str]:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    counts = ", ".join(map(str, gc.get_count()))
    collections = ", ".join(str(generation["collections"]) for generation in gc.get_stats())
    return [
        f"resident bytes: {pages * os.sysconf('SC_PAGE_SIZE')}",
        f"objects since the last collection of each generation: {counts}",
        f"collections of each generation: {collections}",
    ]


def _allocations() -> list[str]:
    if not tracemalloc.is_tracing():
        return ["heap profile: off; start with BAZARUTO_DEBUG_HEAP_PROFILE=true (debug.heap_profile: true) to have one"]
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
    current, peak = tracemalloc.get_traced_memory()
    lines = [f"heap profile: {current} bytes traced, at most {peak}; the {_HEAP_LINES} largest places:"]
    for statistic in snapshot.statistics("lineno")[:_HEAP_LINES]:
        frame = statistic.traceback[0]
        lines.append(f"{statistic.size:>12} bytes {statistic.count:>9} blocks  {frame.filename}:{frame.lineno}")
    return lines
