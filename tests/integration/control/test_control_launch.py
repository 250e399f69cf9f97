"""Launches: from content that cannot change, on hosts that there are, once for each key."""

from __future__ import annotations

import concurrent.futures
import hashlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from bazaruto.control import keys, sealing

from .conftest import CONTENT, ControlPlane

pytestmark = pytest.mark.embedded
RUNS = "/api/v1/runs"
FLEET = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  children:
    app: {hosts: {app1: , app2: , app3: }}
    spare: {hosts: {app3: }}
    database: {hosts: {db1: }}
"""
WHERE = """
- name: Say where this is
  hosts: app
  gather_facts: false
  tasks:
    - name: Return it
      ansible.builtin.set_stats:
        data: {result: {directory: "{{ playbook_dir }}", inventory: "{{ inventory_dir }}", word: first}}
        per_host: false
        aggregate: false
"""
CHOSEN = WHERE.replace("hosts: app", "hosts: \"{{ sample_word | default('app') }}\"")
ENTRY = {"summary": "x", "role": "sample", "effect": "read", "launch": "operator", "timeout_seconds": 60}
PATIENT = {"idle_timeout_seconds": 30, "tolerates": ["unreachable"]}


class Plane(ControlPlane):
    """A control plane with a content directory that tests edit."""

    @property
    def content(self) -> Path:
        return self.home.parent / "content"

    @property
    def environment(self) -> dict[str, str]:
        content = {"BAZARUTO_CONTENT_DIRECTORY": str(self.content)}
        return {**super().environment, **content, "BAZARUTO_SERVER_DRAIN_DELAY": "0s"}

    def post(self, key: str | None = None, **request: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {"operation": "where", "environment": "fleet", **request}
        return self.http.post(RUNS, json=body, headers=headers)

    def write(self, name: str, text: str) -> None:
        path = self.content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", *identity, *words], cwd=self.content, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def ask(self, statement: str, *values: Any) -> list[Any]:
        with psycopg.connect(self.database_url) as connection:
            asked = connection.execute(statement.encode(), values)
            return asked.fetchall() if asked.description else []


@pytest.fixture(scope="module")
def plane(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """An API with content of its own; a worker only where a test starts one."""
    home = tmp_path_factory.mktemp("launch") / "home"
    for part in ("log", "backups"):
        (home / part).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name = postgres_cluster.create_database()
    made = Plane(home, postgres_cluster.url_of(name), port)
    shutil.copytree(CONTENT, made.content)
    made.write("inventories/fleet/hosts.yml", FLEET)
    made.write("inventories/broken/hosts.yml", "all: [what is this")
    made.write("playbooks/where.yml", WHERE)
    made.write("playbooks/chosen.yml", CHOSEN)
    catalogue = yaml.safe_load((CONTENT / "playbooks" / "operations.yml").read_text())
    catalogue["operations"]["where"] = {**ENTRY, **PATIENT, "playbook": "where.yml"}
    chosen = {"playbook": "chosen.yml", "parameters": {"target": {"variable": "sample_word"}}}
    catalogue["operations"]["chosen"] = {**ENTRY, **chosen}
    made.write("playbooks/operations.yml", yaml.safe_dump(catalogue))
    made.git("init", "-q")
    made.git("add", "-A")
    made.git("commit", "-q", "-m", "x")
    assert made.cli("migrate").returncode == 0
    made.start("serve")
    yield made
    for what in list(made.processes):
        made.stop(what)
    postgres_cluster.drop_database(name)


@pytest.fixture
def edited(plane: Plane) -> Iterator[Plane]:
    """The control plane with content that is as it was before, afterwards."""
    yield plane
    plane.git("add", "-A")
    plane.git("reset", "-q", "--hard")


@pytest.fixture
def worker(plane: Plane) -> Iterator[None]:
    """What was accepted before is taken back: it would take long to run."""
    plane.ask("DELETE FROM run_changes")
    plane.ask("DELETE FROM runs")
    plane.start("worker")
    yield
    plane.stop("worker")


def wrong(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


@pytest.mark.parametrize("limit", ["app1", "app*", "app?", "app[0]", "app[1:2]", "app:!app1", "app:&spare", "app3,db1"])
def test_a_limit_that_leaves_a_host_is_taken_as_ansible_means_it(plane: Plane, limit: str) -> None:
    answer = plane.post(limit=limit)
    assert answer.status_code == 202, answer.text
    assert answer.json()["limit"] == limit


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("nosuch", "nosuch matches no host of fleet; `ansible-inventory -i inventories/fleet --graph` shows the hosts"),
        ("app1,nosuch", "nosuch matches no host"),
        ("app:!nosuch", "nosuch matches no host"),
        ("app:!app", "app:!app matches no host"),
        ("app1:&database", "app1:&database matches no host"),
        ("db1", "`ansible-playbook -i inventories/fleet playbooks/where.yml --list-hosts` shows its hosts"),
    ],
)
def test_a_limit_that_leaves_no_host_is_refused_and_nothing_starts(plane: Plane, limit: str, message: str) -> None:
    before = plane.ask("SELECT count(*) FROM runs")
    assert message in wrong(plane.post(limit=limit))["limit"]
    assert plane.ask("SELECT count(*) FROM runs") == before


def test_a_wrong_limit_is_named_together_with_every_other_wrong_field(plane: Plane) -> None:
    answer = plane.post(limit="nosuch", parameters={"colour": "red"}, check="yes")
    assert set(wrong(answer)) == {"limit", "parameters.colour", "check"}


def test_the_command_line_refuses_with_the_words_of_the_api(plane: Plane) -> None:
    said = wrong(plane.post(limit="nosuch"))["limit"]
    done = plane.cli("run", "where", "-e", "fleet", "--limit", "nosuch")
    assert done.returncode == 2
    assert f"limit: {said}" in done.stderr


def test_an_inventory_that_cannot_be_read_is_refused_as_that(plane: Plane) -> None:
    answer = plane.post(environment="broken", limit="app1")
    assert "its inventory cannot be read" in wrong(answer)["environment"]


def test_hosts_that_depend_on_a_parameter_are_left_to_the_play(plane: Plane) -> None:
    answer = plane.post(operation="chosen", limit="db1", parameters={"target": "database"})
    assert answer.status_code == 202, answer.text
    assert "limit" in wrong(plane.post(operation="chosen", limit="nosuch"))


def test_a_run_plays_what_was_there_when_it_was_accepted(edited: Plane) -> None:
    revision = edited.git("rev-parse", "HEAD")
    run = edited.post(limit="app1").json()
    assert (run["revision"], run["dirty"]) == (revision, False)
    edited.write("playbooks/where.yml", WHERE.replace("first", "second"))
    other = edited.post(limit="app1").json()
    assert (other["revision"], other["dirty"]) == (revision, True)
    assert other["content_digest"] != run["content_digest"]
    edited.start("worker")
    try:
        ended, second = edited.finished(run["id"]), edited.finished(other["id"])
    finally:
        edited.stop("worker")
    assert ended["status"] == "succeeded", ended
    assert (ended["result"]["word"], second["result"]["word"]) == ("first", "second")
    store = edited.home / "control" / "content"
    for place in (ended["result"]["directory"], ended["result"]["inventory"]):
        assert Path(place).is_relative_to(store / run["content_digest"][:16])
    assert str(store) not in ended["command"]
    assert "-i inventories/fleet playbooks/where.yml" in ended["command"]


def test_what_the_operation_says_of_its_end_goes_with_the_run(plane: Plane) -> None:
    run = plane.post().json()["id"]
    assert plane.ask("SELECT idle_timeout_seconds, tolerates FROM runs WHERE id = %s", run) == [(30.0, ["unreachable"])]


def test_a_run_whose_content_is_nowhere_ends_as_failed_and_says_so(edited: Plane, worker: None) -> None:
    edited.stop("worker")
    run = edited.post().json()
    edited.write("playbooks/where.yml", WHERE.replace("first", "third"))
    edited.post()  # so that the API does not hold on to the first
    for snapshot in (edited.home / "control" / "content").glob(f"{run['content_digest'][:16]}*"):
        shutil.rmtree(snapshot)
    edited.start("worker")
    ended = edited.finished(run["id"])
    assert ended["status"] == "failed"
    assert f"this node does not have the content {run['content_digest'][:16]} that the run" in ended["error"]


def test_broken_content_refuses_launches_and_nothing_else_until_it_is_mended(edited: Plane, worker: None) -> None:
    marker = edited.home / "go on"
    running = edited.post(operation="slow", environment="local", parameters={"file": str(marker)}).json()["id"]
    edited.in_task(running, "Wait for the file")
    (edited.content / "playbooks" / "where.yml").rename(edited.content / "playbooks" / "lost.yml")
    edited.stop("worker")
    edited.stop("serve")
    edited.start("serve")
    edited.start("worker")
    answer = edited.post(operation="say", environment="local")
    assert answer.status_code == 503
    sentence = (
        f"{edited.content}/playbooks/operations.yml: operations.where: playbook: playbooks/where.yml is not there"
    )
    assert answer.json()["detail"] == sentence
    done = edited.cli("run", "say")
    assert done.returncode == 4
    assert sentence in done.stderr
    assert edited.run(running)["status"] == "running"
    marker.touch()
    assert edited.finished(running)["status"] == "succeeded", "who runs goes on, and is followed by a new worker"
    edited.write("playbooks/where.yml", WHERE)
    assert edited.finished(edited.post(operation="say", environment="local").json()["id"])["status"] == "succeeded"


def test_a_directory_without_any_content_is_refused_at_the_start(plane: Plane, tmp_path: Path) -> None:
    done = plane.cli("serve", BAZARUTO_CONTENT_DIRECTORY=str(tmp_path), BAZARUTO_CONTROL_PORT="1")
    assert done.returncode == 2
    assert f"There is no content in {tmp_path}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_new_operation_and_environment_need_no_restart(edited: Plane) -> None:
    catalogue = yaml.safe_load((edited.content / "playbooks" / "operations.yml").read_text())
    catalogue["operations"]["fresh"] = {**ENTRY, "playbook": "where.yml"}
    edited.write("playbooks/operations.yml", yaml.safe_dump(catalogue))
    edited.write("inventories/second/hosts.yml", FLEET)
    assert edited.post(operation="fresh", environment="second").status_code == 202
    assert "fresh" in edited.cli("operations").stdout


def test_fifty_launches_at_once_with_one_key_are_one_run(plane: Plane) -> None:
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: plane.post("fifty", reason="once"), range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(replayed, key=str) == [None] + ["true"] * 49
    assert plane.ask("SELECT count(*) FROM runs WHERE reason = 'once'") == [(1,)]


def test_a_key_with_another_body_is_refused(plane: Plane) -> None:
    first = plane.post("other", reason="a")
    assert set(wrong(plane.post("other", reason="b"))) == {"Idempotency-Key"}
    again = plane.post("other", reason="a")
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]


def test_the_same_launch_without_a_key_or_with_another_is_another_run(plane: Plane) -> None:
    answers = [plane.post(key, reason="same") for key in ("one", "two", None, None)]
    assert len({answer.json()["id"] for answer in answers}) == 4
    assert not any("idempotency-replayed" in answer.headers for answer in answers)


def test_keys_of_two_people_have_nothing_to_do_with_each_other(plane: Plane) -> None:
    secret = "s" * 43
    digest = hashlib.sha256(secret.encode()).digest()
    token = "INSERT INTO access_tokens (id, name, role, hash) VALUES (%s, 'other', 'admin', %s)"
    plane.ask(token, "0" * 12, digest)
    mine = plane.post("shared", reason="mine")
    headers = {"Authorization": f"Bearer bzr_{'0' * 12}_{secret}", "Idempotency-Key": "shared"}
    theirs = plane.http.post(RUNS, json={"operation": "where", "environment": "fleet"}, headers=headers)
    assert theirs.status_code == 202, theirs.text
    assert theirs.json()["id"] != mine.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\u00e9"])
def test_what_is_no_key_is_refused(plane: Plane, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode("latin-1")}
    answer = plane.http.post(RUNS, json={"operation": "where", "environment": "fleet"}, headers=headers)
    assert wrong(answer) == {"Idempotency-Key": "must be 1 to 255 printable ASCII characters"}


def test_a_refused_launch_uses_no_key_up(plane: Plane) -> None:
    assert set(wrong(plane.post("mended", parameters={"colour": "red"}))) == {"parameters.colour"}
    assert plane.post("mended").status_code == 202


def test_a_launch_sent_again_is_its_run_even_when_it_could_not_be_launched_now(edited: Plane) -> None:
    first = edited.post("kept", limit="app1").json()["id"]
    edited.write("playbooks/operations.yml", "broken")
    again = edited.post("kept", limit="app1")
    assert again.status_code == 202
    assert again.json()["id"] == first
    assert edited.post("new").status_code == 503


def test_keys_are_kept_for_a_day_at_least_and_not_for_ever(plane: Plane) -> None:
    for key, hours in (("young", 25), ("old", 49)):
        plane.post(key)
        aged = "UPDATE idempotency_keys SET created_at = now() - make_interval(hours => %s) WHERE key = %s"
        plane.ask(aged, hours, key)
    plane.post("newest")
    kept = {row[0] for row in plane.ask("SELECT key FROM idempotency_keys")}
    assert kept & {"young", "old", "newest"} == {"young", "newest"}


def test_what_is_stored_of_a_body_does_not_help_to_guess_its_secrets(plane: Plane, tmp_path: Path) -> None:
    body = {"operation": "secret", "environment": "local", "parameters": {"password": "guessable"}}
    assert plane.post("secret", **body).status_code == 202
    rows = plane.ask("SELECT fingerprint FROM idempotency_keys WHERE key = 'secret'")
    asked = {"retry_of": None, "launch": body}
    assert bytes(rows[0][0]) == sealing.load(plane.home).fingerprint(asked), "it is the fingerprint of this body"
    keys.write_key(tmp_path / "control" / "sealing.key")
    assert bytes(rows[0][0]) != sealing.load(tmp_path).fingerprint(asked), "and needs the key of this node"


def test_the_openapi_document_names_the_header(plane: Plane) -> None:
    launch = plane.http.get("/openapi.json").json()["paths"][RUNS]["post"]
    header = next(each for each in launch["parameters"] if each["in"] == "header")
    assert header["name"] == "Idempotency-Key"
    pattern = re.compile(
        header["schema"]["anyOf"][0]["pattern"] if "anyOf" in header["schema"] else header["schema"]["pattern"]
    )
    assert pattern.match("a key")
    assert not pattern.match("")
