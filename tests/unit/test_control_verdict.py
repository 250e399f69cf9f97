"""How a run is judged: success needs code 0, the statistics, and no failed or unreachable host."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from bazaruto.control.engine import journal, rundir
from bazaruto.control.engine.recorder import Recorder
from bazaruto.control.engine.redactor import Redactor
from bazaruto.control.engine.verdict import Ending, judge

LIMIT = Ending("timed_out", "It was ended after its time limit.")
CANCEL = Ending("canceled", "It was canceled by admin.")
SPEC = rundir.Spec("r", "say", "local", "/c", "/c/p.yml", "/c/i", 5.0)


def recorder(tmp_path: Path, *events: dict[str, Any]) -> Recorder:
    seen = Recorder(journal.Journal(tmp_path / "events", tmp_path / "output", Redactor([])))
    for event in events:
        assert seen(event) is False, "ansible-runner must write no file for an event"
    return seen


def stats(**counts: dict[str, int]) -> dict[str, Any]:
    return {"event": "playbook_on_stats", "event_data": {**counts, "artifact_data": {"result": {"n": 1}}}}


def failed(task: str, host: str, **details: Any) -> dict[str, Any]:
    data = {"task": task, "host": host, "res": {"msg": f"{task} broke"}, **details}
    return {"event": "runner_on_failed", "event_data": data}


@pytest.mark.parametrize(
    ("rc", "events", "ending", "status"),
    [
        (0, [stats(ok={"a": 1})], None, "succeeded"),
        (0, [stats(ok={"a": 1})], LIMIT, "succeeded"),
        (0, [], None, "failed"),
        (0, [stats()], None, "failed"),
        (0, [stats(ok={"a": 1}, dark={"b": 1})], None, "failed"),
        (0, [stats(failures={"a": 1})], None, "failed"),
        (2, [stats(ok={"a": 1})], None, "failed"),
        (None, [stats(ok={"a": 1})], None, "failed"),
        (None, [], LIMIT, "timed_out"),
        (None, [], CANCEL, "canceled"),
        (2, [stats(failures={"a": 1})], CANCEL, "canceled"),
    ],
)
def test_success_needs_everything(
    tmp_path: Path, rc: int | None, events: list[dict[str, Any]], ending: Ending | None, status: str
) -> None:
    found, error = judge(SPEC, recorder(tmp_path, *events), ending, rc, None)
    assert found == status
    assert (error is None) == (status == "succeeded")


@pytest.mark.parametrize(
    ("tolerates", "rc", "counts", "status"),
    [
        (["unreachable"], 4, {"ok": {"a": 1}, "dark": {"b": 1}}, "succeeded"),
        (["unreachable"], 6, {"ok": {"a": 1}, "dark": {"b": 1}, "failures": {"a": 1}}, "failed"),
        (["unreachable"], 2, {"ok": {"a": 1}, "failures": {"a": 1}}, "failed"),
        (["failed"], 2, {"ok": {"a": 1}, "failures": {"a": 1}}, "succeeded"),
        (["failed"], 1, {"ok": {"a": 1}}, "failed"),
    ],
)
def test_an_operation_tolerates_what_it_declares_and_nothing_else(
    tmp_path: Path, tolerates: list[str], rc: int, counts: dict[str, dict[str, int]], status: str
) -> None:
    spec = dataclasses.replace(SPEC, tolerates=tolerates)
    assert judge(spec, recorder(tmp_path, stats(**counts)), None, rc, None)[0] == status


def test_the_first_failure_that_counts_is_the_reason(tmp_path: Path) -> None:
    seen = recorder(
        tmp_path,
        failed("Ignored", "a", ignore_errors=True),
        failed("Rescued", "b"),
        failed("First", "a"),
        failed("Later", "a"),
        stats(failures={"a": 1}, rescued={"b": 1}),
    )
    assert seen.reason(2) == 'Task "First" failed on a: First broke'


def test_of_a_loop_the_failed_item_is_the_reason(tmp_path: Path) -> None:
    item = {
        "event": "runner_item_on_failed",
        "event_data": {"task": "Loop", "host": "a", "res": {"msg": "item 3 broke"}},
    }
    whole = failed("Loop", "a", res={"msg": "One or more items failed"})
    assert recorder(tmp_path, item, whole, stats(failures={"a": 1})).reason(2).endswith("item 3 broke")


def test_an_early_end_is_explained_by_ansibles_error(tmp_path: Path) -> None:
    lines = ["[WARNING]: old", "[ERROR]: the playbook is not there", "Origin: x", "", "1 ---"]
    seen = recorder(tmp_path, *({"event": "verbose", "stdout": line} for line in lines))
    assert "(code 1) before the end of the play: [ERROR]: the playbook is not there" in seen.reason(1)


def test_an_event_that_cannot_be_taken_does_not_stop_the_reader_and_is_told(tmp_path: Path) -> None:
    seen = recorder(tmp_path, {"event": "runner_on_ok", "created": "yesterday"})
    assert "ValueError" in str(seen.failed_to_record)


def test_the_lock_tells_life_from_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not rundir.is_locked(path)
    held = rundir.try_lock(path)
    assert held is not None
    assert rundir.is_locked(path)
    assert rundir.try_lock(path) is None
    os.close(held)
    assert not rundir.is_locked(path)
