"""Two workers, and workers that die at the worst moment: no run is started twice, none is forgotten."""

from __future__ import annotations

import signal
import time

import psycopg

from bazaruto import processes

from .kills import kill_all, must_be_interrupted, must_succeed, release
from .rig import RECOVERY_SECONDS, Case, Rig
from .suite import fault

SOON_SECONDS = 30.0  # for several runs of several processes


@fault("two workers, both alive", batch=8)
def both_alive(rig: Rig, count: int) -> list[Case]:
    """Reads and changes; each is started once."""
    rig.start_worker("second")
    cases = [rig.launch("trace_change" if number % 4 == 3 else "trace") for number in range(count)]
    release(cases)
    for case in cases:
        case.must_be("succeeded", end=True, within=SOON_SECONDS)
    rig.settle(cases)
    rig.plane.stop("second")
    return cases


@fault("two workers, one is killed")
def one_killed(rig: Rig, count: int) -> list[Case]:
    """The other follows at once what was followed by the first."""
    rig.start_worker("second")
    cases = rig.in_task(count)
    rig.kill("worker")
    rig.provably_running(cases)
    release(cases)
    rig.settle(must_succeed(cases))
    rig.plane.processes["worker"] = rig.plane.processes.pop("second")
    return cases


@fault("SIGKILL of the worker right after the claim", batch=1)
def right_after_claim(rig: Rig, count: int) -> list[Case]:
    """Before or just when the guard begins: it ran to its end, or says that it did not."""
    case = rig.launch()
    case.release()
    with psycopg.connect(rig.plane.database_url, autocommit=True) as connection:
        asked = "SELECT status = 'running' FROM runs WHERE id = %s"
        rig.plane.until(lambda: (connection.execute(asked, [case.run]).fetchone() or [False])[0])
    rig.kill("worker")
    rig.provably_running([case])
    rig.restart("worker")
    case.must_be("succeeded", "interrupted", within=SOON_SECONDS)
    case.started = False
    return [case]


@fault("SIGKILL of the worker while it claims", batch=1)
def while_claiming(rig: Rig, count: int) -> list[Case]:
    """As soon as the run's directory appears, which is before the claim is committed."""
    case = _claimed_by_the_dead(rig)
    rig.restart("worker")
    case.must_be("succeeded", "interrupted", within=SOON_SECONDS)
    case.started = False
    return [case]


def _claimed_by_the_dead(rig: Rig) -> Case:
    case = rig.launch()
    case.release()
    directory = rig.plane.directory(case.run)
    deadline = time.monotonic() + 15
    while not directory.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    rig.kill("worker")
    rig.provably_running([case])
    return case


@fault("SIGKILL of the worker while it claims, then cancel", batch=1)
def claiming_canceled(rig: Rig, count: int) -> list[Case]:
    """What the claim had prepared stays behind, with secrets in it, until a worker comes back."""
    case = _claimed_by_the_dead(rig)
    canceled = rig.cancel(case.run)
    if canceled.status_code == 202 and canceled.json()["status"] == "canceled":
        case.must_be("canceled", end=False, says="before it started")
        rig.settle([case])
        rig.restart("worker")
        rig.plane.until(
            lambda: not (rig.plane.directory(case.run) / "private").exists(), RECOVERY_SECONDS * rig.patience
        )
    else:  # it was killed a moment too late
        case.counted = False
        rig.restart("worker")
        case.must_be("canceled", "interrupted", "succeeded")
    case.started, case.spoilt = False, True
    return [case]


@fault("SIGKILL of the guard as soon as it lives", batch=1)
def newborn_guard(rig: Rig, count: int) -> list[Case]:
    """Before it writes itself down, or forks its supervisor, or just after."""
    case = rig.launch()
    case.release()
    deadline = time.monotonic() + 15
    found: list[processes.ProcessIdentity] = []
    while not found and time.monotonic() < deadline:
        pids = [pid for pid in processes.everyone() if "bazaruto.control.engine.guard" in processes.arguments_of(pid)]
        found = [
            identity
            for identity in map(processes.identify, pids)
            if identity and case.run in processes.arguments_of(identity.pid)
        ]
    kill_all(found[:1])
    rig.provably_running([case])
    case.must_be("succeeded", "interrupted", within=SOON_SECONDS)
    case.started = False
    return [case]


@fault("SIGKILL of the supervisors of 16 runs at once", batch=16)
def sixteen(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    kill_all(rig.supervisor(case.run) for case in cases)
    for case in must_be_interrupted(cases, "was killed by SIGKILL"):
        case.within = 20
    return cases


@fault("SIGTERM, then SIGKILL of the worker in the middle of starts", batch=6)
def restarts(rig: Rig, count: int) -> list[Case]:
    """Restarted again and again while it starts runs."""
    cases = [rig.launch() for _ in range(count)]
    release(cases)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        time.sleep(0.3)  # at some point of some start
        worker = rig.plane.processes.pop("worker")
        worker.send_signal(number)
        worker.wait(30)
        rig.restart("worker")
    for case in cases:
        case.must_be("succeeded", "interrupted", within=SOON_SECONDS)
        case.started = False
    return cases
