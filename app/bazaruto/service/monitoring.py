"""What the service is asked about itself: its health checks, its queue, and who may see the heap profile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bazaruto import database, probes, redis_pool, web
from bazaruto.config import Settings
from bazaruto.health import Check, Health, NotWell, SingleFlight, Status, StillRunning
from bazaruto.problems import Problem
from bazaruto.service import queue
from bazaruto.service.access import identify, presented_hash, require
from bazaruto.service.context import Service, reading
from bazaruto.service.fields import Role
from bazaruto.service.rules import RulesFile

MIGRATIONS = Path(__file__).with_name("migrations")
JOBS_PATH = "/healthz/jobs"
PROBE_PATHS = probes.PATHS | {JOBS_PATH}
LITTLE_SPACE_BYTES = 512 * 1024 * 1024


def checks(service: Service, watch: database.Pool) -> list[Check]:
    """What the service needs; `watch` has its own connections: a busy pool is not taken for a dead database."""
    settings = service.settings
    return [
        Check("database", partial(_database, watch), needed_to_serve=True),
        Check("redis", _redis(settings), when_failing=Status.DEGRADED),
        Check("pool", partial(_pool, service.pool), when_failing=Status.DEGRADED, detailed_only=True),
        Check("migrations", partial(_migrations, watch), detailed_only=True, needed_to_serve=True),
        Check("writes", partial(_writes, watch), when_failing=Status.DEGRADED, detailed_only=True),
        Check("jobs", partial(_jobs, watch), when_failing=Status.DEGRADED, detailed_only=True),
        Check("rules", partial(_rules, service.rules), when_failing=Status.DEGRADED, detailed_only=True),
        Check("disk", partial(_disk, settings.home), when_failing=Status.DEGRADED, detailed_only=True),
    ]


def routes(app: web.App, service: Service, health: Health, watch: database.Pool) -> None:
    """Put the monitoring endpoints at the root."""
    probes.add_probes(app, health, may_profile=partial(_may_profile, service))
    app.get(JOBS_PATH, callback=partial(_queue, SingleFlight(partial(_summary, watch))))


def _may_profile(service: Service) -> bool:
    """This machine itself, or an admin; 401 and 403 for everyone else."""
    if not web.from_this_machine():
        token = presented_hash()
        with reading(service.pool) as connection:
            require(identify(connection, token), frozenset({Role.ADMIN}))
    return True


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
    raise NotWell("redis_url is not set")


def _pool(pool: database.Pool) -> dict[str, Any]:
    statistics = pool.get_stats()
    size, free = statistics["pool_size"], statistics["pool_available"]
    figures = {"max": pool.max_size, "open": size, "in_use": size - free, "waiting": statistics["requests_waiting"]}
    if figures["waiting"]:
        raise NotWell(f"{figures['waiting']} requests wait for one of {pool.max_size} connections")
    return figures


def _migrations(watch: database.Pool) -> dict[str, Any]:
    with reading(watch) as connection:
        missing = database.pending_on(connection, MIGRATIONS)
    if missing:
        raise NotWell(f"not applied: {', '.join(missing)}; run `bazarutod migrate`")
    return {"pending": 0}


def _writes(watch: database.Pool) -> None:
    with reading(watch) as connection:
        if database.writes_are_held(connection):
            raise NotWell("held: changes are answered 503 until the restore that holds them has ended")


def _jobs(watch: database.Pool) -> dict[str, Any]:
    found = _summary(watch)
    if not found["workers_alive"]:
        raise NotWell("no worker is alive; start `bazarutod worker`")
    if found["held"]:
        raise NotWell(f"{found['held']} jobs are held; run `bazarutod jobs release` or `bazarutod jobs drop`")
    return found


def _rules(rules: RulesFile) -> dict[str, Any]:
    active, refusal = rules.current(), rules.refusal()
    if refusal is not None:
        kept = f"version {active.rules.version} stays in force" if active else "none is in force"
        raise NotWell(f"the business rules were refused, {kept}: {refusal.error}")
    return {"version": active.rules.version if active else None}


def _disk(home: Path) -> dict[str, Any]:
    free = shutil.disk_usage(home).free
    if free < LITTLE_SPACE_BYTES:
        raise NotWell(f"{free} bytes are free for {home}, {LITTLE_SPACE_BYTES} is the least")
    return {"free_bytes": free}
