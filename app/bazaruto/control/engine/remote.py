"""Ends what a run left on other hosts: killing ssh ends nothing there, stopping the units named for the run does.

Hosts are asked through Ansible itself, with the run's inventory and settings, in a process of its own:
`python -m bazaruto.control.engine.remote RUN_DIRECTORY [HOST…]` prints {"left": […], "stopped": […]}. Any number of
times.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bazaruto.control.engine import ending, rundir, surroundings

PLAYBOOK = Path(__file__).with_name("end_work.yml")
UNITS_VARIABLE = "BAZARUTO_RUN_UNITS"  # in a run's environment: where transient_unit.py writes down what it starts
DEADLINE_SECONDS = 20.0  # until every host has answered
MARGIN_SECONDS = 3.0  # for starting the process that asks, and for ending it
CONNECT_SECONDS = 5
TASK_SECONDS = 15  # of one host; stopping a unit takes up to 4 s
GRACE_SECONDS = 0.5
MOST_FORKS = 50
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
HOST_OF_EVENT = re.compile(rb'"host":"((?:[^"\\]|\\.)+)"')


@dataclasses.dataclass(frozen=True)
class Left:
    """A host that may still be at work for a run."""

    host: str
    reason: str  # one sentence

    def __str__(self) -> str:
        return f"{self.host}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A unit that was still at work, and is no more."""

    host: str
    unit: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """What all hosts answered."""

    left: list[Left]
    stopped: list[Stopped]

    @property
    def hosts_left(self) -> list[str]:
        """As the outcome names them."""
        return [item.host for item in self.left]

    @property
    def sentence(self) -> str | None:
        """What the run's record says of them; None when there is nothing to say."""
        return f"It may still be at work on {'; '.join(map(str, self.left))}." if self.left else None


def units_file(directory: rundir.RunDirectory) -> Path:
    """Where it is written down, before each starts, which units the run starts on which hosts."""
    return directory.path / "units.jsonl"


def hosts_with_units(directory: rundir.RunDirectory) -> set[str]:
    """The hosts where the run started units, also those to which a task was delegated."""
    lines = _content(units_file(directory)).splitlines()
    return {str(json.loads(line)["host"]) for line in lines if line.endswith(b"}")}


def hosts_to_ask(directory: rundir.RunDirectory) -> list[str]:
    """The hosts the run touched, but for this machine, and those where it started units."""
    events = _content(directory.events_file)
    touched = {str(json.loads(b'"%b"' % name)) for name in set(HOST_OF_EVENT.findall(events))}
    return sorted(touched - THIS_MACHINE | hosts_with_units(directory))


def seconds_needed(directory: rundir.RunDirectory) -> float:
    """How long `end_work` may take: nothing when the run touched this machine only."""
    return DEADLINE_SECONDS + MARGIN_SECONDS if hosts_to_ask(directory) else 0.0


def end_work(directory: rundir.RunDirectory, hosts: Iterable[str] | None = None) -> Ended:
    """Stop the run's units on all its hosts, or on these; returns at once when there is none but this machine.

    Never raises because of a host: one that cannot be asked, or where something does not stop, is `left`.
    """
    asked = hosts_to_ask(directory) if hosts is None else sorted(hosts)
    if not asked:
        return Ended([], [])
    argv = [sys.executable, "-m", "bazaruto.control.engine.remote", str(directory.path), *asked]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_SECONDS + MARGIN_SECONDS,
            check=True,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return _nobody(asked, "it was not asked in time")
    except subprocess.CalledProcessError as error:
        return _nobody(asked, f"it could not be asked ({_last_words(error.stderr)})")
    except (OSError, ValueError) as error:
        return _nobody(asked, f"it could not be asked ({type(error).__name__}: {error})")
    return Ended([Left(**item) for item in answer["left"]], [Stopped(**item) for item in answer["stopped"]])


def main(arguments: list[str]) -> int:
    """Ask, and print the answer; nothing that was started for it lives on."""
    directory = rundir.RunDirectory(Path(arguments[1]))
    asked = arguments[2:] or hosts_to_ask(directory)
    ending.become_subreaper()
    answer = _ask(directory, asked) if asked else Ended([], [])
    print(json.dumps(dataclasses.asdict(answer)))
    return 0


def _ask(directory: rundir.RunDirectory, hosts: list[str]) -> Ended:
    spec = directory.spec()
    home = directory.path.parents[2]  # HOME/control/runs/RUN
    environment = surroundings.environment(home, Path(spec.content_directory), spec.run)
    if spec.vault_password_file:
        environment["ANSIBLE_VAULT_PASSWORD_FILE"] = spec.vault_password_file  # an inventory may need it
    # A short path: SSH's sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="bazaruto-end-", ignore_cleanup_errors=True) as scratch:
        answers = Path(scratch) / "answers"
        limit = Path(scratch) / "hosts"
        limit.write_text("".join(f"{host}\n" for host in hosts), encoding="utf-8")
        with tempfile.TemporaryFile() as output:
            try:
                said = _play(spec, limit, {**environment, **_settings(Path(scratch), len(hosts))}, output)
            finally:
                ending.end_descendants(GRACE_SECONDS)  # SSH's masters, and what hangs
        given = {host: _answer(answers / host) for host in hosts}
    left = [Left(host, reason) for host, answer in given.items() if (reason := _why_left(answer, said))]
    stopped = [Stopped(host, unit) for host, answer in given.items() for unit in _units(answer, "stopped")]
    return Ended(left, stopped)


def _play(spec: rundir.Spec, limit: Path, environment: dict[str, str], output: Any) -> str:
    """Play end_work.yml for these hosts; returns why a host that gave no answer gave none."""
    program = shutil.which("ansible-playbook", path=environment["PATH"])
    if program is None:
        return "ansible-playbook is not installed"
    argv = [program, "-i", spec.inventory, "--limit", f"@{limit}", "-e", json.dumps({"run": spec.run}), str(PLAYBOOK)]
    process = subprocess.Popen(
        argv, cwd=spec.content_directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    )
    try:
        process.wait(DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not answer within {DEADLINE_SECONDS:g} s"
    output.seek(0)
    return f"Ansible did not ask it: {_last_words(output.read())}"


def _settings(scratch: Path, hosts: int) -> dict[str, str]:
    """Ansible's settings: the content's, but for short limits, and nothing written anywhere but into `scratch`."""
    settings = {
        "SSH_CONTROL_PATH_DIR": str(scratch),  # the run's own masters may hang
        "LOCAL_TEMP": str(scratch / "tmp"),
        "CALLBACKS_ENABLED": "ansible.builtin.tree",  # writes each host's answer into a file, as it comes
        "CALLBACK_TREE_DIR": str(scratch / "answers"),
        "STDOUT_CALLBACK": "ansible.builtin.minimal",
        "CACHE_PLUGIN": "memory",
        "NOCOLOR": "True",
        "HOST_KEY_CHECKING": "True",
        "TIMEOUT": str(CONNECT_SECONDS),
        "TASK_TIMEOUT": str(TASK_SECONDS),
        "SSH_RETRIES": "0",
        "FORKS": str(min(hosts, MOST_FORKS)),
    }
    (scratch / "tmp").mkdir()
    return {f"ANSIBLE_{name}": value for name, value in settings.items()}


def _answer(path: Path) -> dict[str, Any] | None:
    """What Ansible says of one host; None when it said nothing of it."""
    try:
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return answer


def _why_left(answer: dict[str, Any] | None, otherwise: str) -> str | None:
    """Why the host may still be at work; None when it is not."""
    if answer is None:
        return otherwise
    if answer.get("unreachable"):
        return f"it could not be reached ({_last_words(str(answer.get('msg')).encode())})"
    if units := _units(answer, "left"):
        return f"{', '.join(units)} did not stop ({_words(answer)})"
    if answer.get("rc") != 0:
        return f"it could not say what runs there ({_words(answer)})"
    return None


def _words(answer: dict[str, Any]) -> str:
    """What the host said besides the units' names; on a terminal, which is what Ansible gives to raw commands."""
    said = [line for line in answer.get("stdout_lines") or [] if not line.startswith(("stopped ", "left "))]
    return _last_words("\n".join(said or [str(answer.get("msg"))]).encode())


def _units(answer: dict[str, Any] | None, what: str) -> list[str]:
    """The units of the answer's lines "stopped UNIT" or "left UNIT"."""
    lines = (answer or {}).get("stdout_lines") or []
    return [line.removeprefix(f"{what} ").strip() for line in lines if line.startswith(f"{what} ")]


def _nobody(hosts: list[str], reason: str) -> Ended:
    return Ended([Left(host, reason) for host in hosts], [])


def _last_words(said: bytes, limit: int = 300) -> str:
    return " ".join(said.decode("utf-8", "replace").split())[-limit:] or "it said nothing"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


if __name__ == "__main__":
    sys.exit(main(sys.argv))
