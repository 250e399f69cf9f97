"""SIGKILL of each process that a run depends on, and of all of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

from bazaruto import processes
from bazaruto.processes import ProcessIdentity

from .rig import Case, Rig
from .suite import fault


def kill_all(identities: Iterable[ProcessIdentity]) -> None:
    """SIGKILL, at once, and see them dead. One that has ended by itself is none that counts, which its run shows."""
    victims = list(identities)
    for victim in victims:
        processes.send(victim, signal.SIGKILL)
    left = processes.wait_all(victims, _soon())
    assert not left, f"{left} survived SIGKILL"


@fault("SIGKILL of the API")
def api(rig: Rig, count: int) -> list[Case]:
    """Runs go on; half of them end while nobody can ask."""
    cases = rig.in_task(count)
    rig.kill("serve")
    rig.provably_running(cases)
    release(cases[::2])
    rig.restart("serve")
    release(cases)
    return must_succeed(cases)


@fault("SIGKILL of the worker")
def worker(rig: Rig, count: int) -> list[Case]:
    """Runs go on, half of them to their end while nobody follows them."""
    cases = rig.in_task(count)
    rig.kill("worker")
    rig.provably_running(cases)
    release(cases[::2])
    for case in cases[::2]:
        rig.plane.until((rig.plane.directory(case.run) / "outcome.json").exists)
    rig.restart("worker")
    release(cases)
    return must_succeed(cases)


@fault("SIGKILL of the supervisor")
def supervisor(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    kill_all(rig.supervisor(case.run) for case in cases)
    return must_be_interrupted(cases, "was killed by SIGKILL")


@fault("SIGKILL of the guard")
def guard(rig: Rig, count: int) -> list[Case]:
    """The supervisor goes on without."""
    cases = rig.in_task(count)
    kill_all(rig.guard(case.run) for case in cases)
    rig.provably_running(cases)
    release(cases)
    return must_succeed(cases)


@fault("SIGKILL of guard and supervisor")
def guard_and_supervisor(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    kill_all(who for case in cases for who in (rig.guard(case.run), rig.supervisor(case.run)))
    return must_be_interrupted(cases, "guard and its supervisor died")


@fault("SIGKILL of the supervisor, then of the guard")
def supervisor_then_guard(rig: Rig, count: int) -> list[Case]:
    """While the guard is ending what is left."""
    cases = rig.in_task(count, "family")
    kill_all(rig.supervisor(case.run) for case in cases)
    kill_all(rig.guard(case.run) for case in cases)
    return must_be_interrupted(cases, "guard and its supervisor died")


@fault("SIGKILL of ansible-playbook")
def playbook(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    kill_all(rig.playbook(case.run) for case in cases)
    for case in cases:
        case.must_be("failed", end=False)
    return cases


@fault("SIGKILL of ansible-playbook with a family", batch=3)
def playbook_with_family(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count, "family")
    kill_all(rig.playbook(case.run) for case in cases)
    for case in cases:
        case.must_be("failed", end=False, within=15)
    return cases


@fault("SIGKILL of PostgreSQL")
def postgresql(rig: Rig, count: int) -> list[Case]:
    """Runs go on, half of them to their end, and all is caught up."""
    cases = rig.in_task(count)
    rig.kill_postgresql()
    rig.provably_running(cases)
    release(cases[::2])
    for case in cases[::2]:
        rig.plane.until((rig.plane.directory(case.run) / "outcome.json").exists)
    rig.start_postgresql()
    release(cases)
    return must_succeed(cases)


@fault("SIGKILL of all at once")
def everything(rig: Rig, count: int) -> list[Case]:
    """API, worker, guards, supervisors, playbooks and PostgreSQL; only the modules live on."""
    cases = rig.in_task(count)
    victims = [find(case.run) for case in cases for find in (rig.guard, rig.supervisor, rig.playbook)]
    for what in ("serve", "worker"):
        rig.plane.processes[what].send_signal(signal.SIGKILL)
    os.kill(rig.cluster.pid, signal.SIGKILL)
    kill_all(victims)
    for what in ("serve", "worker"):
        rig.kill(what)
    rig.kill_postgresql()
    rig.provably_running(cases)
    rig.start_postgresql()
    rig.restart("worker")
    rig.restart("serve")
    return must_be_interrupted(cases, "guard and its supervisor died")


@fault("SIGKILL of a supervisor that writes", batch=4)
def writing_supervisor(rig: Rig, count: int) -> list[Case]:
    """In the middle of very many events."""
    cases = rig.in_task(count, "chatter", items=5000)
    kill_all(rig.supervisor(case.run) for case in cases)
    return must_be_interrupted(cases, "was killed by SIGKILL")


@fault("SIGKILL of guard and supervisor that write, and of the worker", batch=4)
def writing_everything(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count, "chatter", items=5000)
    rig.kill("worker")
    kill_all(who for case in cases for who in (rig.guard(case.run), rig.supervisor(case.run)))
    rig.provably_running(cases)
    rig.restart("worker")
    return must_be_interrupted(cases, "guard and its supervisor died")


@fault("SIGTERM of the worker")
def worker_stopped(rig: Rig, count: int) -> list[Case]:
    """As a service's restart does: runs go on."""
    cases = rig.in_task(count)
    rig.plane.stop("worker")
    rig.provably_running(cases)
    rig.restart("worker")
    release(cases)
    return must_succeed(cases)


@fault("SIGTERM of the supervisor")
def supervisor_stopped(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    for case in cases:
        processes.send(rig.supervisor(case.run), signal.SIGTERM)
    return must_be_interrupted(cases, "told to stop")


def release(cases: Iterable[Case]) -> None:
    for case in cases:
        case.release()


def must_succeed(cases: list[Case]) -> list[Case]:
    for case in cases:
        case.must_be("succeeded", end=True)
    return cases


def must_be_interrupted(cases: list[Case], says: str) -> list[Case]:
    for case in cases:
        case.must_be("interrupted", end=False, says=says)
    return cases


def _soon() -> float:
    return time.monotonic() + 10
