"""A real `bazarutod serve` and `worker` on a database and a Redis of the session, and clients for each role."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from argon2 import PasswordHasher
from psycopg.rows import dict_row

PASSWORD = "correct horse battery staple"
CHEAP_HASH = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)  # where time is no subject
_numbers = itertools.count(1)


def wait_until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true answer of `what`, which has this long for it."""
    deadline = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@dataclasses.dataclass
class Installation:
    """One home, database and Redis, and the processes started on them."""

    home: Path
    database_url: str
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    def bazarutod(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the CLI to its end."""
        return subprocess.run(
            [sys.executable, "-m", "bazaruto.service.cli", *arguments],
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process that goes on; it ends with the installation."""
        process = subprocess.Popen(
            [sys.executable, "-m", "bazaruto.service.cli", command],
            env=self.environment | environment,
            stdout=subprocess.DEVNULL,
            stderr=(self.home / f"{command}.stderr").open("ab"),
        )
        self.processes.append(process)
        return process

    def serve(self, **environment: str) -> Client:
        """Start `bazarutod serve` and wait until it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = self.start("serve", BAZARUTO_SERVICE_PORT=str(port), **environment)
        client = Client(f"http://127.0.0.1:{port}", process)

        def ready() -> bool:
            assert process.poll() is None, (self.home / "serve.stderr").read_text()
            with contextlib.suppress(httpx.TransportError):
                return client.get("/livez").status_code == 200
            return False

        wait_until(ready)
        return client

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start `bazarutod worker` and wait until it has registered."""
        before = self.one("SELECT coalesce(max(id), 0) AS id FROM procrastinate_workers")["id"]
        process = self.start("worker", **environment)
        wait_until(lambda: self.one("SELECT max(id) > %s AS there FROM procrastinate_workers", before)["there"])
        return process

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Ask the database by hand."""
        with psycopg.connect(self.database_url, row_factory=dict_row, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *values: Any) -> dict[str, Any]:
        """The only row."""
        (row,) = self.rows(statement, *values)
        return row

    def add_user(self, role: str, password_hash: str = CHEAP_HASH) -> str:
        """A new user, by hand; returns the e-mail."""
        email = f"{role}{next(_numbers)}@example.com"
        values = "VALUES (%s, %s, %s, %s)"
        self.rows(
            f"INSERT INTO users (email, name, role, password_hash) {values}", email, f"One {role}", role, password_hash
        )
        return email

    def access_log(self) -> list[dict[str, Any]]:
        """Every line of access.log; each must be JSON."""
        return [json.loads(line) for line in (self.home / "log" / "access.log").read_text().splitlines()]

    def stop(self) -> None:
        """End what was started."""
        for process in self.processes:
            process.kill()
            process.wait()


class Client(httpx.Client):
    """Speaks to one service, as one user or as nobody."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        super().__init__(base_url=url, headers=headers, timeout=20, trust_env=False)
        self.url, self.process, self.token = url, process, token

    def login(self, email: str, password: str = PASSWORD) -> Client:
        """The same service as this user."""
        answer = self.post("/v1/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        return Client(self.url, self.process, answer.json()["token"])

    def terminate(self, seconds: float = 20.0) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@pytest.fixture(scope="session")
def install(
    tmp_path_factory: pytest.TempPathFactory, postgres_cluster: Any, service_template: str, redis_server: Any
) -> Iterator[Callable[..., Installation]]:
    """Makes installations that end with the session."""
    made: list[Installation] = []

    def make(**environment: str) -> Installation:
        home = tmp_path_factory.mktemp("service")
        (home / "log").mkdir()
        (home / "config").mkdir()
        source = Path(__file__).parents[3] / "app/bazaruto/service/default_rules.json"
        shutil.copy(source, home / "config" / "business_rules.json")
        url = postgres_cluster.url_of(postgres_cluster.create_database(service_template))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BAZARUTO_")}
        clean |= {
            "BAZARUTO_HOME": str(home),
            "BAZARUTO_DATABASE_URL": url,
            "BAZARUTO_REDIS_URL": redis_server.url,
            "BAZARUTO_AUTH_ATTEMPTS_PER_ADDRESS": "5000",
            "BAZARUTO_DB_MIN_CONNECTIONS": "1",
            "BAZARUTO_SERVER_DRAIN_DELAY": "0s",
        }
        made.append(Installation(home, url, clean | environment))
        return made[-1]

    yield make
    for installation in made:
        installation.stop()


@pytest.fixture(scope="session")
def shared(install: Callable[..., Installation]) -> Installation:
    """The installation most tests share; no test may count on being alone in it."""
    return install()


@pytest.fixture(scope="session")
def nobody(shared: Installation) -> Client:
    """The shared service, without a token."""
    return shared.serve()


@pytest.fixture(scope="session")
def admin(shared: Installation, nobody: Client) -> Client:
    """An admin of the shared service."""
    return nobody.login(shared.add_user("admin"))


@pytest.fixture(scope="session")
def agent(shared: Installation, nobody: Client) -> Client:
    """An agent of the shared service."""
    return nobody.login(shared.add_user("agent"))


@pytest.fixture(scope="session")
def customer(shared: Installation, nobody: Client) -> Client:
    """A customer of the shared service."""
    return nobody.login(shared.add_user("customer"))


@pytest.fixture(scope="session")
def stranger(shared: Installation, nobody: Client) -> Client:
    """Another customer of the shared service."""
    return nobody.login(shared.add_user("customer"))


def new_policy(staff: Client, holder: Client | str, *, activate: bool = True, **changes: Any) -> dict[str, Any]:
    """A policy of this holder, active unless told otherwise."""
    user_id = holder if isinstance(holder, str) else holder.get("/v1/users/me").json()["id"]
    values = {
        "user_id": user_id,
        "product": "motor",
        "coverage_minor": 1_000_000,
        "premium_minor": 10_000,
        "currency": "EUR",
        "starts_on": "2025-01-01",
        "ends_on": "2099-12-31",
    } | changes
    answer = staff.post("/v1/policies", json=values)
    assert answer.status_code == 201, answer.text
    policy: dict[str, Any] = answer.json()
    if activate:
        answer = staff.post(f"/v1/policies/{policy['id']}/activate")
        assert answer.status_code == 200, answer.text
        policy = answer.json()
    return policy


def claim_on(policy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What a right claim on this policy says."""
    return {
        "policy_id": policy["id"],
        "amount_minor": 1000,
        "currency": policy["currency"],
        "incident_on": "2025-06-01",
        "description": "A stone hit the windscreen",
    } | changes


def wrong_fields(answer: httpx.Response) -> set[str]:
    """The fields a 422 names."""
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    return {error["field"] for error in answer.json()["errors"]}
