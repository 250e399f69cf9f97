"""Records that are damaged, and processes that bear another's number."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

from bazaruto import processes

from .freezes import LIMIT_SECONDS
from .kills import kill_all, must_be_interrupted
from .rig import Case, Rig
from .suite import fault


def _dead(rig: Rig, count: int) -> list[Case]:
    """Runs of which nobody lives that could write, and no worker."""
    cases = rig.in_task(count)
    rig.kill("worker")
    kill_all(who for case in cases for who in (rig.guard(case.run), rig.supervisor(case.run)))
    return rig.provably_running(cases)


@fault("a control plane that comes back after the limit of a run that died before it")
def dead_before_its_limit(rig: Rig, count: int) -> list[Case]:
    """It did not run past its limit: nobody was there to run."""
    cases = rig.in_task(count, "trace_brief")
    rig.kill("worker")
    kill_all(who for case in cases for who in (rig.guard(case.run), rig.supervisor(case.run)))
    rig.provably_running(cases)
    time.sleep(LIMIT_SECONDS)
    rig.restart("worker")
    return must_be_interrupted(cases, "guard and its supervisor died")


@fault("half a line at the journal's end")
def half_a_line(rig: Rig, count: int) -> list[Case]:
    cases = _dead(rig, count)
    for case in cases:
        with (rig.plane.directory(case.run) / "events.jsonl").open("ab") as file:
            file.write(b'{"seq":99,"at":"2026')
    rig.restart("worker")
    return must_be_interrupted(cases, "guard and its supervisor died")


@fault("a journal that cannot be read")
def spoilt(rig: Rig, count: int) -> list[Case]:
    """As after a crash of the machine: zeros where lines were."""
    cases = _dead(rig, count)
    for case in cases:
        with (rig.plane.directory(case.run) / "events.jsonl").open("ab") as file:
            file.write(bytes(100) + b"\n")
        case.spoilt = True
    rig.restart("worker")
    return must_be_interrupted(cases, "")


@fault("a spec that cannot be read")
def without_spec(rig: Rig, count: int) -> list[Case]:
    cases = _dead(rig, count)
    for case in cases:
        (rig.plane.directory(case.run) / "spec.json").write_text("{", encoding="utf-8")
        case.spoilt = True
    rig.restart("worker")
    return must_be_interrupted(cases, "")


@fault("a run directory that is removed while the run runs")
def removed(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count)
    for case in cases:
        shutil.rmtree(rig.plane.directory(case.run))
        case.spoilt = True
    for case in must_be_interrupted(cases, ""):
        case.within = 20
    return cases


@fault("numbers of dead processes that others have by now")
def others(rig: Rig, count: int) -> list[Case]:
    """Who only bears the number of a recorded process is left alone."""
    cases = _dead(rig, count)
    innocent = subprocess.Popen(["sleep", "300"])
    identity = processes.identify(innocent.pid)
    assert identity
    stranger = {"boot_id": identity.boot_id, "pid": identity.pid, "start_time": identity.start_time - 1}
    before = {"boot_id": "another", "pid": identity.pid, "start_time": identity.start_time}
    for case in cases:
        directory = rig.plane.directory(case.run)
        noted = directory / "processes.json"
        known = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else []
        noted.write_text(json.dumps([*known, stranger, before]), encoding="utf-8")
        for name in ("guard.json", "supervisor.json"):
            (directory / name).write_text(json.dumps(stranger), encoding="utf-8")
    rig.restart("worker")
    must_be_interrupted(cases, "guard and its supervisor died")
    rig.settle(cases)
    if innocent.poll() is not None:
        cases[0].lies.append("a process that only bears the number of a dead one was ended")
    innocent.kill()
    innocent.wait()
    return cases
