"""What a person sees while a run waits and goes on."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from bazaruto.control import render


def shown(*steps: tuple[dict[str, Any], list[dict[str, Any]]]) -> list[str]:
    screen = Console(width=60, color_system=None, force_terminal=False)
    with screen.capture() as capture, render.Progress(screen) as progress:
        for run, events in steps:
            progress.show(run, events)
    return [line.rstrip() for line in capture.get().splitlines()]


QUEUED: dict[str, Any] = {"status": "queued", "status_reason": None}
WAITING = {"status": "waiting", "status_reason": "waiting for run a"}


def test_what_a_run_waits_for_is_said_once_each() -> None:
    assert shown((WAITING, []), (WAITING, []), ({**WAITING, "status_reason": "waiting for run b"}, [])) == [
        "  waiting for run a",
        "  waiting for run b",
    ]


def test_a_run_that_no_worker_takes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown((QUEUED, [])) == [], "a worker is given a moment"
    monkeypatch.setattr(render, "SECONDS_FOR_A_WORKER", -1.0)
    said = " ".join(shown((QUEUED, []), (QUEUED, [])))
    assert said.count("no worker has taken it yet: `bazaruto status`") == 1


def test_messages_stand_indented_below_their_task_and_wrap_there() -> None:
    event = {"host": "db1", "task": "Say it", "seconds": 0.02}
    said = {**event, "type": "runner_on_ok", "message": f"{'word ' * 12}end"}
    failed = {**event, "type": "runner_on_failed", "message": "no space", "ignored": True}
    checked = {**event, "type": "runner_on_ok", "action": "ansible.builtin.validate_argument_spec"}
    assert shown(({"status": "running"}, [checked, said, failed])) == [
        "  ✓ db1  Say it  ok",
        "    word word word word word word word word word word word",
        "    word end",
        "  ! db1  Say it  failed, ignored",
        "    no space",
    ]


def test_what_was_decided_on_a_run_is_told_in_sentences() -> None:
    nothing = {"cancel_requested_at": None, "left_running": [], "waived_at": None, "status_reason": None}
    plain = {"id": "a", "status": "running", "revision": None, "dirty": False, **nothing}
    assert render.about(plain) == {"id": "a", "status": "running", "revision": None, "canceled": ""}
    decided = {
        **plain,
        "revision": "1a2b3c",
        "dirty": True,
        "cancel_requested_at": "2026-01-01T00:00:00.5Z",
        "cancel_requested_by": "ann",
        "cancel_reason": None,
        "left_running": ["db1", "db2"],
        "waived_at": "2026-01-01T00:01:00Z",
        "waived_by": "bob",
        "waive_reason": "both are off",
    }
    assert render.about(decided) == {
        "id": "a",
        "status": "running",
        "revision": "1a2b3c, with changes that are not committed",
        "canceled": "by ann at 2026-01-01T00:00:00Z",
        "left_running": "db1, db2: may still be at work for it",
        "waived": "by bob at 2026-01-01T00:01:00Z: both are off",
    }
    waiting = {**plain, "status": "waiting", "status_reason": "waiting for run b"}
    assert render.about(waiting)["status"] == "waiting for run b"
    unserved = {**plain, "status": "queued", "status_reason": "no worker serves local"}
    assert render.about(unserved)["status"] == "queued: no worker serves local"
