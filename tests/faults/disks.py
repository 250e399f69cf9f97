"""The run directory's disk full: before the start, in the middle, at the outcome; and then space again."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path

from . import truth
from .kills import kill_all, must_be_interrupted, must_succeed, release
from .rig import Case, Rig
from .suite import fault

FULL_SECONDS = 2.0
NO_SPACE = "No space left"
LOST = "Not every event could be recorded"


def missing(rig: Rig) -> str | None:
    return None if rig.disk else "only root can mount a small disk"


@contextlib.contextmanager
def full(rig: Rig) -> Iterator[None]:
    """No byte is left on the disk of the run directories."""
    assert rig.disk
    ballast = rig.disk / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    try:
        yield
    finally:
        ballast.unlink()


@fault("disk full before the start", batch=3, missing=missing)
def before_start(rig: Rig, count: int) -> list[Case]:
    """It says so, nothing was done."""
    with full(rig):
        cases = [rig.launch() for _ in range(count)]
        release(cases)
        for case in cases:
            case.must_be("failed", "interrupted", end=False, within=20)
            case.started = False
        rig.settle(cases)
    return cases


@fault("disk full in the middle, then space again", batch=4, missing=missing)
def in_the_middle(rig: Rig, count: int) -> list[Case]:
    """A playbook that says nothing meanwhile does not notice, and nothing is missing."""
    cases = rig.in_task(count)
    with full(rig):
        rig.provably_running(cases)
        time.sleep(FULL_SECONDS)
    release(cases)
    return must_succeed(cases)


@fault("disk full while much is said", batch=4, missing=missing)
def while_speaking(rig: Rig, count: int) -> list[Case]:
    """The playbook may fail of it, since its tasks are put together there; its record says what is missing."""
    cases = rig.in_task(count, "chatter", items=300)
    with full(rig):
        rig.provably_running(cases)
        for case in cases:
            case.must_be("failed", "succeeded", within=30)
        rig.settle(cases)
    for case in cases:
        if not any(words in ((case.record or {}).get("error") or "") for words in (NO_SPACE, LOST)):
            case.lies.append("does not say what the full disk took away")
    return cases


@fault("disk full until after the end", batch=4, missing=missing)
def until_after_the_end(rig: Rig, count: int) -> list[Case]:
    """The outcome has a reserve. The playbook fails when its next task has to be put together there; where that and the
    last events still fit into pages that are not full, it succeeds, and nothing of it may be missing.
    """
    cases = rig.in_task(count)
    with full(rig):
        rig.provably_running(cases)
        release(cases)
        for case in cases:
            case.must_be("failed", "succeeded", within=20)
        rig.settle(cases)
    for case in cases:
        record = case.record or {}
        if record.get("status") == "failed" and NO_SPACE not in (record["error"] or ""):
            case.lies.append("does not say that the disk was full")
    return cases


@fault("disk full, then cancel", batch=4, missing=missing)
def then_cancel(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    with full(rig):
        rig.provably_running(cases)
        for case in cases:
            assert rig.cancel(case.run).status_code == 202
            case.must_be("canceled", end=False, says="canceled by admin", within=20)
        rig.settle(cases)
    return cases


@fault("disk full, then SIGKILL of the supervisor", batch=4, missing=missing)
def then_killed(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    with full(rig):
        kill_all(rig.supervisor(case.run) for case in cases)
        must_be_interrupted(cases, "was killed by SIGKILL")
        rig.settle(cases)
    return cases


@fault("disk full, then SIGKILL of guard and supervisor", batch=4, missing=missing)
def then_both_killed(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    with full(rig):
        kill_all(who for case in cases for who in (rig.guard(case.run), rig.supervisor(case.run)))
        must_be_interrupted(cases, "guard and its supervisor died")
        rig.settle(cases)
    return cases


@fault("the outcome cannot be written for a while", batch=4)
def outcome_refused(rig: Rig, count: int) -> list[Case]:
    """Not even into its reserve; then it can."""
    cases = rig.in_task(count)
    obstacles = [_obstacle(rig, case) for case in cases]
    rig.provably_running(cases)
    release(cases)
    for case in cases:
        rig.plane.until(functools.partial(truth.lines, case, "end"))
    time.sleep(FULL_SECONDS)
    for obstacle in obstacles:
        obstacle.rmdir()
    return must_succeed(cases)


@fault("the outcome of a sweep cannot be written for a while", batch=4)
def sweep_refused(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    obstacles = [_obstacle(rig, case) for case in cases]
    kill_all(who for case in cases for who in (rig.guard(case.run), rig.supervisor(case.run)))
    time.sleep(FULL_SECONDS)
    for obstacle in obstacles:
        obstacle.rmdir()
    return must_be_interrupted(cases, "guard and its supervisor died")


def _obstacle(rig: Rig, case: Case) -> Path:
    """A directory in the place of the file that the outcome is first written to."""
    obstacle = rig.plane.directory(case.run) / "outcome.json.partial"
    obstacle.mkdir()
    return obstacle
