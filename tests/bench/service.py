"""What our HTTP conventions cost over bare bottle on waitress, and what a read costs over its query."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from .figures import Figure, alternate

SECONDS = 5
CONNECTIONS = 16
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def measure(pairs: int, home: Path, service_url: str, database_url: str) -> list[Figure]:
    """Throughput and p99 of one trivial route on both stacks, then the median time of one policy's read."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed, and the service is measured with it: apt-get install wrk")
    samples: dict[str, list[tuple[float, float]]] = {"bare": [], "full": []}
    with _Server("bare", home) as bare, _Server("full", home) as full:

        def one(name: str, port: int) -> float:
            samples[name].append(_wrk(port))
            return samples[name][-1][0]

        _wrk(bare.port), _wrk(full.port)  # warm-up, not counted
        ours, theirs = alternate(pairs, lambda: one("full", full.port), lambda: one("bare", bare.port))
    p99 = {name: statistics.median(sample[1] for sample in taken) for name, taken in samples.items()}
    return [
        Figure("service throughput, metrics and logs on ÷ bare bottle+waitress", ours, theirs, "req/s", ">= 0.85"),
        Figure("service p99, metrics and logs on ÷ bare", p99["full"] * 1e3, p99["bare"] * 1e3, "ms", "<= 1.18"),
        _policy_read(pairs, home, service_url, database_url),
    ]


class _Server:
    """One of the two applications, in a process of its own."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home, self.port = name, home, _free_port()

    def __enter__(self) -> _Server:
        module = f"tests.bench.app_{self.name}"
        self.process = subprocess.Popen([sys.executable, "-m", module, str(self.port), str(self.home)])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except ConnectionRefusedError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.02)
            else:
                return self
        raise SystemExit(f"the {self.name} application did not start on port {self.port}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


def _wrk(port: int) -> tuple[float, float]:
    """Requests per second and p99 in seconds."""
    arguments = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", f"http://127.0.0.1:{port}/v1/ping/7"]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", output)
    if rate is None or p99 is None or "Non-2xx" in output:
        raise SystemExit(f"wrk's answer cannot be used: {output}")
    return float(rate[1]), float(p99[1]) * _UNITS[p99[2]]


def _policy_read(pairs: int, home: Path, service_url: str, database_url: str) -> Figure:
    host = service_url.removeprefix("http://")
    client = http.client.HTTPConnection(host)
    password = (home / "secrets" / "demo-password").read_text(encoding="utf-8").strip()
    token = _answer(client, "POST", "/v1/auth/login", body={"email": "admin@bazaruto.example", "password": password})
    headers = {"Authorization": f"Bearer {token['token']}"}
    policy = _answer(client, "GET", "/v1/policies?limit=1", headers)["items"][0]["id"]
    with psycopg.connect(database_url, autocommit=True) as connection:

        def query() -> None:
            connection.execute("SELECT * FROM policies WHERE id = %s", [policy], prepare=True).fetchone()

        def request() -> None:
            _answer(client, "GET", f"/v1/policies/{policy}", headers)

        ours, theirs = alternate(pairs, lambda: _median(request), lambda: _median(query))
    return Figure("read of one policy ÷ its bare query", ours * 1e3, theirs * 1e3, "ms", "")


def _median(call: Callable[[], None], times: int = 500) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _answer(
    client: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: object = None,
) -> dict[str, object]:
    sent = {"Content-Type": "application/json"} | (headers or {})
    client.request(method, path, body=json.dumps(body) if body is not None else None, headers=sent)
    response = client.getresponse()
    text = response.read()
    if response.status >= 300:
        raise SystemExit(f"{method} {path} answered {response.status}: {text[:500]!r}")
    answer = json.loads(text)
    assert isinstance(answer, dict)
    return answer


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
