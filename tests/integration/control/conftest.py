"""A control plane of the tests' own: API and worker as processes, a small content directory, one for the session."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

CONTENT = Path(__file__).parents[1] / "content"
DEADLINE_SECONDS = 90.0  # generous, since it costs only what fails
TERMINAL = {"succeeded", "failed", "canceled", "timed_out", "interrupted", "rejected"}


@dataclasses.dataclass
class ControlPlane:
    """A running control plane."""

    home: Path
    database_url: str
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)
    extra_environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @staticmethod
    def until(what: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
        """The first true answer, or a failure that says what it was last."""
        deadline = time.monotonic() + seconds
        while not (answer := what()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; the last answer was {answer!r}")
            time.sleep(0.02)
        return answer

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BAZARUTO_", "COLUMNS"))}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "BAZARUTO_HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "configuration"),  # whoever runs the tests may be logged in elsewhere
            "BAZARUTO_CONTROL_DATABASE_URL": self.database_url,
            "BAZARUTO_CONTROL_PORT": str(self.port),
            "BAZARUTO_CONTENT_DIRECTORY": str(CONTENT),
            "AWS_SECRET_ACCESS_KEY": "a planted secret",
            **self.extra_environment,
        }

    @property
    def token(self) -> str:
        return (self.home / "control" / "admin.token").read_text(encoding="utf-8").strip()

    @property
    def url(self) -> str:
        return f"{'https' if self._ca_file else 'http'}://127.0.0.1:{self.port}"

    @property
    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        trusted = ssl.create_default_context(cafile=self._ca_file)
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=trusted)

    @property
    def _ca_file(self) -> str | None:
        return self.extra_environment.get("BAZARUTO_CONTROL_CA_FILE")

    def cli(self, *words: str | bytes, **changed: str) -> subprocess.CompletedProcess[str]:
        """`bazaruto WORDS…`, as a person would type it."""
        environment = {**self.environment, **changed}
        return subprocess.run(
            ["bazaruto", *words], env=environment, capture_output=True, text=True, timeout=90, check=False
        )

    def start(self, what: str) -> subprocess.Popen[bytes]:
        log = (self.home / "log" / f"{what}.out").open("ab")
        process = subprocess.Popen(["bazaruto", what], env=self.environment, stdout=log, stderr=log)
        self.processes[what] = process
        if what == "serve":
            self.until(self._answers)
        return process

    def _answers(self) -> bool:
        assert self.processes["serve"].poll() is None, (self.home / "log" / "serve.out").read_text()
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, what: str) -> int:
        process = self.processes.pop(what)
        process.terminate()
        return process.wait(30)

    def launch(self, operation: str, environment: str = "local", **request: Any) -> dict[str, Any]:
        answer = self.http.post("/api/v1/runs", json={"operation": operation, "environment": environment, **request})
        assert answer.status_code == 202, answer.text
        run: dict[str, Any] = answer.json()
        return run

    def run(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/api/v1/runs/{run}").json()
        return found

    def finished(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.until(lambda: (now := self.run(run))["status"] in TERMINAL and now)
        return found

    def with_status(self, run: str, status: str) -> dict[str, Any]:
        found: dict[str, Any] = self.until(lambda: (now := self.run(run))["status"] == status and now)
        return found

    def events(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get(f"/api/v1/runs/{run}/events", params={"limit": 5000}).json()[
            "events"
        ]
        return found

    def in_task(self, run: str, task: str) -> None:
        """Wait until an event proves that the run is in this task."""
        self.until(lambda: any(e["task"] == task and e["type"] == "runner_on_start" for e in self.events(run)))

    def directory(self, run: str) -> Path:
        return self.home / "control" / "runs" / run

    def guard(self, run: str) -> int:
        pid: int = json.loads((self.directory(run) / "guard.json").read_text())["pid"]
        return pid

    def supervisor(self, run: str) -> int:
        pid: int = json.loads((self.directory(run) / "supervisor.json").read_text())["pid"]
        return pid


@pytest.fixture(scope="session")
def control_plane(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """API and worker on a database of their own; shared, since every test launches runs of its own."""
    yield from started(postgres_cluster, tmp_path_factory.mktemp("control"))


@pytest.fixture
def control_plane_of_ones_own(postgres_cluster: Any, tmp_path: Path) -> Iterator[ControlPlane]:
    """The same for one test, which may do to it what it likes."""
    yield from started(postgres_cluster, tmp_path)


def started(postgres_cluster: Any, directory: Path, **variables: str) -> Iterator[ControlPlane]:
    """A control plane with these settings, as long as it is iterated over."""
    home = directory / "a home"
    for part in ("log", "backups"):
        (home / part).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    database = postgres_cluster.create_database()
    plane = ControlPlane(home, postgres_cluster.url_of(database), port, extra_environment=variables)
    migrated = plane.cli("migrate")
    assert migrated.returncode == 0, migrated.stderr
    plane.start("serve")
    plane.start("worker")
    yield plane
    for what in list(plane.processes):
        plane.stop(what)
    postgres_cluster.drop_database(database)
