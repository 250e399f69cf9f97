"""Health, readiness, metrics and the heap profile, also with everything frozen."""

from __future__ import annotations

import json
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from .conftest import Client, Installation, new_policy, wait_until

FORWARDED = {"X-Forwarded-For": "203.0.113.9"}


@pytest.fixture(scope="module")
def site(install: Callable[..., Installation]) -> Installation:
    """An installation of this module's own, with few threads to block."""
    return install(BAZARUTO_SERVER_THREADS="4", BAZARUTO_DB_STATEMENT_TIMEOUT="60s", BAZARUTO_DB_ACQUIRE_TIMEOUT="60s")


@pytest.fixture(scope="module")
def client(site: Installation) -> Client:
    return site.serve()


def test_healthz_has_the_documented_shape(client: Client) -> None:
    answer = client.get("/healthz")
    body = answer.json()
    assert answer.status_code == 200
    assert list(body) == ["status", "timestamp", "version", "checks"]
    assert body["status"] == "healthy"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["timestamp"])
    assert list(body["checks"]) == ["database", "redis"]
    for check in body["checks"].values():
        assert check["status"] == "healthy"
        assert re.fullmatch(r"\d+ms", check["response_time"])


def test_the_detailed_health_adds_what_an_operator_asks_next(client: Client) -> None:
    checks = client.get("/healthz/detailed").json()["checks"]
    assert list(checks) == ["database", "redis", "pool", "migrations", "writes", "jobs", "rules", "disk"]
    assert checks["pool"]["max"] == 25
    assert checks["migrations"]["pending"] == 0
    assert checks["disk"]["free_bytes"] > 0


def test_the_documented_metrics_are_served_with_bounded_labels(site: Installation, client: Client) -> None:
    staff = client.login(site.add_user("admin"))
    policy = new_policy(staff, staff)
    staff.get(f"/v1/policies/{policy['id']}")
    for path in ("/nowhere", "/v1/nothing/at/all", f"/v1/policies/{'0' * 36}"):
        staff.get(path)
    text = client.get("/metrics").text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {
        "http_requests_total",
        "http_request_duration_seconds",
        "database_connections_active",
        "database_connections_max",
        "redis_connections_active",
        "job_queue_size",
        "job_processing_duration_seconds",
    } <= names
    assert 'http_requests_total{method="GET",path="/v1/policies/{policy_id}",status="200"}' in text
    assert policy["id"] not in text
    assert "nowhere" not in text
    assert re.search(r"^database_connections_max 25.0$", text, re.MULTILINE)
    assert re.search(r"^job_queue_size \d+\.0$", text, re.MULTILINE)


def test_a_thousand_paths_and_methods_add_no_series(client: Client) -> None:
    def series() -> set[str]:
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if line.startswith("http_")}

    def ask(number: int) -> None:
        name = f"{number:x}{secrets.token_hex(4)}"
        for path in (f"/{name}", f"/v1/policies/{name}", f"/v1/{name}/{name}"):
            client.request(f"VERB{name}", path)
        client.get(f"/{name}?{name}={name}")
        client.get(f"/v1/claims/{name}")

    series(), ask(0)
    before = series()
    for number in range(1, 200):
        ask(number)
    assert series() == before


def test_without_redis_the_service_is_degraded_and_serves(install: Callable[..., Installation], tmp_path: Path) -> None:
    client = install(BAZARUTO_REDIS_URL=f"unix://{tmp_path}/none.sock").serve()
    health = client.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    assert health.json()["checks"]["redis"]["status"] == "degraded"
    assert client.get("/readyz").status_code == 200


def test_without_its_database_the_service_starts_lives_and_is_not_ready(
    install: Callable[..., Installation], tmp_path: Path
) -> None:
    lost = install()
    client = lost.serve(BAZARUTO_DATABASE_URL=f"postgresql://bazaruto@/bazaruto?host={tmp_path}")
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    health = client.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    assert "database_up 0.0" in client.get("/metrics").text


def test_with_migrations_pending_the_service_is_not_ready_and_says_which(
    install: Callable[..., Installation], postgres_cluster: Any
) -> None:
    fresh = install(BAZARUTO_DATABASE_URL=postgres_cluster.url_of(postgres_cluster.create_database()))
    client = fresh.serve()
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["failing"]) == (503, ["migrations"])
    assert "0001_job_queue" in client.get("/healthz/detailed").json()["checks"]["migrations"]["error"]
    assert fresh.bazarutod("migrate", "--check").returncode == 1
    assert fresh.bazarutod("migrate").returncode == 0
    assert fresh.bazarutod("migrate", "--check").returncode == 0
    wait_until(lambda: client.get("/readyz").status_code == 200)


def test_with_everything_frozen_and_every_thread_blocked_probes_answer_with_the_truth(
    site: Installation, client: Client, postgres_cluster: Any, redis_server: Any
) -> None:
    staff = client.login(site.add_user("agent"))

    def blocked() -> int:
        with httpx.Client(base_url=client.url, headers=staff.headers, timeout=90, trust_env=False) as other:
            return other.get("/v1/users/me").status_code

    with ThreadPoolExecutor(8) as pool:
        with postgres_cluster.frozen(), redis_server.frozen():
            waiting = [pool.submit(blocked) for _ in range(8)]
            wait_until(lambda: _busy(client) >= 4)  # every thread
            for _ in range(3):
                for path, limit, status in (("/livez", 0.1, 200), ("/readyz", 2, 503), ("/healthz", 2, 503)):
                    answer = _timely(client, path, limit)
                    assert answer.status_code == status, (path, answer.text)
                checks = answer.json()["checks"]
                assert (checks["database"]["status"], checks["redis"]["status"]) == ("unhealthy", "degraded")
                assert "database_up 0.0" in _timely(client, "/metrics", 2).text
            assert not any(request.done() for request in waiting)
        assert {request.result() for request in waiting} <= {200, 503}
    wait_until(lambda: client.get("/healthz").json()["status"] == "healthy")
    wait_until(lambda: "database_up 1.0" in client.get("/metrics").text)


def _timely(client: Client, path: str, seconds: float) -> httpx.Response:
    begun = time.perf_counter()
    answer = client.get(path)
    took = time.perf_counter() - begun
    assert took < seconds, (path, took)
    return answer


def _busy(client: Client) -> float:
    """Connections in use, and requests that wait for one."""
    line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith("database_connections_a"))
    waiting = client.get("/healthz/detailed").json()["checks"]["pool"].get("error", "0 ").split()
    return float(line.split()[1]) + sum(int(word) for word in waiting if word.isdigit())


def test_the_heap_profile_is_for_this_machine_or_an_admin(site: Installation, client: Client) -> None:
    own = client.get("/debug/pprof/heap")
    assert own.status_code == 200
    assert "resident set: " in own.text
    assert "BAZARUTO_DEBUG_HEAP_PROFILE=true" in own.text
    assert client.get("/debug/pprof/heap", headers=FORWARDED).status_code == 401
    agent, admin = (client.login(site.add_user(role)) for role in ("agent", "admin"))
    assert agent.get("/debug/pprof/heap", headers=FORWARDED).status_code == 403
    assert admin.get("/debug/pprof/heap", headers=FORWARDED).status_code == 200


def test_the_heap_profile_lists_allocations_when_switched_on(site: Installation) -> None:
    traced = site.serve(BAZARUTO_DEBUG_HEAP_PROFILE="true")
    assert re.search(r"\d+ bytes +\d+ blocks .*\.py:\d+", traced.get("/debug/pprof/heap").text)
    assert traced.terminate() == 0


def test_a_stop_ends_what_was_begun_and_readiness_fails_first(site: Installation) -> None:
    client = site.serve(BAZARUTO_SERVER_DRAIN_DELAY="1s")
    staff = client.login(site.add_user("admin"))
    policy = new_policy(staff, staff, activate=False)
    answers: list[int] = []
    with psycopg.connect(site.database_url) as blocker:
        blocker.execute("SELECT 1 FROM policies WHERE id = %s FOR UPDATE", [policy["id"]])

        def activate() -> None:
            answers.append(staff.post(f"/v1/policies/{policy['id']}/activate").status_code)

        request = threading.Thread(target=activate)
        request.start()
        wait_until(
            lambda: site.rows(
                "SELECT 1 AS one FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
        )
        client.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{client.url}/readyz", trust_env=False).status_code == 503)
        blocker.rollback()
    request.join(20)
    assert answers == [200]
    assert client.process.wait(20) == 0


def test_every_line_of_every_log_is_the_guides_json(site: Installation, client: Client) -> None:
    client.get("/healthz")
    for file in (site.home / "log").glob("*.log"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            assert list(entry)[:3] == ["level", "timestamp", "message"], line
            assert entry["level"] in {"debug", "info", "warn", "error", "fatal"}
