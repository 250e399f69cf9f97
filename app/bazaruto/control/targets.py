"""Which hosts an operation would touch: a limit that leaves it none is refused before anything starts.

Ansible itself is asked, in a process of its own (list_hosts.py), since inventories may run plugins and scripts.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bazaruto.control.content import Snapshot
from bazaruto.control.engine import surroundings

ANSWER_SECONDS = 20.0  # how long one inventory may take
TURN_SECONDS = 10.0  # how long a launch waits while others ask: one process at a time
KEPT_SECONDS, KEPT_ANSWERS = 60.0, 256  # an inventory that is computed may answer differently later

_Key = tuple[str, str, str, str | None]


class UnmatchedLimit(Exception):
    """The limit leaves no host, or a part of it matches none; the text says how to see the hosts."""


class BrokenInventory(Exception):
    """Ansible cannot read the inventory; the text has its words."""


class TargetsUnknown(Exception):
    """It could not be found out in time; later it may be."""


class Targets:
    """Answers, and remembers for a while. May be shared by threads."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._turn = threading.Lock()
        self._answers: collections.OrderedDict[_Key, tuple[float, dict[str, Any]]] = collections.OrderedDict()

    def hosts(self, content: Snapshot, operation: str, environment: str, limit: str | None) -> list[str]:
        """The hosts it would touch, or might where that depends on its parameters.

        Raises UnmatchedLimit, BrokenInventory or TargetsUnknown.
        """
        key = (content.digest, operation, environment, limit)
        answer = self._known(key) or self._ask(key, content)
        see = f"`ansible-inventory -i inventories/{environment} --graph` shows the hosts"
        if "broken" in answer:
            raise BrokenInventory(f"its inventory cannot be read: {answer['broken']}")
        if "unmatched" in answer:
            raise UnmatchedLimit(f"{answer['unmatched']} matches no host of {environment}; {see}")
        if not answer["hosts"] and limit is not None:
            playbook = f"playbooks/{content.catalogue.operations[operation].playbook}"
            see = f"`ansible-playbook -i inventories/{environment} {playbook} --list-hosts` shows its hosts"
            raise UnmatchedLimit(f"none of the hosts of {operation} is among them; {see}")
        hosts: list[str] = answer["hosts"]
        return hosts

    def _known(self, key: _Key) -> dict[str, Any] | None:
        at, answer = self._answers.get(key, (0.0, None))
        return answer if answer is not None and time.monotonic() - at < KEPT_SECONDS else None

    def _ask(self, key: _Key, content: Snapshot) -> dict[str, Any]:
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise TargetsUnknown("Too many limits are being checked at the moment: try again.")
        try:
            answer = self._known(key)
            if answer is None:
                answer = _listed(self._home, content, *key[1:])
                self._answers[key] = time.monotonic(), answer
                while len(self._answers) > KEPT_ANSWERS:
                    self._answers.popitem(last=False)
            return answer
        finally:
            self._turn.release()


def _listed(home: Path, content: Snapshot, operation: str, environment: str, limit: str | None) -> dict[str, Any]:
    playbook = content.catalogue.playbook(content.catalogue.operations[operation])
    words = [str(content.catalogue.inventory(environment)), str(playbook), *([] if limit is None else [limit])]
    process = subprocess.Popen(
        [sys.executable, "-m", "bazaruto.control.list_hosts", *words],
        env=_environment(home, content.directory),
        cwd=content.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            said, complaint = process.communicate(timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            raise TargetsUnknown(
                f"The inventory of {environment} did not answer within {ANSWER_SECONDS:g} s: "
                f"`ansible-inventory -i inventories/{environment} --graph` shows what it waits for."
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what a plugin of the inventory left running
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        words = complaint.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        return {"broken": words[-1][:500]}
    answer: dict[str, Any] = json.loads(said)
    return answer


def _environment(home: Path, directory: Path) -> dict[str, str]:
    """What a run has too, and nothing of the API's own environment."""
    return {
        **surroundings.environment(home, directory, run=""),
        "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",  # no host at all is a mistake, and no answer
        "ANSIBLE_NOCOLOR": "True",
    }
