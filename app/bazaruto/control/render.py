"""How runs look on a terminal: live progress by task and host, and how they ended."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from rich.console import Console
from rich.padding import Padding
from rich.status import Status
from rich.text import Text

from bazaruto.control import tables

WORDS = {
    "runner_on_ok": ("✓", "ok", "green"),
    "runner_on_skipped": ("-", "skipped", "dim"),
    "runner_on_failed": ("✗", "failed", "red"),
    "runner_on_unreachable": ("✗", "unreachable", "red"),
}
SECONDS_FOR_A_WORKER = 5.0  # to take a run that waits for nothing else, until it is said that none does
ITEMS = ("runner_item_on_ok", "runner_item_on_failed")
TOLD_APART = frozenset({
    "status_reason", "waiting_for", "result", "changes", "command", "error", "hosts", "dirty", "left_running",
    "cancel_requested_at", "cancel_requested_by", "cancel_reason", "waived_at", "waived_by", "waive_reason",
    "plan", "approved_at", "approved_by", "approve_reason", "rejected_by", "reject_reason",
})  # fmt: skip
DIFF = {"+": "green", "-": "red", "@": "cyan"}
ROUTINE = frozenset({"ansible.builtin.validate_argument_spec"})  # Ansible's own; of interest only when it fails


class Screen(Console):
    """A console that says when its reader has gone; rich's own ends the program with 1, as if a run had failed."""

    def on_broken_pipe(self) -> NoReturn:
        try:
            super().on_broken_pipe()
        except SystemExit as left:
            raise BrokenPipeError from left
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console that cuts no line when its output is not a terminal."""
    width = None if shutil.get_terminal_size((0, 0)).columns else 200
    return Screen(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


class Progress:
    """Shows a run while it happens: a line for each task on each host, what it says, and what goes on now."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._status: Status | None = None
        self._shown_waiting: str | None = None
        self._shown_plan = False
        self._begun = False
        self._ending = False
        self._patient_until = time.monotonic() + SECONDS_FOR_A_WORKER

    def __enter__(self) -> Progress:
        if self._screen.is_terminal:
            self._status = self._screen.status("")
            self._status.start()
        return self

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The screen without the line that moves, for a question."""
        if self._status:
            self._status.stop()
        try:
            yield
        finally:
            if self._status:
                self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def show(self, run: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> None:
        """What is new."""
        for event in events:
            self._begun = True
            self._event(event)
        if run.get("approval") == "pending" and not self._shown_plan:
            self._shown_plan = True
            plan_of_run(self._screen, run)
        if run["status"] in ("queued", "waiting"):
            self._now(run["status_reason"] or "waiting for a worker")
            self._waits(run["status_reason"])
        elif run["status"] == "running" and run.get("cancel_requested_at"):
            self._ends(run)
        elif run["status"] == "running" and not self._begun:
            self._now("starting")

    def _waits(self, reason: str | None) -> None:
        """What it waits for, once; a worker takes a run at once, so that after a while its absence is the reason."""
        if reason is None and time.monotonic() > self._patient_until:
            reason = "no worker has taken it yet: `bazaruto status` says whether one runs"
        if reason and reason != self._shown_waiting:
            self._shown_waiting = reason
            self._screen.print(Text(f"  {reason}", style="yellow"))

    def _ends(self, run: Mapping[str, Any]) -> None:
        """That somebody canceled it, once; from then on its processes are ended."""
        self._now("ending its processes")
        if not self._ending:
            self._ending = True
            why = f": {run['cancel_reason']}" if run["cancel_reason"] else ""
            self._screen.print(Text(f"  to be canceled by {run['cancel_requested_by']}{why}", style="yellow"))

    def _event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "playbook_on_play_start" and event.get("play"):
            self._screen.print(Text(str(event["play"]), style="bold"))
        elif kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self._now(str(event["task"]))
        elif kind in WORDS:
            self._task(event)
        elif kind in ITEMS:
            self._said(event)
        elif kind in ("warning", "error", "deprecated", "system_warning") and event["stdout"].strip():
            self._screen.print(Text(event["stdout"].strip(), style="yellow"))

    def _task(self, event: Mapping[str, Any]) -> None:
        mark, word, style = WORDS[event["type"]]
        if word == "ok" and event.get("action") in ROUTINE:
            return
        if word == "failed" and event.get("ignored"):
            mark, word, style = "!", "failed, ignored", "yellow"
        elif event.get("changed") and word == "ok":
            word, style = "changed", "yellow"
        line = Text(f"  {mark} ", style=style)
        line.append(f"{event['host']}  ", style="dim").append(str(event["task"]))
        line.append(f"  {word}", style=style)
        if event.get("seconds", 0) >= 0.1:
            line.append(f"  {event['seconds']:.1f} s", style="dim")
        self._screen.print(line)
        self._said(event, "" if word == "ok" else style)

    def _said(self, event: Mapping[str, Any], style: str = "") -> None:
        """The message of a failure, or of a task that is there to say something, below its task."""
        if event.get("message"):
            self._screen.print(Padding(Text(str(event["message"]), style=style), (0, 0, 0, 4), expand=False))

    def _now(self, text: str) -> None:
        if self._status:
            self._status.update(Text(text, no_wrap=True, overflow="ellipsis"))


def about(run: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, of which content, and what was decided since; without how it went and ended."""
    told = {name: value for name, value in run.items() if name not in TOLD_APART}
    if reason := run["status_reason"]:
        told["status"] = reason if reason.startswith(run["status"]) else f"{run['status']}: {reason}"
    if run["revision"]:
        told["revision"] = run["revision"] + (", with changes that are not committed" if run["dirty"] else "")
    told["canceled"] = _decision(run, "cancel_requested", "cancel")
    if run.get("approval"):
        told["approved"] = _decision(run, "approved", "approve")
    if run["left_running"]:
        told["left_running"] = ", ".join(run["left_running"]) + ": may still be at work for it"
        told["waived"] = _decision(run, "waived", "waive")
    return told


def plan_of_run(screen: Console, run: Mapping[str, Any]) -> None:
    """What a run would change, host by host, with every difference."""
    plan = run["plan"]
    things = "nothing that is known beforehand" if not plan["count"] else f"{plan['count']} things"
    screen.print(Text(f"Run {run['id']} would change {things}, says run {run['plan_run']}:", style="bold"))
    for change in plan["changes"]:
        line = Text("  ~ ", style="yellow").append(f"{change['host']}  ", style="dim").append(change["task"])
        screen.print(line.append(f"  {change['item'] or ''}", style="dim"), soft_wrap=True)
        for text in (change["diff"] or "").splitlines():
            screen.print(Padding(Text(text, style=DIFF.get(text[:1], "")), (0, 0, 0, 6), expand=False))
    if plan["cut"]:
        screen.print(Text(f"  not all of it is shown: `bazaruto logs {run['plan_run']}` has the rest", style="yellow"))


def _decision(run: Mapping[str, Any], what: str, why: str) -> str:
    """Who decided, when and why; nothing when nobody did."""
    if not run[f"{what}_at"]:
        return ""
    reason = f": {run[f'{why}_reason']}" if run[f"{why}_reason"] else ""
    return f"by {run[f'{what}_by']} at {tables.moment(run[f'{what}_at'])}{reason}"


def end_of_run(screen: Console, run: Mapping[str, Any]) -> None:
    """How a run ended, and what it returned."""
    style = tables.STYLES.get(run["status"], "")
    line = Text(f"{run['operation']} in {run['environment']}: ", style="bold")
    line.append(run["status"], style=style)
    line.append(f"  {tables.took(run)}  run {run['id']}", style="dim")
    screen.print(line)
    if run["error"]:
        screen.print(Text(run["error"], style=style), soft_wrap=True)
    if run["result"] is not None:
        screen.print(tables.facts(_without_noise(run["result"], run["id"])))


def log_lines(events: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """The human log, as Ansible printed it."""
    for event in events:
        text = event["stdout"]
        if event.get("cut"):
            text += f"\n[cut: it was {event['cut'].get('stdout', '?')} characters long]"
        if text or event["type"] == "verbose":
            yield text


def _without_noise(result: Any, run: str) -> Any:
    """The result without what the line above it says already."""
    if not isinstance(result, Mapping):
        return result
    said = {"run": run, "check": False}
    return {name: value for name, value in result.items() if name not in said or value != said[name]}
