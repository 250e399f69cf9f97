"""The cgroup that holds all of a host: writing into it is how a host is lost, frozen and removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.lab.waiting import until

KILL_SECONDS = 20.0


def runs_systemd() -> bool:
    """Whether this machine's init is systemd: it owns the tree, and is asked for a scope."""
    return Path("/run/systemd/system").is_dir()


def tree() -> Path | None:
    """Where this machine has cgroup2."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    return next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)


class Cgroup:
    """One host's."""

    def __init__(self, name: str) -> None:
        self.name = f"/system.slice/{name}.scope" if runs_systemd() else f"/{name}"  # in the tree
        self._path = Path(f"{tree()}{self.name}")

    def enter(self, argv: list[str]) -> list[str]:
        """The command line that starts `argv`, which then makes its place in this cgroup."""
        if not runs_systemd():
            return argv
        unit = f"--unit={Path(self.name).name}"
        return ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes", unit, *argv]

    def populated(self, part: str = "") -> bool:
        """Whether any process is in it, or in a part of it."""
        return "populated 1" in self._read(f"{part}/cgroup.events")

    def is_frozen(self) -> bool:
        """Whether nothing in it runs."""
        return "frozen 1" in self._read("cgroup.events")

    def processes(self, part: str) -> list[int]:
        """The processes of a part of it, but not of parts below."""
        return [int(word) for word in self._read(f"{part}/cgroup.procs").split()]

    def kill(self) -> None:
        """End every process in it at once, and remove it."""
        if not self._path.exists():
            return
        (self._path / "cgroup.kill").write_text("1", encoding="ascii")
        until(lambda: not self.populated(), KILL_SECONDS, f"the processes in {self._path} do not end")
        for directory, _, _ in os.walk(self._path, topdown=False):
            Path(directory).rmdir()

    def freeze(self, frozen: bool) -> None:
        """Nothing in it runs, or runs on."""
        (self._path / "cgroup.freeze").write_text("1" if frozen else "0", encoding="ascii")
        word = f"frozen {int(frozen)}"
        events = self._path / "cgroup.events"
        until(lambda: word in events.read_text(encoding="ascii"), KILL_SECONDS, f"{self._path} is not {word}")

    def _read(self, name: str) -> str:
        """A file of the kernel's; empty when the cgroup is gone, also between opening and reading it."""
        try:
            return (self._path / name.removeprefix("/")).read_text(encoding="ascii")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return ""
            raise
