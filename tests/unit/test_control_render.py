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
