"""One real host for all tests of this folder, and runs that work on it."""

from __future__ import annotations

import dataclasses
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bazaruto import processes
from bazaruto.control.engine import remote, rundir, surroundings
from tests.lab import image, needs
from tests.lab.host import Host
from tests.lab.lab import Lab

REPOSITORY = Path(__file__).parents[2]
PLAYBOOKS = Path(__file__).parent / "playbooks"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder works on one host, in one test process; without it, each test says why."""
    reason = needs.missing() or (None if image.is_complete() else "there is no image of a host: run `make test-hosts`")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.hosts)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A booted host with PostgreSQL and our code, and a user without rights beside root: both let our key in."""
    lab = Lab(tmp_path_factory.mktemp("home") / "lab" / "tests")
    try:
        [booted] = lab.up(["db1"])
        booted.run("apt-get install -qq --no-install-recommends postgresql-15 python3-psycopg", seconds=250)
        booted.copy(REPOSITORY / "app", "/opt/bazaruto/app")
        booted.run("useradd --create-home --shell /bin/sh guest")
        booted.run(
            "cp -r /home/debian/.ssh /root && cp -r /home/debian/.ssh /home/guest && chown -R guest: /home/guest"
        )
        booted.run("chown -R root: /root/.ssh")
        yield booted
    finally:
        lab.down()


@dataclasses.dataclass
class Run:
    """One run as its guard would play it, without the guard."""

    directory: rundir.RunDirectory
    environment: dict[str, str]
    inventory: Path

    @property
    def id(self) -> str:
        return self.directory.path.name

    def start(self, playbook: Path, **variables: Any) -> subprocess.Popen[str]:
        """Play it, and return while it plays."""
        given = json.dumps({"bazaruto_run_id": self.id, **variables})
        return subprocess.Popen(
            ["ansible-playbook", "-i", str(self.inventory), str(playbook), "-e", given],
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def play(self, playbook: Path, **variables: Any) -> tuple[int, str]:
        """Play it to its end: the exit code, and what it said, in one line."""
        process = self.start(playbook, **variables)
        said, _ = process.communicate(timeout=120)
        return process.returncode, " ".join(said.split())

    def units(self) -> list[dict[str, str]]:
        """What was written down before it started."""
        path = remote.units_file(self.directory)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pattern(self) -> str:
        return f"bazaruto-{self.id}-*"


@pytest.fixture
def run(host: Host, tmp_path: Path) -> Run:
    """A run on the host, connected to as root."""
    return make_run(host, tmp_path)


def make_run(host: Host, home: Path, user: str = "root") -> Run:
    """A run's directory as the worker makes it, with an inventory of the one host."""
    home.mkdir(exist_ok=True)
    number = f"20261123-120000-{secrets.token_hex(3)}"
    inventory = home / f"hosts-{user}.yml"
    variables = {
        "ansible_host": host.address,
        "ansible_user": user,
        "ansible_ssh_common_args": host.ssh_options,
        "ansible_python_interpreter": "/usr/bin/python3",
        "bazaruto_environment": "hosts",
        "database_backup_connection": {"host": "/var/run/postgresql"},
        "database_backup_database": "bazaruto",
        "database_backup_directory": "/var/backups/bazaruto",
        "database_restore_connection": {"host": "/var/run/postgresql"},
        "database_restore_database": "bazaruto",
    }
    hosts = {"database": {"hosts": {host.name: variables}}, "backup": {"hosts": {host.name: {}}}}
    inventory.write_text(json.dumps({"all": {"children": hosts}}))
    directory = rundir.RunDirectory(home / "control" / "runs" / number)
    spec = rundir.Spec(number, "sample", "hosts", str(REPOSITORY), "", str(inventory), 60.0)
    directory.create(spec, {})
    environment = {
        **surroundings.environment(home, REPOSITORY, number),
        remote.UNITS_VARIABLE: str(remote.units_file(directory)),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": tempfile.mkdtemp(prefix="bz-"),  # short: sockets lie in it
    }
    return Run(directory, environment, inventory)


def ask(run: Run, *hosts: str) -> dict[str, list[dict[str, str]]]:
    """`python -m bazaruto.control.engine.remote`, as a person would call it."""
    argv = [sys.executable, "-m", "bazaruto.control.engine.remote", str(run.directory.path), *hosts]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    answer: dict[str, list[dict[str, str]]] = json.loads(done.stdout)
    return answer


def kill(process: subprocess.Popen[str]) -> str:
    """Kill a playbook with its workers and their ssh: nobody is left here who could tell the host. What it said."""
    identity = processes.identify(process.pid)
    family = [*([identity] if identity else []), *processes.descendants(process.pid)]
    for member in family:
        processes.send(member, signal.SIGKILL)
    processes.wait_all(family, time.monotonic() + 5)
    return process.communicate()[0]
