"""A systemd scope for each run, so that stopping the worker's unit ends no run, and one write ends all of a run.

Where systemd is pid 1, a run's guard moves itself into `bazaruto-run-RUN.scope` before it starts anything; all that
descends from it is born there. Root asks the system's manager, another user their own, which lives without a login
where that user lingers. Without either: no scope.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BOOTED = Path("/run/systemd/system")  # there where systemd is pid 1
CGROUPS = Path("/sys/fs/cgroup")
SLICE = "bazaruto.slice"
MOVE_SECONDS = 2.0  # until the manager has moved a process; it takes milliseconds
KILL_SECONDS = 5.0  # until the kernel has buried what was killed
LOOK_SECONDS = 0.002


class ScopeNotEmptyError(Exception):
    """A run's processes live on after SIGKILL."""


def enter(run: str) -> bool:
    """Move this process into the run's own scope; False where there is no systemd, or where it does not let us."""
    if not BOOTED.is_dir():
        return False
    trouble = _move(run)
    if trouble:
        print(
            f"This run has no scope of its own: who stops its worker's unit ends it too ({trouble}).", file=sys.stderr
        )
    return not trouble


def _move(run: str) -> str:
    """Have the manager move this process: why it did not; "" when it did."""
    if os.getuid() and not (_runtime_directory() / "bus").exists():
        return f"{_runtime_directory()}/bus is not there: `loginctl enable-linger` for this user, and dbus-user-session"
    argv = [
        *("busctl", "--quiet", *(["--user"] if os.getuid() else [])),
        *("call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"),
        *("StartTransientUnit", "ssa(sv)a(sa(sv))", _unit(run), "fail"),
        *("4", "PIDs", "au", "1", str(os.getpid()), "Slice", "s", SLICE, "CollectMode", "s", "inactive-or-failed"),
        *("Description", "s", f"Bazaruto run {run}", "0"),
    ]
    # A worker that is a service of the system's manager has no session that would say where the user's manager is.
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(_runtime_directory())} if os.getuid() else None
    try:
        asked = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=MOVE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"busctl cannot be run: {error}"
    if asked.returncode:
        return asked.stderr.decode(errors="replace").strip() or f"busctl ended with {asked.returncode}"
    deadline = time.monotonic() + MOVE_SECONDS
    while time.monotonic() < deadline:
        if f"/{_unit(run)}\n" in Path("/proc/self/cgroup").read_text(encoding="utf-8"):
            return ""
        time.sleep(LOOK_SECONDS)
    return f"systemd made {_unit(run)}, and did not move the process into it"


def members(run: str) -> list[int]:
    """The processes in the run's scope, at any depth; none where it has no scope."""
    found: list[int] = []
    for directory, _, _ in os.walk(_directory(run)):
        try:
            found += map(int, (Path(directory) / "cgroup.procs").read_text(encoding="utf-8").split())
        except OSError:
            continue  # it went away with its last process
    return sorted(found)


def end(run: str) -> None:
    """Kill all of the run's scope, also what forks meanwhile; any number of times. Raises ScopeNotEmptyError."""
    try:
        (_directory(run) / "cgroup.kill").write_text("1", encoding="utf-8")
    except FileNotFoundError:
        return  # there is none, or it ended by itself
    deadline = time.monotonic() + KILL_SECONDS
    while left := members(run):
        if time.monotonic() > deadline:
            raise ScopeNotEmptyError(f"processes {left} of {_unit(run)} do not end: look what holds them (ps, dmesg)")
        time.sleep(LOOK_SECONDS)


def _runtime_directory() -> Path:
    return Path(f"/run/user/{os.getuid()}")


def _unit(run: str) -> str:
    return f"bazaruto-run-{run}.scope"


def _directory(run: str) -> Path:
    """The scope's cgroup; systemd puts it there, and nowhere else."""
    base = CGROUPS / "unified" if (CGROUPS / "unified").is_dir() else CGROUPS
    uid = os.getuid()
    above = base / f"user.slice/user-{uid}.slice/user@{uid}.service" if uid else base
    return above / SLICE / _unit(run)
