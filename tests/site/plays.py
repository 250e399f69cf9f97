"""Plays of the site, run as a person runs them, and what they did: task by task and host by host."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SITE = REPOSITORY / "playbooks" / "site.yml"
SECONDS = 900


@dataclasses.dataclass(frozen=True)
class Played:
    """What one run of a playbook did."""

    rc: int
    changed: frozenset[tuple[str, str, str]]  # play, task, host
    failed: dict[str, str]  # host → what it said
    unreachable: frozenset[str]
    said: str  # everything, in one line

    def __str__(self) -> str:
        changes = "".join(f"\n  {host}: {play}: {task}" for play, task, host in sorted(self.changed))
        failures = "".join(f"\n  {host}: {text}" for host, text in sorted(self.failed.items()))
        return f"exit status {self.rc}; changed:{changes or ' nothing'}\nfailed:{failures or ' nothing'}"


def play(*arguments: str, inventory: str = "lab", playbook: Path = SITE, **environment: str) -> Played:
    """Run site.yml, or another playbook, with these arguments beside the inventory."""
    settings = {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        command(*arguments, inventory=inventory, playbook=playbook),
        cwd=REPOSITORY,
        env={**os.environ, **settings, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return _read(done.returncode, done.stdout, done.stderr)


def command(*arguments: str, inventory: str = "lab", playbook: Path = SITE) -> list[str]:
    """The command line of that."""
    program = str(Path(sys.executable).parent / "ansible-playbook")
    return [program, "-i", f"inventories/{inventory}", str(playbook), *arguments]


def _read(rc: int, output: str, errors: str) -> Played:
    said = " ".join(f"{output} {errors}".split())
    start = output.find("{\n")
    if start < 0:  # it ended before its first task
        return Played(rc, frozenset(), {}, frozenset(), said)
    results = list(_results(json.JSONDecoder().raw_decode(output[start:])[0]))
    return Played(
        rc=rc,
        changed=frozenset((name, task, host) for name, task, host, result in results if result.get("changed")),
        failed={host: _message(result) for _, _, host, result in results if result.get("failed")},
        unreachable=frozenset(host for _, _, host, result in results if result.get("unreachable")),
        said=said,
    )


def _results(output: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Play, task, host and result of everything that was done; a name that occurs twice in a play is counted."""
    for entry in output["plays"]:
        seen: dict[str, int] = {}
        for task in entry["tasks"]:
            name = task["task"]["name"]
            seen[name] = seen.get(name, 0) + 1
            for host, result in task["hosts"].items():
                yield entry["play"]["name"], f"{name} ({seen[name]})", host, result


def _message(result: Mapping[str, Any]) -> str:
    each = [item.get("msg", "") for item in result.get("results", []) if item.get("failed")]
    return " ".join(str(text) for text in ([*each] or [result.get("msg", "")]))
