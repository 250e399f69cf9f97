"""What recording costs a play of 200 tasks: ours, and ARA's callback, beside bare ansible-playbook."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from .figures import Figure, medians

TASKS = 200
PLAYBOOK = """
- name: Do many small things
  hosts: all
  gather_facts: false
  tasks:
""" + "".join(
    f"    - name: Task {number}\n      ansible.builtin.command: 'true'\n      changed_when: false\n"
    for number in range(TASKS)
)
OPERATION = """
  many_tasks:
    summary: Do many small things
    playbook: many_tasks.yml
    role: nothing
    effect: read
    launch: operator
    timeout_seconds: 600
"""
LOCK = Path(__file__).resolve().parents[2] / "app" / "requirements" / "bench.txt"


def measure(
    bare: list[str], environment: Mapping[str, str], content: Path, http: httpx.Client, pairs: int
) -> list[Figure]:
    """Seconds of the whole play, the three in turn: from the start, or from the launch to the recorded end."""
    words = [*bare[:-1], str(content / "playbooks" / "many_tasks.yml")]
    ara = _ara(Path(environment["BAZARUTO_HOME"]))
    with_ara = [str(ara / "bin" / "ansible-playbook"), *words[1:]]
    took = medians(
        pairs,
        {
            "bare": lambda: _process(words, environment),
            "ours": lambda: _run(http),
            "ara": lambda: _process(with_ara, {**environment, **_ara_settings(ara)}),
        },
    )
    return [
        Figure(f"{TASKS} tasks, launch → recorded end ÷ bare", took["ours"], took["bare"], "s", "<= 1.05"),
        Figure(f"{TASKS} tasks with ARA's callback ÷ bare", took["ara"], took["bare"], "s", ""),
    ]


def _process(words: list[str], environment: Mapping[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(words, env=dict(environment), stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def _run(http: httpx.Client) -> float:
    started = time.monotonic()
    answer = http.post("/api/v1/runs", json={"operation": "many_tasks", "environment": "local"})
    answer.raise_for_status()
    url = f"/api/v1/runs/{answer.json()['id']}/events"
    with http.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=600) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith(("event: end", 'data: {"id"'))]
    if "event: end" not in lines or '"status": "succeeded"' not in lines[-1].replace('":"', '": "'):
        raise SystemExit(f"the benchmark's play did not succeed: {lines[-1:]}")
    return time.monotonic() - started


def _ara(home: Path) -> Path:
    """An environment with the locked ARA beside Ansible, kept for the next time."""
    directory = LOCK.parents[2] / "var" / "bench-ara"
    if not (directory / "bin" / "ara-manage").exists():
        print("installing ARA into var/bench-ara (once)")
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
    environment = {**os.environ, "ARA_BASE_DIR": str(home / "ara")}
    subprocess.run([str(directory / "bin" / "ara-manage"), "migrate"], env=environment, capture_output=True, check=True)
    return directory


def _ara_settings(ara: Path) -> dict[str, str]:
    """As ARA's documentation has it for one machine: its own database, without a server."""
    plugins = subprocess.run(
        [str(ara / "bin" / "python"), "-m", "ara.setup.callback_plugins"], capture_output=True, text=True, check=True
    )
    return {"ANSIBLE_CALLBACK_PLUGINS": plugins.stdout.strip(), "ARA_API_CLIENT": "offline"}
