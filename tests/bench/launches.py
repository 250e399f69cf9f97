"""How soon a launch is accepted, what looking at the content costs, and whether lists stay flat as runs pile up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psycopg

from bazaruto import embedded, processes, server_user
from bazaruto.control.content import Content

from .figures import Figure, alternate

ROOT = Path(__file__).resolve().parents[2]
LAUNCHES, LOOKS, ASKED = 300, 300, 60
FEW, MANY = 1000, 100_000  # stored runs
RUNS = "/api/v1/runs"
BAZARUTO = str(Path(sys.executable).parent / "bazaruto")
LISTS: dict[str, dict[str, str | int]] = {  # what is rare was long ago, so that an index must find it
    "newest": {"limit": 50},
    "of an operation": {"operation": "restore", "limit": 5},
    "failed": {"status": "failed", "limit": 5},
    "of a rare environment": {"environment": "rare", "limit": 5},
    "failed in a rare environment": {"environment": "rare", "status": "failed", "limit": 5},
    "none of an operation there": {"environment": "rare", "operation": "restore", "limit": 5},
}
FILL = """
INSERT INTO runs (id, day, operation, environment, effect, status, parameters, check_mode, diff, requested_by, node,
                  timeout_seconds, started_at, finished_at)
SELECT '20260101-000000-' || lpad(to_hex(n), 6, '0'), '2026-01-01',
       CASE WHEN n %% 50 = 0 THEN 'restore' ELSE 'backup' END, CASE WHEN n <= 5 THEN 'rare' ELSE 'local' END, 'read',
       CASE WHEN n %% 20 = 1 THEN 'failed' ELSE 'succeeded' END, '{}', false, false, 'admin', 'node', 60, now(), now()
FROM generate_series(1, %s) n
"""


@dataclass(frozen=True)
class Plane:
    """An API without a worker: what is accepted stays accepted."""

    home: Path
    database_url: str
    url: str

    @property
    def http(self) -> httpx.Client:
        token = (self.home / "control" / "admin.token").read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def fill(self, runs: int) -> None:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("DELETE FROM runs")
            connection.execute(FILL, [runs])
            connection.execute("VACUUM ANALYZE runs")


def measure(pairs: int) -> list[Figure]:
    """On a PostgreSQL of its own, as durable as `bazaruto up` makes it."""
    with tempfile.TemporaryDirectory(prefix="bazaruto-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o711)
        cluster = stack.enter_context(cluster_of(directory))
        few, many = (stack.enter_context(plane_of(directory / each, cluster, each)) for each in ("few", "many"))
        return [_accepted(few), _looked(directory / "content"), *_lists(pairs, few, many)]


def _accepted(plane: Plane) -> Figure:
    with plane.http as http:

        def launch() -> None:
            answer = http.post(RUNS, json={"operation": "backup", "environment": "local", "reason": "bench"})
            assert answer.status_code == 202, answer.text

        p50, p99 = _percentiles(launch, LAUNCHES)
    return Figure("launch accepted, p99 ÷ p50", p99, p50, "ms", "p99 < 50 ms")


def _looked(store: Path) -> Figure:
    content = Content(ROOT, store)
    content.current()
    p50, p99 = _percentiles(content.current, LOOKS)
    return Figure("unchanged content looked at, p99 ÷ p50", p99, p50, "ms", "p50 < 5 ms")


def _lists(pairs: int, few: Plane, many: Plane) -> Iterator[Figure]:
    few.fill(FEW)
    many.fill(MANY)
    for name, query in LISTS.items():
        with few.http as short, many.http as long:
            ours, theirs = alternate(pairs * 3, partial(_listed, long, query), partial(_listed, short, query))
        yield Figure(f"runs listed ({name}), {MANY} stored ÷ {FEW}", ours, theirs, "ms", "<= 1.2")


def _listed(http: httpx.Client, query: dict[str, str | int]) -> float:
    def ask() -> None:
        assert http.get(RUNS, params=query).status_code == 200

    return _percentiles(ask, ASKED)[0]


def _percentiles(call: Callable[[], object], times: int) -> tuple[float, float]:
    """p50 and p99 in milliseconds; the first calls are not counted."""
    taken = []
    for number in range(times + 10):
        started = time.perf_counter()
        call()
        if number >= 10:
            taken.append((time.perf_counter() - started) * 1e3)
    return statistics.median(taken), statistics.quantiles(taken, n=100)[-1]


@contextlib.contextmanager
def cluster_of(directory: Path) -> Iterator[embedded.Cluster]:
    cluster = embedded.Cluster(
        directory=directory / "postgresql",
        socket_directory=directory / "socket",
        passfile=directory / "pgpass",
        log_path=directory / "postgresql.out",
        user=server_user.server_user([embedded.postgresql_bin() / "postgres", directory]),
        settings=embedded.POSTGRESQL_SETTINGS,
    )
    embedded.create_cluster(cluster)
    identity = embedded.start_cluster(cluster)
    try:
        yield cluster
    finally:
        processes.end(identity, embedded.STOP_SECONDS, first_signal=signal.SIGQUIT)


@contextlib.contextmanager
def plane_of(
    home: Path, cluster: embedded.Cluster, database: str, program: Sequence[str] = (BAZARUTO, "serve")
) -> Iterator[Plane]:
    """An API on a database of its own, as long as this lasts."""
    (home / "log").mkdir(parents=True)
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}".encode())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    superuser = psycopg.conninfo.conninfo_to_dict(cluster.url())["user"]
    plane = Plane(home, cluster.url(str(superuser), database), f"http://127.0.0.1:{port}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BAZARUTO_")}
    environment = {
        **kept,
        "BAZARUTO_HOME": str(home),
        "BAZARUTO_CONTROL_DATABASE_URL": plane.database_url,
        "BAZARUTO_CONTROL_PORT": str(port),
        "BAZARUTO_CONTROL_REQUESTS_PER_SECOND": "0",  # it is to be measured, not held back
        "BAZARUTO_CONTENT_DIRECTORY": str(ROOT),
        "BAZARUTO_SERVER_DRAIN_DELAY": "0s",
    }
    subprocess.run([BAZARUTO, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    with (home / "log" / "serve.out").open("wb") as log:
        process = subprocess.Popen(program, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_ready(plane)
        yield plane
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(plane: Plane) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{plane.url}/readyz", trust_env=False).status_code == 200:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"{plane.url} is not ready within 60 s")
        time.sleep(0.05)
