"""What an idle control plane costs: the memory of its API, its worker and the warm process, PostgreSQL apart."""

from __future__ import annotations

from pathlib import Path

from bazaruto import processes
from bazaruto.control.local.home import Home

from .figures import Figure

CONTROL = ("control", "control-worker")
GOAL_MEGABYTES = 150.0


def measure(home: Path) -> list[Figure]:
    """The installation of this home has done its first backup and drill, and has nothing to do now."""
    files = [Home(home).pid_file(name) for name in CONTROL]
    daemons = [identity for identity in map(processes.read_pid_file, files) if identity]
    below = [member for daemon in daemons for member in processes.family(daemon.pid)]
    assert (len(daemons), len(below)) == (2, 1), "API, worker and the warm process are there, and no run"
    idle = sum(_megabytes(each.pid) for each in [*daemons, *below])
    return [Figure("memory of an idle control plane ÷ what it may take", idle, GOAL_MEGABYTES, "MB", "< 1")]


def _megabytes(pid: int) -> float:
    """Its proportional share (PSS): what processes share is counted once."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} shows no PSS")
