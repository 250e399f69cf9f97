"""A run's own directory: what lies in it, and how a supervisor's life is told from its death.

The directory, not the database, is the first record of a run. A supervisor holds an flock on `supervisor.lock` from
before its run is visible as running until after its outcome is on disk: a free lock without an outcome is proof
that it died. The lock is taken by the worker and handed over as an open file, so there is no moment without an owner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bazaruto import processes
from bazaruto.control.engine import traces
from bazaruto.control.engine.redactor import Redactor

MARGIN = " " * 120  # Ansible's errors show this much of a line: without it half a secret, which nothing would redact
CLOCK_GRAIN_SECONDS = 2.0  # how much older a file's time may be than the moment it was written
SECONDS_BETWEEN_WRITES = 1.0  # while the disk refuses the outcome
RESERVE_BYTES = 256 * 1024
CANCEL_BYTES = 16 * 1024  # more than the longest reason takes


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a supervisor is to run. Holds no secret: the variables lie in a file of their own."""

    run: str
    operation: str
    environment: str
    content_directory: str  # where playbooks/, roles/ and inventories/ are
    playbook: str  # absolute
    inventory: str  # absolute
    timeout_seconds: float
    idle_timeout_seconds: float | None = None  # without any event
    check: bool = False
    diff: bool = False
    limit: str | None = None
    secret_variables: list[str] = dataclasses.field(default_factory=list)  # their values are redacted
    vault_password_file: str | None = None  # a key file, or a script that says the password
    tolerates: list[str] = dataclasses.field(default_factory=list)  # what is no failure of this operation
    claimed_boot: str = ""  # which start of the machine it was claimed in, and how many seconds after that
    claimed_boot_seconds: float = 0.0
    record: dict[str, Any] = dataclasses.field(default_factory=dict)  # the run's row: from it the index can be rebuilt

    @property
    def started_at(self) -> str | None:
        """When it was claimed, by the database's clock."""
        return self.record.get("started_at")

    def seconds_since_claim(self) -> float | None:
        """How long ago that was, by a clock that cannot jump; None when the machine was started since."""
        if self.claimed_boot != processes.boot_id():
            return None
        return boot_seconds() - self.claimed_boot_seconds


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: the supervisor's last act, written whole or not at all."""

    status: str  # a terminal RunStatus
    started_at: str
    finished_at: str
    events: int  # how many events the journal holds
    rc: int | None = None  # of ansible-playbook
    error: str | None = None  # one sentence
    result: Any = None  # what the playbook returned by set_stats
    hosts: dict[str, dict[str, int]] | None = None  # the play's statistics: host → ok, changed, failed, …
    seconds: float | None = None  # how long it ran, by a clock that cannot jump
    left_running: list[str] = dataclasses.field(default_factory=list)  # hosts that may still be at work for it


@dataclasses.dataclass(frozen=True)
class Cancellation:
    """Somebody's wish that the run ends."""

    by: str
    reason: str | None

    @property
    def sentence(self) -> str:
        return f"It was canceled by {self.by}" + (f": {self.reason}" if self.reason else ".")


class RunDirectory:
    """Paths inside $BAZARUTO_HOME/control/runs/RUN_ID, and the few ways they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.json"
        self.private = path / "private"  # ansible-runner's private_data_dir; gone after the end
        self.variables_file = self.private / "env" / "extravars"  # YAML, read by Ansible
        self.secrets_file = self.private / "secrets.json"  # the values to redact
        self.events_file = path / "events.jsonl"
        self.output_file = path / "stdout.log"  # what Ansible printed, redacted, uncut
        self.cancel_file = path / "cancel.json"  # written by the worker: who wants it ended, and why
        self.cancel_reserve = path / "cancel.reserve"  # room for that on a disk that fills up meanwhile
        self.outcome_file = path / "outcome.json"
        self.reserve_file = path / "reserve"  # room for the outcome on a disk that fills up meanwhile
        self.supervisor_lock = path / "supervisor.lock"
        self.follower_lock = path / "follower.lock"
        self.guard_file = path / "guard.json"  # who it is: boot id, pid, start time
        self.supervisor_file = path / "supervisor.json"
        self.processes_file = path / "processes.json"  # whom the guard saw below it
        self.log_file = path / "supervisor.log"

    def create(self, spec: Spec, variables: dict[str, Any]) -> None:
        """Make the directory, 0700, with the spec and the variables, 0600."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        try:
            self._fill(spec, variables)
        except OSError:
            shutil.rmtree(self.path)  # a full disk: nothing was started, so no secret may stay
            raise

    def _fill(self, spec: Spec, variables: dict[str, Any]) -> None:
        self.private.mkdir(mode=0o700)
        self.variables_file.parent.mkdir(mode=0o700)
        write_durably(self.spec_file, dataclasses.asdict(spec))
        self.reserve_file.write_bytes(bytes(RESERVE_BYTES))
        self.cancel_reserve.write_bytes(bytes(CANCEL_BYTES))
        secrets = [variables[name] for name in spec.secret_variables if name in variables]
        write_durably(self.secrets_file, secrets)
        from bazaruto.control.engine import untemplated  # here, since a supervisor needs no YAML

        write_private(self.variables_file, untemplated.document(variables, MARGIN))

    def remove_secrets(self) -> None:
        """Remove everything that may hold a secret; what remains is the record."""
        if not self.private.exists():
            return
        try:
            self._remove_traces()
        except (OSError, ValueError, TypeError) as error:  # a damaged record keeps no secret here
            print(f"what may hold secrets outside is not looked for: {error}", file=sys.stderr, flush=True)
        shutil.rmtree(self.private)

    def _remove_traces(self) -> None:
        if secrets := self._known_secrets():
            facts = self.path.parents[1] / "facts" / self.spec().environment
            traces.remove(Redactor(secrets), self.spec_file.stat().st_mtime - CLOCK_GRAIN_SECONDS, facts)

    def was_started(self) -> bool:
        """Whether a supervisor lives here, or ever did."""
        return self.guard_file.exists() or is_locked(self.supervisor_lock)

    def spec(self) -> Spec:
        return Spec(**json.loads(self.spec_file.read_text(encoding="utf-8")))

    def secrets(self) -> list[Any]:
        """The values that must not be seen in any output."""
        values: list[Any] = json.loads(self.secrets_file.read_text(encoding="utf-8"))
        return values

    def add_secrets(self, values: list[Any]) -> None:
        """Keep more of them, for whoever cleans up when the supervisor cannot."""
        if values:
            write_durably(self.secrets_file, [*self.secrets(), *values])

    def _known_secrets(self) -> list[Any]:
        """The same; none when the run's claim came to no more than an empty directory."""
        try:
            return self.secrets()
        except FileNotFoundError:
            return []

    def write_cancellation(self, wish: Cancellation) -> None:
        """Write down, durably, who wants the run ended; into room that was reserved at its start."""
        if not self.cancel_file.exists():
            content = json.dumps(dataclasses.asdict(wish)).encode().ljust(CANCEL_BYTES)
            with self.cancel_reserve.open("r+b") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self.cancel_reserve.replace(self.cancel_file)
            sync_directory(self.path)

    def cancellation(self) -> Cancellation | None:
        """Who wants the run ended; None while nobody does."""
        try:
            return Cancellation(**json.loads(self.cancel_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write_outcome(self, outcome: Outcome) -> None:
        """The last act, durable. Raises OSError when the disk has no room, not even what was reserved."""
        self.remove_secrets()
        self.cancel_reserve.unlink(missing_ok=True)
        self.reserve_file.unlink(missing_ok=True)
        write_durably(self.outcome_file, dataclasses.asdict(outcome))

    def write_outcome_at_last(self, outcome: Outcome) -> None:
        """The same, again for as long as the disk refuses. Raises FileNotFoundError when the directory is gone."""
        while True:
            try:
                self.write_outcome(outcome)
            except FileNotFoundError:
                raise
            except OSError as error:
                print(f"the outcome cannot be written ({error}); trying again", file=sys.stderr, flush=True)
                time.sleep(SECONDS_BETWEEN_WRITES)
            else:
                return

    def outcome(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        try:
            return Outcome(**json.loads(self.outcome_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


def boot_seconds() -> float:
    """Seconds since the machine was started, whatever its clock says."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def try_lock(path: Path) -> int | None:
    """Take an exclusive lock and return its open file, or None when somebody holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def held(lock: int) -> Iterator[None]:
    """Hold a lock that was taken, and give it back at the end."""
    try:
        yield
    finally:
        os.close(lock)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. A file that was never made is held by nobody."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_durably(path: Path, value: Any) -> None:
    """Write JSON, 0600, so that after a crash the file is there whole, or not at all."""
    partial = path.with_name(path.name + ".partial")
    write_private(partial, json.dumps(value, ensure_ascii=True))
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until what was made, renamed or removed in a directory is on the disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, and wait until it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
