"""Clocks of the control plane's processes that jump by a day, forth and back, while runs are running."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .cancels import ENDED_SECONDS
from .freezes import LIMIT_SECONDS, cancel_all
from .kills import must_succeed, release
from .rig import Case, Rig
from .suite import fault

SOURCE = Path(__file__).with_name("clock_shift.c")
DAY = 86_400


def missing(_rig: Rig) -> str | None:
    return None if shutil.which("gcc") else "gcc is needed, to build the preload that shifts the clock"


class Clock:
    """The wall clock of every process of this rig that was started since."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "shift"
        self.library = directory / "clock_shift.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", self.library, SOURCE, "-ldl"], check=True)
        self._file.write_bytes(struct.pack("l", 0))
        self.variables = {"LD_PRELOAD": str(self.library), "CLOCK_SHIFT_FILE": str(self._file)}

    def jump(self, seconds: int) -> None:
        """To so many seconds beside the true time, at once for all."""
        with self._file.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("l", seconds))


@contextlib.contextmanager
def shifted(rig: Rig) -> Iterator[Clock]:
    """API and worker, and all that they start, on a clock that can jump."""
    directory = rig.root / "clock"
    directory.mkdir(exist_ok=True)
    clock = Clock(directory)
    rig.plane.extra = clock.variables
    for what in ("serve", "worker"):
        rig.plane.stop(what)
    rig.restart("serve", "worker")
    try:
        yield clock
    finally:
        clock.jump(0)
        rig.plane.extra = {}
        for what in ("serve", "worker"):
            rig.plane.stop(what)
        rig.restart("serve", "worker")


def _shows(rig: Rig, case: Case, clock: Clock) -> bool:
    """Whether the run's own processes are on that clock."""
    maps = Path(f"/proc/{rig.supervisor(case.run).pid}/maps").read_text(encoding="utf-8")
    return str(clock.library) in maps


def _jumping(rig: Rig, count: int, seconds: int) -> list[Case]:
    """Started before, ended after the jump; and one that lives within it."""
    with shifted(rig) as clock:
        cases = rig.in_task(count)
        for case in cases:
            case.counted = _shows(rig, case, clock)
        clock.jump(seconds)
        rig.provably_running(cases)
        within = rig.in_task(1)
        release([*cases[::2], *within])
        for case in [*cases[::2], *within]:
            rig.plane.finished(case.run)
        clock.jump(0)
        release(cases)
        rig.settle(must_succeed([*cases, *within]))
    return [*cases, *within]


@fault("clock jumps by a day, and back", missing=missing)
def forward(rig: Rig, count: int) -> list[Case]:
    return _jumping(rig, count, DAY)


@fault("clock jumps back by a day, and forth", missing=missing)
def backward(rig: Rig, count: int) -> list[Case]:
    return _jumping(rig, count, -DAY)


@fault("time limit over a clock that jumps back", batch=2, missing=missing)  # the jump is to come before the limit
def limit(rig: Rig, count: int) -> list[Case]:
    """It is a length of time, whatever the clock says."""
    with shifted(rig) as clock:
        cases = rig.in_task(count, "trace_brief")
        for case in cases:
            case.counted = _shows(rig, case, clock)
        clock.jump(-DAY)
        rig.provably_running(cases)
        for case in cases:
            case.must_be("timed_out", end=False, says="time limit", within=LIMIT_SECONDS + ENDED_SECONDS)
        rig.settle(cases)
    return cases


@fault("cancel over a clock that jumps", missing=missing)
def canceled(rig: Rig, count: int) -> list[Case]:
    with shifted(rig) as clock:
        cases = rig.in_task(count)
        for case in cases:
            case.counted = _shows(rig, case, clock)
        clock.jump(DAY)
        rig.settle(cancel_all(rig, cases, ENDED_SECONDS))
    return cases
