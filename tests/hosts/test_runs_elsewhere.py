"""A run under its guard: however it is ended, its work on the host ends with it, or its record names the host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bazaruto import processes
from bazaruto.control.engine import rundir, surroundings, sweep
from tests.hosts.conftest import PLAYBOOKS, REPOSITORY, Run, ask
from tests.hosts.test_end_work import cut_host
from tests.hosts.test_transient_units import count
from tests.lab import faults
from tests.lab.host import Host
from tests.lab.waiting import becomes_true

__all__ = ["cut_host"]


def test_a_canceled_runs_work_on_the_host_is_ended_with_it(host: Host, run: Run) -> None:
    guard = start(host, run, 4001)
    cancel(run)
    outcome = ended(run, guard)
    assert (outcome["status"], outcome["left_running"]) == ("canceled", [])
    assert count(host, "sleep 74001") == 0


def test_a_host_that_is_cut_off_stands_in_the_record(cut_host: Host, run: Run) -> None:
    guard = start(cut_host, run, 4002)
    faults.cut(cut_host)
    cancel(run)
    outcome = ended(run, guard)
    assert (outcome["status"], outcome["left_running"]) == ("canceled", [cut_host.name])
    assert f"It may still be at work on {cut_host.name}: it could not be reached" in outcome["error"]
    faults.join(cut_host)
    assert becomes_true(lambda: cut_host.run("true", check=False).returncode == 0, 10)
    assert ask(run, *outcome["left_running"])["left"] == []
    assert count(cut_host, "sleep 74002") == 0


@pytest.mark.parametrize("victims", [["supervisor"], ["guard", "supervisor"]], ids=" and ".join)
def test_whoever_is_killed_the_work_on_the_host_is_ended(host: Host, run: Run, victims: list[str]) -> None:
    guard = start(host, run, 4003)
    files = {"guard": run.directory.guard_file, "supervisor": run.directory.supervisor_file}
    for victim in victims:
        identity = processes.read_pid_file(files[victim])
        assert identity
        os.kill(identity.pid, signal.SIGKILL)
    if "guard" in victims:
        guard.wait(10)
        sweep.bury(run.directory)
    outcome = ended(run, guard)
    assert (outcome["status"], outcome["left_running"]) == ("interrupted", [])
    assert count(host, "sleep 74003") == 0


def start(host: Host, run: Run, number: int) -> subprocess.Popen[bytes]:
    """Start a run that lingers on the host; returns when it is at work there."""
    guard = start_guard(run, PLAYBOOKS / "linger.yml", number=number)
    assert becomes_true(lambda: count(host, f"sleep 7{number}") == 5, 90)
    return guard


def start_guard(run: Run, playbook: Path, **variables: Any) -> subprocess.Popen[bytes]:
    """Start the run's guard as the worker does."""
    spec = json.loads(run.directory.spec_file.read_text())
    run.directory.spec_file.write_text(json.dumps({**spec, "playbook": str(playbook)}))
    run.directory.variables_file.write_text(json.dumps({"bazaruto_run_id": run.id, **variables}))
    lock = rundir.try_lock(run.directory.supervisor_lock)
    assert lock is not None
    home = run.directory.path.parents[2]
    guard = subprocess.Popen(
        [sys.executable, "-m", "bazaruto.control.engine.guard", run.id, str(run.directory.path), str(lock)],
        cwd=REPOSITORY,
        env=surroundings.environment(home, REPOSITORY, run.id),
        stdin=subprocess.DEVNULL,
        pass_fds=[lock],
        start_new_session=True,
    )
    os.close(lock)
    return guard


def cancel(run: Run) -> None:
    """As the worker does it: say who and why, then tell the supervisor."""
    rundir.write_durably(run.directory.cancel_file, {"by": "ana", "reason": "enough"})
    supervisor = processes.read_pid_file(run.directory.supervisor_file)
    assert supervisor
    processes.send(supervisor, signal.SIGTERM)


def ended(run: Run, guard: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The run's outcome, when its guard is gone."""
    guard.wait(60)
    outcome: dict[str, Any] = json.loads(run.directory.outcome_file.read_text())
    return outcome
