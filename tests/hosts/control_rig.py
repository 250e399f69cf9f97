"""A control node in a lab of its own, and one host for its runs to work on."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.waiting import until

REPOSITORY = Path(__file__).parents[2]
CONVERGE = REPOSITORY / "molecule/control_node/converge.yml"
CONTENT = Path(__file__).parent / "control_content"
SERVICES = ("bazaruto-control", "bazaruto-control-worker")
ENDED = {"succeeded", "failed", "canceled", "timed_out", "interrupted", "rejected"}
CHANGED = re.compile(r"^changed: \[(\S+)\](?: => \(item=(.*)\))?", re.MULTILINE)


@dataclasses.dataclass
class Play:
    """A playbook that was played from here."""

    code: int
    said: str

    def changed(self) -> list[str]:
        """The tasks that changed something, or would, each with its items."""
        found = []
        for part in re.split(r"^(?:TASK|RUNNING HANDLER) \[", self.said, flags=re.MULTILINE)[1:]:
            name = part.partition("]")[0].rpartition(" : ")[2]
            found += [f"{name} {item}".strip() for _, item in CHANGED.findall(part)]
        return sorted(found)


class Rig:
    """ctl1 with the control plane, and app1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lab = Lab(directory / "lab" / "control")
        self.content = directory / "content"
        shutil.copytree(CONTENT, self.content)
        shutil.copy(REPOSITORY / "ansible.cfg", self.content)
        ignored = shutil.ignore_patterns("production", "local")
        shutil.copytree(REPOSITORY / "inventories", self.content / "inventories", ignore=ignored)
        subprocess.run([sys.executable, ".ci/bundle"], cwd=REPOSITORY, check=True, capture_output=True)
        [self.bundle] = (REPOSITORY / "dist").glob("bazaruto-control-0.1.0.bundle.tar")

    def up(self) -> None:
        """Boot both hosts."""
        self.ctl1, self.app1 = self.lab.up(["ctl1", "app1"])

    @property
    def ctl1_and_app1(self) -> tuple[Host, Host]:
        return self.ctl1, self.app1

    def converge(self, *options: str, **variables: Any) -> Play:
        """Build the control node, or bring it up to date."""
        given = {"control_node_bundle": str(self.bundle), "control_node_content": str(self.content), **variables}
        return self.play(CONVERGE, "--extra-vars", json.dumps(given), *options)

    def play(self, playbook: Path, *options: str) -> Play:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                "--inventory",
                "inventories/lab",
                str(playbook),
                *options,
            ],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "BAZARUTO_HOME": str(self.directory),
                "BAZARUTO_LAB": "control",
                "ANSIBLE_LOCAL_TEMP": str(self.directory / "ansible"),  # no other test's runs tidy up there
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        return Play(done.returncode, done.stdout + done.stderr)

    def ask(self, *words: str) -> dict[str, Any]:
        """What `bazaruto … -o json` says on the control node."""
        said = self.ctl1.run(f"bazaruto {' '.join(words)} -o json", check=False)
        assert said.stdout.startswith("{"), said.stdout + said.stderr
        answer: dict[str, Any] = json.loads(said.stdout)
        return answer

    def launch(self, operation: str) -> str:
        """Start a run there, and leave it to itself."""
        run: str = self.ask("run", operation, "--environment", "lab", "--detach")["id"]
        return run

    def finished(self, operation: str) -> dict[str, Any]:
        """A run that was waited for."""
        return self.wait(self.launch(operation), 60)

    def wait(self, run: str, seconds: float) -> dict[str, Any]:
        """The run, once it has ended and that is recorded; the API may be away meanwhile."""
        asked: dict[str, Any] = {}

        def has_ended() -> bool:
            said = self.ctl1.run(f"bazaruto show {run} -o json", check=False).stdout
            asked.update(json.loads(said) if said.startswith("{") else {})
            return asked.get("status") in ENDED

        until(has_ended, seconds, f"{run} has not ended")
        return asked

    def wait_until_it_works(self, run: str) -> None:
        """Return when the run's playbook is in its long task on app1."""
        until(lambda: self.app1.run("test -e /tmp/working", check=False).returncode == 0, 60, f"{run} does not work")

    def let_it_end(self) -> None:
        """Give the run what it waits for."""
        self.app1.run("touch /tmp/go")

    def events(self, run: str) -> list[dict[str, Any]]:
        """All that PostgreSQL has of the run."""
        found: list[dict[str, Any]] = self.ask("logs", run)["events"]
        return found

    def written(self, run: str) -> int:
        """How many events the run itself wrote down."""
        return int(self.ctl1.run(f"grep -c . /var/lib/bazaruto/control/runs/{run}/events.jsonl").stdout)

    def lives(self, run: str) -> bool:
        """Whether the run's guard and supervisor are there, in a scope of the run's own."""
        path = "/sys/fs/cgroup/user.slice/user-*.slice/user@*.service/bazaruto.slice"
        return self.ctl1.run(f"cat {path}/bazaruto-run-{run}.scope/cgroup.procs", check=False).stdout.count("\n") >= 2

    def pid(self, service: str) -> int:
        """The service's main process; 0 when it does not run."""
        return int(self.ctl1.run(f"systemctl show --property MainPID --value {service}").stdout)
