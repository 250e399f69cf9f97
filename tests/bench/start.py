"""How long until a run's first task begins: bare ansible-playbook, a cold ansible_runner.run, and an accepted run."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg

from . import plays
from .figures import Figure

PLAYBOOK = """
- name: Do one small thing
  hosts: all
  gather_facts: false
  tasks:
    - name: The first task
      ansible.builtin.ping:
"""
INVENTORY = """
all:
  hosts:
    localhost:
      ansible_connection: local
      ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""
OPERATIONS = """
operations:
  first_task:
    summary: Do one small thing
    playbook: first_task.yml
    role: nothing
    effect: read
    launch: operator
    timeout_seconds: 60
""" + plays.OPERATION.lstrip("\n")
ARGUMENTS = """
argument_specs:
  main:
    short_description: Takes no argument
    options: {}
"""
# Writes down when the first task begins: in all three ways by the same plugin, with the same clock.
STAMP = """
import os, time
from pathlib import Path
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "stamp"

    def v2_playbook_on_task_start(self, task, is_conditional):
        home = Path(os.environ["BAZARUTO_HOME"])
        (home / "stamp.partial").write_text(str(time.monotonic()))
        (home / "stamp.partial").rename(home / "stamp")
"""
RUNNER = """
import ansible_runner, sys
runner = ansible_runner.run(private_data_dir=sys.argv[1], project_dir=sys.argv[2],
    playbook="playbooks/first_task.yml", inventory=sys.argv[2] + "/inventories/local", quiet=True)
sys.exit(runner.rc)
"""


@dataclass(frozen=True)
class Took:
    """Seconds since the start, or since the request was sent."""

    first_task: float
    whole: float


def measure(environment: dict[str, str], database_url: str, port: int, pairs: int) -> list[Figure]:
    """Alternate the three `pairs` times each, on a control plane of the benchmark's own beside a small content."""
    with tempfile.TemporaryDirectory(prefix="bazaruto-start-") as name:
        home = Path(name) / "home"
        (home / "log").mkdir(parents=True)
        content = _content(Path(name) / "content")
        own = {
            **{key: value for key, value in environment.items() if not key.startswith(("BAZARUTO_", "PYTHON"))},
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
            "BAZARUTO_HOME": str(home),
            "BAZARUTO_CONTROL_DATABASE_URL": database_url,
            "BAZARUTO_CONTROL_PORT": str(port),
            "BAZARUTO_CONTROL_REQUESTS_PER_SECOND": "0",  # it is to be measured, not held back
            "BAZARUTO_CONTENT_DIRECTORY": str(content),
            "ANSIBLE_CONFIG": str(content / "ansible.cfg"),
        }
        with _control_plane(own) as http:
            sides: dict[str, Callable[[], Took]] = {
                "bare": lambda: _process(_bare(content), own, content),
                "runner": lambda: _process(
                    [sys.executable, "-c", RUNNER, tempfile.mkdtemp(dir=name), str(content)], own, content
                ),
                "ours": lambda: _accepted(http, home),
            }
            for take in sides.values():
                take()  # once for the disk
            took: dict[str, list[Took]] = {side: [] for side in sides}
            for _ in range(max(pairs, 7)):
                for side, take in sides.items():
                    took[side].append(take())
            many = plays.measure(_bare(content), {**own, "PATH": os.defpath}, content, http, pairs)
    first = {side: statistics.median(each.first_task for each in all_of) for side, all_of in took.items()}
    whole = {side: statistics.median(each.whole for each in all_of) for side, all_of in took.items()}
    return [
        Figure(
            "accept → first task ÷ bare ansible-playbook", first["ours"], first["bare"], "s", "<= 0.6, must +0.15 s"
        ),
        Figure("accept → first task ÷ cold ansible_runner.run", first["ours"], first["runner"], "s", ""),
        Figure("accept → recorded end ÷ bare ansible-playbook", whole["ours"], whole["bare"], "s", ""),
        Figure("accept → recorded end ÷ cold ansible_runner.run", whole["ours"], whole["runner"], "s", ""),
        *many,
    ]


def database_beside(database_url: str, superuser: str) -> str:
    """An empty database for a control plane of the benchmark's own, whose worker takes no other's runs."""
    with psycopg.connect(superuser, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bazaruto_start_bench OWNER bazaruto")
    return urlsplit(database_url)._replace(path="/bazaruto_start_bench").geturl()


def _content(directory: Path) -> Path:
    for path, text in {
        "playbooks/first_task.yml": PLAYBOOK,
        "playbooks/many_tasks.yml": plays.PLAYBOOK,
        "playbooks/operations.yml": OPERATIONS,
        "playbooks/callback_plugins/stamp.py": STAMP,
        "roles/nothing/meta/argument_specs.yml": ARGUMENTS,
        "inventories/local/hosts.yml": INVENTORY,
        "ansible.cfg": "[defaults]\nhost_key_checking = true\npipelining = true\n",
    }.items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip(), encoding="utf-8")
    return directory


@contextlib.contextmanager
def _control_plane(environment: dict[str, str]) -> Iterator[httpx.Client]:
    bazaruto = str(Path(sys.executable).parent / "bazaruto")
    home = Path(environment["BAZARUTO_HOME"])
    subprocess.run([bazaruto, "migrate"], env=environment, check=True)
    with (home / "log" / "out").open("ab") as out:
        parts = [
            subprocess.Popen([bazaruto, part], env=environment, stdout=out, stderr=out) for part in ("serve", "worker")
        ]
        try:
            token = home / "control" / "admin.token"
            _until(token.exists)
            url = f"http://127.0.0.1:{environment['BAZARUTO_CONTROL_PORT']}"
            headers = {"Authorization": f"Bearer {token.read_text(encoding='utf-8').strip()}"}
            with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:
                _until(lambda: _ready(http))
                time.sleep(2)  # until the worker has imported Ansible, as one that runs for days has
                yield http
        finally:
            for part in parts:
                part.terminate()
            for part in parts:
                part.wait()


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit("the control plane of the benchmark did not do its part within 60 s")
        time.sleep(0.002)


def _bare(content: Path) -> list[str]:
    playbook = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) or "ansible-playbook"
    return [playbook, "-i", str(content / "inventories" / "local"), str(content / "playbooks" / "first_task.yml")]


def _process(words: list[str], environment: dict[str, str], content: Path) -> Took:
    stamp = Path(environment["BAZARUTO_HOME"]) / "stamp"
    stamp.unlink(missing_ok=True)
    started = time.monotonic()
    subprocess.run(words, env=environment, cwd=content, stdout=subprocess.DEVNULL, check=True)
    ended = time.monotonic()
    return Took(float(stamp.read_text(encoding="utf-8")) - started, ended - started)


def _accepted(http: httpx.Client, home: Path) -> Took:
    stamp = home / "stamp"
    stamp.unlink(missing_ok=True)
    answer = http.post("/api/v1/runs", json={"operation": "first_task", "environment": "local"})
    accepted = time.monotonic()
    if answer.status_code != 202:
        raise SystemExit(f"the benchmark's run was not accepted: {answer.text}")
    url = f"/api/v1/runs/{answer.json()['id']}"
    _until(stamp.exists)  # no request meanwhile: it would be paid for by the run
    _until(lambda: http.get(url).json()["status"] == "succeeded")
    return Took(float(stamp.read_text(encoding="utf-8")) - accepted, time.monotonic() - accepted)
