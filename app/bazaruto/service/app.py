"""Puts one process of the service together: what it needs, its routes, and the end of all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bazaruto import database, heap, logs, redis_pool, web
from bazaruto.config import Settings
from bazaruto.health import Health
from bazaruto.metrics import Metrics
from bazaruto.service import claims, login, monitoring, policies, queue, users, webhooks
from bazaruto.service.access import identify, presented_hash
from bazaruto.service.attempts import LoginAttempts
from bazaruto.service.context import Service, reading
from bazaruto.service.passwords import Passwords
from bazaruto.service.rules import ActiveRules, Refusal, RulesFile

log = logs.get(__name__)


@dataclass(frozen=True)
class Running:
    """The application and what the server has to know of it."""

    app: web.App
    health: Health


@contextmanager
def opened(settings: Settings, name: str) -> Iterator[Service]:
    """A process of the service with its pool and its Redis; both may be away, now or later."""
    pool = database.open_pool(settings.database_url, settings.db, name)
    client, connections = (
        redis_pool.open_redis(settings.redis_url, settings.redis, name) if settings.redis_url else (None, None)
    )
    try:
        yield Service(
            settings=settings,
            pool=pool,
            redis_connections=connections,
            rules=RulesFile(settings.rules_file, _report_rules),
            passwords=Passwords(settings.auth.concurrent_hashes),
            attempts=LoginAttempts(
                client,
                settings.auth.attempts,
                settings.auth.attempts_per_address,
                settings.auth.attempts_window,
                _report_redis,
            ),
        )
    finally:
        pool.close(timeout=1)
        if connections is not None:
            connections.close()


@contextmanager
def built(service: Service) -> Iterator[Running]:
    """The application with all its routes."""
    metrics = Metrics()
    metrics.watch_database(service.pool)
    watch = watching(service.settings)
    try:
        health = Health(monitoring.checks(service, watch))
        app = web.create_app("bazarutod", service.settings, metrics)
        connections = service.redis_connections
        metrics.watch_redis(lambda: connections.in_use if connections else 0)
        metrics.add_collector(queue.JobMetrics(watch))
        monitoring.routes(app, service, health, watch)
        for part in (login, users, policies, claims, webhooks, queue):
            part.routes(app, service)
        app.route("/v1/rules", "GET", partial(_rules, service))
        heap.start(service.settings.debug)
        yield Running(app, health)
    finally:
        watch.close(timeout=1)


def watching(settings: Settings) -> database.Pool:
    """A small pool of its own for health and metrics: a busy service is not a dead one."""
    few = settings.db.model_copy(update={"min_connections": 0, "max_connections": 3, "acquire_timeout": 2.0})
    return database.open_pool(settings.database_url, few, "bazarutod-health")


def _rules(service: Service) -> dict[str, Any]:
    """What is in force, and why the file as it is now is not, when it is not."""
    token = presented_hash()
    with reading(service.pool) as connection:
        identify(connection, token)
    active, refusal = service.rules.current(), service.rules.refusal()
    return {
        "version": active.rules.version if active else None,
        "sha256": active.sha256 if active else None,
        "loaded_at": active.loaded_at if active else None,
        "rules": active.rules.model_dump(mode="json") if active else None,
        "last_error": {"error": refusal.error, "at": refusal.at} if refusal else None,
    }


def _report_rules(news: ActiveRules | Refusal) -> None:
    if isinstance(news, Refusal):
        log.error("Business rules refused, those in force stay", error=news.error)
    else:
        log.info("Business rules in force", version=news.rules.version, sha256=news.sha256)


def _report_redis(error: Exception) -> None:
    log.warn("Redis is away; logins are limited by this process alone", error=type(error).__name__)
