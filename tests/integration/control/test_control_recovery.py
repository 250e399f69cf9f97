"""Recovery on a control plane of its own: what is found after worse than a killed process."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.faults import truth
from tests.faults.catalogue import FAULTS
from tests.faults.kills import kill_all
from tests.faults.rig import Case, Rig, rig
from tests.faults.suite import attempt

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def broken() -> Iterator[Rig]:
    """With its own PostgreSQL; every test leaves it running."""
    with rig(patience=3) as built:
        yield built


def no_lies(broken: Rig, *cases: Case) -> None:
    broken.settle(cases)
    for case in cases:
        truth.judge(broken, case)
        assert not case.lies, "\n".join([*case.lies, str(case.record)])
        assert case.counted


def test_an_outcome_that_cannot_be_written_for_a_while_is_not_another_outcome(broken: Rig) -> None:
    (case,) = broken.in_task(1)
    obstacle = broken.plane.directory(case.run) / "outcome.json.partial"
    obstacle.mkdir()
    case.release()
    log = broken.plane.directory(case.run) / "supervisor.log"
    broken.plane.until(lambda: "the outcome cannot be written" in log.read_text(encoding="utf-8"))
    assert (broken.record(case.run) or {})["status"] == "running"
    obstacle.rmdir()
    case.must_be("succeeded", end=True)
    no_lies(broken, case)


def test_time_that_went_by_without_a_control_plane_is_no_time_limit(broken: Rig) -> None:
    row = attempt(broken, FAULTS["a control plane that comes back after the limit of a run that died before it"], 1)
    assert row.fine, "\n".join(row.lies)


def test_a_cancel_needs_no_worker_that_follows(broken: Rig) -> None:
    (case,) = broken.in_task(1)
    frozen = broken.plane.processes["worker"]
    frozen.send_signal(signal.SIGSTOP)
    broken.start_worker("second")
    try:
        assert broken.cancel(case.run).status_code == 202
        broken.plane.until((broken.plane.directory(case.run) / "outcome.json").exists)
        broken.plane.until(lambda: truth.living(case) == [])  # the guard leaves after the outcome
    finally:
        frozen.send_signal(signal.SIGCONT)
        broken.plane.stop("second")
    case.must_be("canceled", end=False, says="canceled by admin")
    no_lies(broken, case)


def test_a_run_whose_directory_was_removed_is_ended_and_recorded(broken: Rig) -> None:
    (case,) = broken.in_task(1)
    shutil.rmtree(broken.plane.directory(case.run))
    case.spoilt = True
    case.must_be("interrupted", end=False, within=20)
    no_lies(broken, case)


def test_a_damaged_record_costs_its_own_run_only(broken: Rig) -> None:
    damaged, whole = broken.in_task(2)
    broken.kill("worker")
    kill_all([broken.guard(damaged.run), broken.supervisor(damaged.run)])
    for name in ("spec.json", "private/secrets.json"):
        (broken.plane.directory(damaged.run) / name).write_text("{", encoding="utf-8")
    damaged.spoilt = True
    whole.release()
    broken.restart("worker")
    damaged.must_be("interrupted", end=False, says="cannot be read")
    whole.must_be("succeeded", end=True)
    no_lies(broken, damaged, whole)
    assert broken.plane.processes["worker"].poll() is None
