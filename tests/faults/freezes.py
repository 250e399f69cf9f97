"""SIGSTOP, and SIGCONT later or never, of each process that a run depends on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable

from bazaruto import processes
from bazaruto.processes import ProcessIdentity

from .kills import must_succeed, release
from .rig import Case, Rig
from .suite import fault

FROZEN_SECONDS = 2.0  # longer than any look that one process has at another
LIMIT_SECONDS = 8.0  # of the operation trace_brief
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
GUARD_SECONDS = 5.0  # beyond both, until the guard ends a supervisor that is stuck
WORKER_SECONDS = 15.0  # beyond both, until the worker ends a guard that is stuck, too
RECORDED_SECONDS = 10.0  # within which another worker records what a frozen one would have


def send(identities: Iterable[ProcessIdentity], number: signal.Signals) -> None:
    """To those that live; one that has ended by itself is none that counts, which its run shows."""
    for identity in identities:
        processes.send(identity, number)


@fault("SIGSTOP and SIGCONT of the supervisor")
def supervisor(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    return _thawed(rig, cases, [rig.supervisor(case.run) for case in cases])


@fault("SIGSTOP and SIGCONT of the guard")
def guard(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    return _thawed(rig, cases, [rig.guard(case.run) for case in cases])


@fault("SIGSTOP and SIGCONT of ansible-playbook")
def playbook(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    return _thawed(rig, cases, [rig.playbook(case.run) for case in cases])


@fault("SIGSTOP and SIGCONT of the worker")
def worker(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    return _thawed(rig, cases, [_identity(rig, "worker")])


@fault("SIGSTOP and SIGCONT of the API")
def api(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    return _thawed(rig, cases, [_identity(rig, "serve")])


def _thawed(rig: Rig, cases: list[Case], victims: list[ProcessIdentity]) -> list[Case]:
    """The task ends while they are frozen; then they go on, and so does the run."""
    send(victims, signal.SIGSTOP)
    rig.provably_running(cases)
    release(cases)
    time.sleep(FROZEN_SECONDS)  # nothing can be awaited: what is frozen does nothing
    send(victims, signal.SIGCONT)
    return must_succeed(cases)


@fault("SIGSTOP of the supervisor past its limit")
def supervisor_past_limit(rig: Rig, count: int) -> list[Case]:
    """Ended from outside, by the guard, after limit and grace."""
    cases = rig.in_task(count, "trace_brief")
    send([rig.supervisor(case.run) for case in cases], signal.SIGSTOP)
    rig.provably_running(cases)
    for case in cases:
        limit = LIMIT_SECONDS + GRACE_SECONDS + GUARD_SECONDS
        case.must_be("timed_out", end=False, says="time limit", within=limit + 10)
    return cases


@fault("SIGSTOP of guard and supervisor past their limit")
def both_past_limit(rig: Rig, count: int) -> list[Case]:
    """Ended from outside, by the worker."""
    cases = rig.in_task(count, "trace_brief")
    for case in cases:
        send([rig.guard(case.run), rig.supervisor(case.run)], signal.SIGSTOP)
    rig.provably_running(cases)
    for case in cases:
        limit = LIMIT_SECONDS + GRACE_SECONDS + WORKER_SECONDS
        case.must_be("timed_out", end=False, says="time limit", within=limit + 10)
    return cases


@fault("SIGSTOP of the supervisor, then cancel")
def supervisor_canceled(rig: Rig, count: int) -> list[Case]:
    """The cancellation thaws it."""
    cases = rig.in_task(count)
    send([rig.supervisor(case.run) for case in cases], signal.SIGSTOP)
    return cancel_all(rig, cases, within=GRACE_SECONDS + 10)


@fault("SIGSTOP of guard and supervisor, then cancel")
def both_canceled(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    for case in cases:
        send([rig.guard(case.run), rig.supervisor(case.run)], signal.SIGSTOP)
    return cancel_all(rig, cases, within=GRACE_SECONDS + WORKER_SECONDS + 10)


@fault("SIGSTOP of ansible-playbook, then cancel")
def playbook_canceled(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    send([rig.playbook(case.run) for case in cases], signal.SIGSTOP)
    return cancel_all(rig, cases, within=GRACE_SECONDS + 10)


@fault("a worker that is frozen while another lives")
def frozen_beside_another(rig: Rig, count: int) -> list[Case]:
    """The other one records what ends meanwhile; nothing changes, or starts twice, when the frozen one goes on."""
    rig.start_worker("second")
    cases = rig.in_task(count)
    frozen = _identity(rig, "worker")
    send([frozen], signal.SIGSTOP)
    rig.provably_running(cases)
    meanwhile = [rig.launch() for _ in range(2)]
    release([*cases, *meanwhile])
    for case in [*cases, *meanwhile]:
        case.must_be("succeeded", end=True, within=RECORDED_SECONDS)
    rig.settle([*cases, *meanwhile])
    send([frozen], signal.SIGCONT)
    rig.plane.stop("second")
    return [*cases, *meanwhile]


@fault("cancel while the worker that follows is frozen, and another lives")
def canceled_by_another(rig: Rig, count: int) -> list[Case]:
    """The other one has it ended, and records that."""
    cases = rig.in_task(count)
    frozen = _identity(rig, "worker")
    send([frozen], signal.SIGSTOP)
    rig.start_worker("second")
    rig.provably_running(cases)
    for case in cases:
        assert rig.cancel(case.run).status_code == 202
    for case in cases:
        case.must_be("canceled", end=False, says="canceled by admin", within=GRACE_SECONDS + RECORDED_SECONDS)
    rig.settle(cases)
    send([frozen], signal.SIGCONT)
    rig.plane.stop("second")
    return cases


def cancel_all(rig: Rig, cases: list[Case], within: float) -> list[Case]:
    """Ask for the end of runs that are in their task."""
    rig.provably_running(cases)
    for case in cases:
        answer = rig.cancel(case.run)
        assert answer.status_code == 202, answer.text
        case.must_be("canceled", end=False, says="canceled by admin: a fault", within=within)
    return cases


def _identity(rig: Rig, what: str) -> ProcessIdentity:
    identity = processes.identify(rig.plane.processes[what].pid)
    assert identity
    return identity
