"""Probes tell the truth in time, whatever hangs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bazaruto import config, database, metrics, redis_pool
from bazaruto.health import Check, Status

from .conftest import RunningCluster, RunningRedis
from .serving import Serving, read_answer, serving, wait_for


@contextlib.contextmanager
def watched(home: Path, database_url: str, redis_url: str) -> Iterator[Serving]:
    """A server whose health is that of these two, with /query, which uses the pool."""
    pool = database.open_pool(database_url, config.DatabaseSettings(min_connections=2), "test")
    client, redis_connections = redis_pool.open_redis(redis_url, config.RedisSettings(), "test")
    checks = (
        Check("database", database.probe(database_url, "test-health"), needed_to_serve=True),
        Check("redis", redis_pool.probe(redis_url, config.RedisSettings(), "test-health"), Status.DEGRADED),
    )
    try:
        with serving(home, checks=checks, threads=4) as running:
            running.app.metrics.watch_database(pool)
            running.app.metrics.watch_redis(lambda: redis_connections.in_use)

            @running.app.get("/query")
            def query() -> dict[str, object]:
                running.blocked.release()
                client.ping()
                with pool.connection() as connection:
                    return connection.execute("SELECT 1 AS one").fetchone() or {}

            assert running.get("/query").json == {"one": 1}
            running.blocked.acquire()
            yield running
    finally:
        pool.close()
        redis_connections.close()


def timed(running: Serving, path: str) -> tuple[int, float]:
    """Status and seconds."""
    started = time.monotonic()
    status = running.get(path).status
    return status, time.monotonic() - started


def test_with_postgresql_and_redis_frozen_and_every_thread_blocked_probes_answer_in_time_with_the_truth(
    home: Path, database_url: str, redis_url: str, postgres_cluster: RunningCluster, redis_server: RunningRedis
) -> None:
    with watched(home, database_url, redis_url) as running:
        assert timed(running, "/healthz")[0] == 200
        with postgres_cluster.frozen(), redis_server.frozen():
            clients = [running.connect() for _ in range(12)]
            for client in clients:
                client.sendall(b"GET /query HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            for _ in range(4):
                assert running.blocked.acquire(timeout=5)
            waiting = [running.connect() for _ in range(6)]  # more health probes than there are threads for them
            for client in waiting:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            for _ in range(5):
                status, seconds = timed(running, "/livez")
                assert status == 200
                assert seconds < 0.1
            for path, expected in [("/readyz", 503), ("/healthz", 503), ("/healthz/detailed", 503), ("/metrics", 200)]:
                status, seconds = timed(running, path)
                assert (path, status) == (path, expected)
                assert seconds < 2
            for client in waiting:
                document = read_answer(client).json
                assert document["status"] == "unhealthy"
                assert {check["status"] for check in document["checks"].values()} == {"unhealthy", "degraded"}
                client.close()
        for client in clients:
            read_answer(client)
            client.close()
        wait_for(lambda: running.get("/healthz").json["status"] == "healthy", 5)


def test_redis_lost_is_degraded_and_still_ready(
    home: Path, database_url: str, redis_url: str, redis_server: RunningRedis
) -> None:
    with watched(home, database_url, redis_url) as running, redis_server.frozen():
        answer = running.get("/healthz")
        assert (answer.status, answer.json["status"]) == (200, "degraded")
        assert answer.json["checks"]["redis"]["status"] == "degraded"
        assert running.get("/readyz").status == 200


def test_the_health_response_has_the_documented_shape(home: Path, database_url: str, redis_url: str) -> None:
    with watched(home, database_url, redis_url) as running:
        document = running.get("/healthz").json
        assert list(document) == ["status", "timestamp", "version", "checks"]
        assert list(document["checks"]) == ["database", "redis"]
        for check in document["checks"].values():
            assert check["status"] == "healthy"
            assert check["response_time"].removesuffix("ms").isdigit()
        assert time.strptime(document["timestamp"], "%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    "name", ["database_connections_active", "database_connections_max", "redis_connections_active"]
)
def test_pool_metrics_have_the_documented_names(home: Path, database_url: str, redis_url: str, name: str) -> None:
    with watched(home, database_url, redis_url) as running:
        values = dict(
            line.rsplit(" ", 1) for line in running.get("/metrics").body.decode().splitlines() if line[0] != "#"
        )
        assert float(values[name]) == (25 if name.endswith("_max") else 0)


def test_the_heap_profile_is_for_this_machine_and_says_how_to_switch_it_on(home: Path) -> None:
    with serving(home) as running:
        answer = running.get("/debug/pprof/heap")
        assert answer.status == 200
        assert b"resident set: " in answer.body
        assert b"BAZARUTO_DEBUG_HEAP_PROFILE=true" in answer.body
        running.get("/debug/pprof/heap", "X-Forwarded-For: 127.0.0.1\r\n").assert_problem(403)


def test_labels_of_metrics_are_bounded(home: Path) -> None:
    with serving(home) as running, running.connect() as client:
        for number in range(50):
            client.sendall(f"VERB{number} /made/up/{number} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            assert read_answer(client).status in (404, 405)
        text = running.app.metrics.render()[0].decode()
        counted = [line for line in text.splitlines() if line.startswith("http_requests_total{")]
        assert counted == ['http_requests_total{method="OTHER",path="unmatched",status="404"} 50.0']


def test_each_metrics_object_has_a_registry_of_its_own() -> None:
    one, other = metrics.Metrics(), metrics.Metrics()
    one.observe("GET", "/x", 200, 0.1)
    assert b'path="/x"' in one.render()[0]
    assert b'path="/x"' not in other.render()[0]
