"""The directories and files of one BAZARUTO_HOME, and what stands in local.json."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from bazaruto.server_user import EmbeddedError

# Part of the home → its mode. The servers' user passes through `postgresql` to the clusters' own directories.
DIRECTORIES = {
    "secrets": 0o700,
    "postgresql": 0o711,
    "config": 0o700,
    "backups": 0o700,
    "backups/proofs": 0o700,
    "backups/config": 0o700,
    "backups/control": 0o700,
    "backups/control/proofs": 0o700,
    "log": 0o700,
    "control": 0o700,
    "control/runs": 0o700,
    "run": 0o700,
}


class HomeError(EmbeddedError):
    """The home cannot be used; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Home:
    """Where everything of one installation lies."""

    path: Path

    @property
    def local_file(self) -> Path:
        """What `up` decided, for the command line, the service and the inventory `local`."""
        return self.path / "local.json"

    @property
    def admin_token(self) -> Path:
        """The first admin token of the control plane."""
        return self.path / "control" / "admin.token"

    @property
    def demo_password(self) -> Path:
        """The password of the demo users."""
        return self.path / "secrets" / "demo-password"

    def part(self, *names: str) -> Path:
        """A path inside the home."""
        return self.path.joinpath(*names)

    def pid_file(self, process: str) -> Path:
        """Who the daemon or server of this name is."""
        return self.path / "run" / f"{process}.pid.json"

    def read_local(self) -> dict[str, Any]:
        """What the last `up` wrote; empty before the first, or when it is damaged: `up` writes it anew."""
        try:
            values = json.loads(self.local_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def write_local(self, values: dict[str, Any]) -> None:
        """Replace local.json, whole or not at all; an equal one is left alone."""
        content = json.dumps(values, indent=2, sort_keys=True) + "\n"
        if self.local_file.exists() and self.local_file.read_text(encoding="utf-8") == content:
            return
        partial = self.path / f".local.json.{os.getpid()}.partial"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.local_file)


def make_directories(home: Home) -> None:
    """Make what is missing of the home; parents that exist keep their mode."""
    try:
        _make(home)
    except OSError as error:
        raise HomeError(
            f"{error.filename or home.path} cannot be made or written to ({error.strerror}): "
            "set BAZARUTO_HOME to a directory you can write to."
        ) from error


def _make(home: Home) -> None:
    if not home.path.exists():
        home.path.mkdir(parents=True)
        home.path.chmod(0o711)
    if os.geteuid() not in {home.path.stat().st_uid, 0}:
        raise HomeError(f"{home.path} is another user's: set BAZARUTO_HOME to a directory of your own.")
    for name, mode in DIRECTORIES.items():
        directory = home.part(name)
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(mode)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise HomeError(f"{directory} cannot be written to: change its owner, or set BAZARUTO_HOME elsewhere.")


@contextlib.contextmanager
def only_one(home: Home, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `up`, `down` and `clean`; wait while another command holds it, and say so."""
    with home.part("run", "up.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(f"Another `bazaruto up` or `down` is at work here (process {_holder(file)}): waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"
