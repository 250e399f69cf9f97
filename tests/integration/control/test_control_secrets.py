"""A planted secret is found nowhere: not while a run fails in every way, not after it was ended in any way."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bazaruto import processes
from bazaruto.control.engine.play import volatile_directory

from .conftest import ControlPlane
from .secret_search import Found, SecretSearch

pytestmark = pytest.mark.embedded

CONTENT = Path(__file__).parents[1] / "content_secrets"
VAULT_PASSWORD = "VAULTKEYplanted3"
PASSWORD = "PARAMplanted7\"x\\y'z $w{{ 1 }}%&ä"
KEY = "-----BEGIN KEY-----\nKEYplantedLine1\nKEYplantedLine2" + "x" * 130 + "KEYplantedEnd\n-----END KEY-----\n"
PARAMETERS = {"password": PASSWORD, "key": KEY}
IN_VAULTS = ["VAULTplanted8/&secret", "NESTEDplanted6value", "INLINEplanted9+token"]
URL_PASSWORD = "URLplanted5word"
KEY_LINES = ["KEYplantedLine1", "KEYplantedLine2", "KEYplantedEnd"]
SEARCH = SecretSearch([PASSWORD, *KEY_LINES, *IN_VAULTS, URL_PASSWORD, VAULT_PASSWORD])


@dataclasses.dataclass
class Node:
    """A control plane with a user's directory and a directory for temporary files of its own."""

    plane: ControlPlane
    base: Path
    cluster: Any

    def launch(self, operation: str, **more: Any) -> str:
        run: str = self.plane.launch(operation, parameters={**PARAMETERS, **more.pop("parameters", {})}, **more)["id"]
        return run

    def hold(self, operation: str = "hold") -> str:
        """A run that is provably in a task which has all the secrets, and left them in many places."""
        run = self.launch(operation, parameters={"file": str(self.base / "go")})
        self.plane.in_task(run, "Wait with it in a module's arguments")
        waiting = f"BAZARUTO_RUN_ID={run}".encode()
        self.plane.until(lambda: _with_environment(waiting, b"timeout"))
        return run

    def everywhere(self, run: str) -> list[Found]:
        """Whatever secret can be found now."""
        return [
            *SEARCH.tree(self.base, but=[self.base / "vault-password"]),
            *SEARCH.tree(*self.left_outside()),
            *SEARCH.tree(volatile_directory(run)),
            *SEARCH.processes(),
            *SEARCH.database(self.plane.database_url),
            *SEARCH.answers(self.plane.http, {"id": run, "name": "spill"}),
        ]

    def left_outside(self) -> Iterator[Path]:
        """What Ansible may have left in places of the user and of everybody, since this control plane began."""
        home = Path.home()
        places = [(home / ".ansible" / "tmp", "*"), (home / ".ansible_async", "*"), (home / ".ansible" / "cp", "*")]
        since = (self.base / "vault-password").stat().st_mtime
        for place, names in (*places, (Path("/tmp"), "ansible*"), (Path("/var/tmp"), "ansible*")):
            for path in place.glob(names):
                try:
                    young = path.lstat().st_mtime >= since
                except FileNotFoundError:
                    continue
                if young:
                    yield path

    def identity(self, run: str, file: str) -> processes.ProcessIdentity:
        values = json.loads((self.plane.directory(run) / file).read_text())
        return processes.ProcessIdentity(**values)


@pytest.fixture(scope="module")
def node(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    base = tmp_path_factory.mktemp("secrets")
    for part in ("home/log", "home/backups", "temporary"):
        (base / part).mkdir(parents=True)
    password_file = base / "vault-password"
    password_file.write_text(VAULT_PASSWORD + "\n")
    password_file.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    database = postgres_cluster.create_database()
    plane = ControlPlane(base / "home", postgres_cluster.url_of(database), port)
    plane.extra_environment = {
        "BAZARUTO_CONTENT_DIRECTORY": str(CONTENT),
        "BAZARUTO_VAULT_PASSWORD_FILE": str(password_file),
        "TMPDIR": str(base / "temporary"),
    }
    migrated = plane.cli("migrate")
    assert migrated.returncode == 0, migrated.stderr
    plane.start("serve")
    plane.start("worker")
    yield Node(plane, base, postgres_cluster)
    for what in list(plane.processes):
        plane.stop(what)
    postgres_cluster.drop_database(database)


def _with_environment(mark: bytes, command: bytes) -> bool:
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            if command in (proc / "cmdline").read_bytes() and mark in (proc / "environ").read_bytes():
                return True
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return False


@pytest.mark.parametrize(
    "write",
    [
        lambda text: text,
        lambda text: json.dumps({"a": [json.dumps(text)]}),
        lambda text: text.encode().hex(),
        lambda text: base64.encodebytes(b"12345678" * 8 + text.encode()).decode(),
        lambda text: "\n".join(text[index : index + 4] for index in range(0, len(text), 4)),
    ],
)
def test_the_search_finds_what_is_there(write: Callable[[str], str], tmp_path: Path) -> None:
    for secret in (PASSWORD, *IN_VAULTS, URL_PASSWORD):
        (tmp_path / "planted").write_text(write(secret))
        assert SEARCH.tree(tmp_path), secret


def test_the_search_finds_what_a_task_says_without_no_log_where_nothing_is_redacted(node: Node, tmp_path: Path) -> None:
    censored, told = (node.plane.finished(node.launch(operation))["id"] for operation in ("censor", "tell"))
    assert node.everywhere(censored) == []
    assert "***" in (node.plane.directory(told) / "stdout.log").read_text()
    # The same playbooks, by hand: what the run was told aloud is there for the search to find.
    for operation, expected in (("censor", False), ("tell", True)):
        output = tmp_path / operation
        variables = tmp_path / f"{operation}.json"
        variables.write_text(json.dumps({"planted_password": {"__ansible_unsafe": PASSWORD}, "planted_key": KEY}))
        _by_hand(node, operation, variables, output)
        assert bool(SEARCH.tree(output)) is expected


def _by_hand(node: Node, operation: str, variables: Path, output: Path) -> None:
    words = ["ansible-playbook", "-i", "inventories/local", f"playbooks/{operation}.yml", "-e", f"@{variables}"]
    environment = {**node.plane.environment, "ANSIBLE_VAULT_PASSWORD_FILE": str(node.base / "vault-password")}
    with output.open("wb") as file:
        subprocess.run(words, cwd=CONTENT, env=environment, stdout=file, stderr=file, check=True, timeout=60)


def test_a_run_that_fails_in_every_way_at_vvv_shows_no_secret(node: Node) -> None:
    run = node.launch("spill", diff=True)
    ended = node.plane.finished(run)
    assert ended["status"] == "failed", ended
    assert ended["error"].startswith('Task "Fail to reach ***" could not reach localhost: ')
    assert ended["result"] == {"password": "***", "names": {"***": "***\n" * 4}}
    events = node.plane.events(run)
    failed = {event["task"] for event in events if event["type"] in ("runner_on_failed", "runner_on_unreachable")}
    assert len(failed) == 17, f"each task but those that only say something: {failed}"
    output = (node.plane.directory(run) / "stdout.log").read_text()
    assert "EXEC /bin/sh -c" in output, "it was a run at -vvv"
    assert output.count("***") > 100
    assert "http://bazaruto:***@127.0.0.1:1" in output
    assert node.everywhere(run) == []


def test_while_a_run_has_a_secret_it_lies_only_in_files_of_its_private_directory(node: Node) -> None:
    run = node.hold()
    private = node.plane.directory(run) / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    inside = SEARCH.tree(private)
    assert inside, "the search sees what it must see"
    for path in {Path(found.where) for found in inside}:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert SEARCH.processes() == []
    outside = [found.where for found in node.everywhere(run) if not found.where.startswith(str(private))]
    elsewhere = [Path.home() / ".ansible", Path.home() / ".ansible_async", node.base / "home" / "control" / "facts"]
    for where in outside:
        assert any(Path(where).is_relative_to(place) for place in elsewhere), where
    for where in outside:
        assert any(not stat.S_IMODE(part.stat().st_mode) & 0o077 for part in (Path(where), *Path(where).parents[:2])), (
            where
        )
    (node.base / "go").touch()
    assert node.plane.finished(run)["status"] == "succeeded"
    (node.base / "go").unlink()
    assert node.everywhere(run) == []


ENDINGS: dict[str, tuple[str, Callable[[Node, str], None]]] = {}


def ending(status: str) -> Callable[[Callable[[Node, str], None]], Callable[[Node, str], None]]:
    def named(how: Callable[[Node, str], None]) -> Callable[[Node, str], None]:
        ENDINGS[how.__name__.strip("_")] = status, how
        return how

    return named


@ending("timed_out")
def _limit(node: Node, run: str) -> None:
    node.plane.until(lambda: node.plane.run(run)["status"] != "running")


@ending("canceled")
def _cancel(node: Node, run: str) -> None:
    assert node.plane.http.post(f"/api/v1/runs/{run}/cancel", json={"reason": "enough"}).status_code == 202


@ending("interrupted")
def _supervisor_told_to_stop(node: Node, run: str) -> None:
    processes.send(node.identity(run, "supervisor.json"), signal.SIGTERM)


@ending("interrupted")
def _supervisor_killed(node: Node, run: str) -> None:
    processes.send(node.identity(run, "supervisor.json"), signal.SIGKILL)


@ending("interrupted")
def _guard_and_supervisor_killed(node: Node, run: str) -> None:
    for file in ("guard.json", "supervisor.json"):
        processes.send(node.identity(run, file), signal.SIGKILL)


@ending("interrupted")
def _everything_killed(node: Node, run: str) -> None:
    worker = node.plane.processes.pop("worker")
    api = node.plane.processes.pop("serve")
    guard = node.identity(run, "guard.json")
    family = [guard, *processes.descendants(guard.pid)]
    for process in (worker, api):
        process.kill()
    for member in family:
        processes.send(member, signal.SIGKILL)
    for process in (worker, api):
        process.wait(10)
    node.plane.start("serve")
    node.plane.start("worker")


@pytest.mark.parametrize("how", ENDINGS)
def test_after_any_end_nothing_of_a_secret_is_left(how: str, node: Node) -> None:
    status, end = ENDINGS[how]
    run = node.hold("hold_briefly" if how == "limit" else "hold")
    left = SEARCH.tree(*node.left_outside(), node.base / "home" / "control" / "facts")
    assert len({found.where for found in left}) >= 3, f"a fact, a result, a module's arguments: {left}"
    end(node, run)
    ended = node.plane.finished(run)
    assert ended["status"] == status, ended
    assert not (node.plane.directory(run) / "private").exists()
    assert node.everywhere(run) == []


def test_the_databases_own_files_hold_no_secret(node: Node) -> None:
    run = node.launch("tell")
    node.plane.finished(run)
    assert SEARCH.tree(node.cluster.cluster.directory) == []


def test_a_vault_with_another_password_fails_the_run_before_anything_is_done(node: Node) -> None:
    ended = node.plane.finished(node.launch("tell", environment="wrong"))
    assert ended["status"] == "failed"
    assert ended["error"].startswith("Nothing was done: ")
    assert "cannot be decrypted: the vault password is not the one it was made with" in ended["error"]
    assert node.plane.events(ended["id"]) == []


def test_a_vault_password_that_others_may_read_is_refused(node: Node) -> None:
    password_file = node.base / "vault-password"
    password_file.chmod(0o644)
    ended = node.plane.finished(node.launch("tell"))
    password_file.chmod(0o600)
    assert ended["status"] == "failed"
    assert f"can be read by others: `chmod 0600 {password_file}`" in ended["error"]


def test_a_secret_too_short_to_be_redacted_is_refused(node: Node) -> None:
    request = {"operation": "tell", "environment": "local", "parameters": {"password": "abc", "key": KEY}}
    answer = node.plane.http.post("/api/v1/runs", json=request)
    assert answer.status_code == 422
    wrong = {"field": "parameters.password", "message": "must be at least 4 characters long: less cannot be redacted"}
    assert answer.json()["errors"] == [wrong]
    assert '"abc"' not in answer.text


def test_no_run_leaves_a_core_file(node: Node) -> None:
    run = node.hold()
    for file in ("guard.json", "supervisor.json"):
        limits = Path("/proc", str(node.identity(run, file).pid), "limits").read_text()
        assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
    os.kill(node.identity(run, "supervisor.json").pid, signal.SIGABRT)
    assert node.plane.finished(run)["status"] == "interrupted"
    assert node.everywhere(run) == []
