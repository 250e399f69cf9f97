"""How runs look on a terminal: live progress by task and host, and results as tables."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

STYLES = {
    "succeeded": "green",
    "verified": "green",
    "running": "cyan",
    "queued": "cyan",
    "waiting": "yellow",
    "unverified": "yellow",
    "canceled": "yellow",
    "timed_out": "red",
    "interrupted": "red",
    "rejected": "red",
    "failed": "red",
    "missing": "red",
}
WORDS = {
    "runner_on_ok": ("✓", "ok", "green"),
    "runner_on_skipped": ("-", "skipped", "dim"),
    "runner_on_failed": ("✗", "failed", "red"),
    "runner_on_unreachable": ("✗", "unreachable", "red"),
}


def console(*, stderr: bool = False) -> Console:
    """A console that cuts no line when its output is not a terminal."""
    width = None if shutil.get_terminal_size((0, 0)).columns else 200
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


class Progress:
    """Shows a run while it happens: a line for each task on each host, and what goes on now."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._status: Status | None = None
        self._shown_waiting: str | None = None
        self._begun = False

    def __enter__(self) -> Progress:
        if self._screen.is_terminal:
            self._status = self._screen.status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def show(self, run: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> None:
        """What is new."""
        for event in events:
            self._begun = True
            self._event(event)
        if run["status"] in ("queued", "waiting"):
            self._now(run["status_reason"] or "waiting for a worker")
            if run["status_reason"] and run["status_reason"] != self._shown_waiting:
                self._shown_waiting = run["status_reason"]
                self._screen.print(Text(f"  {self._shown_waiting}", style="yellow"))
        elif run["status"] == "running" and not self._begun:
            self._now("starting")

    def _event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "playbook_on_play_start" and event.get("play"):
            self._screen.print(Text(str(event["play"]), style="bold"))
        elif kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self._now(str(event["task"]))
        elif kind in WORDS:
            self._screen.print(_task_line(event))
        elif kind in ("warning", "error", "deprecated", "system_warning") and event["stdout"].strip():
            self._screen.print(Text(event["stdout"].strip(), style="yellow"))

    def _now(self, text: str) -> None:
        if self._status:
            self._status.update(Text(text))


def _task_line(event: Mapping[str, Any]) -> Text:
    mark, word, style = WORDS[event["type"]]
    if event["type"] == "runner_on_failed" and event.get("ignored"):
        mark, word, style = "!", "failed, ignored", "yellow"
    elif event.get("changed") and word == "ok":
        word, style = "changed", "yellow"
    line = Text(f"  {mark} ", style=style)
    line.append(f"{event['host']}  ", style="dim").append(str(event["task"]))
    line.append(f"  {word}", style=style)
    if event.get("seconds"):
        line.append(f"  {event['seconds']:.1f} s", style="dim")
    if event["type"] in ("runner_on_failed", "runner_on_unreachable") and event.get("message"):
        line.append(f"\n    {event['message']}", style=style)
    return line


def end_of_run(screen: Console, run: Mapping[str, Any]) -> None:
    """How a run ended, and what it returned."""
    line = Text(f"{run['operation']} in {run['environment']}: ", style="bold")
    line.append(run["status"], style=STYLES.get(run["status"], ""))
    line.append(f"  {_duration(run)}  run {run['id']}", style="dim")
    screen.print(line)
    if run["error"]:
        screen.print(Text(run["error"], style=STYLES.get(run["status"], "")))
    if run["result"] is not None:
        screen.print(facts(run["result"]))


def facts(value: Any) -> Table:
    """An operation's result, name by name."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, item in _flat(value if isinstance(value, Mapping) else {"result": value}):
        table.add_row(name, _shown(name, item))
    return table


def listing(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """A list as a table: column title → key; states in their colours."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for title in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        cells = [Text(_shown(key, row.get(key)), style=STYLES.get(str(row.get(key)), "")) for key in columns.values()]
        table.add_row(*cells)
    return table


def log_lines(events: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """The human log, as Ansible printed it."""
    for event in events:
        text = event["stdout"]
        if event.get("cut"):
            text += f"\n[cut: it was {event['cut'].get('stdout', '?')} characters long]"
        if text or event["type"] == "verbose":
            yield text


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested names joined by dots; an object that only holds numbers stays together, as rows by table do."""
    for name, item in value.items():
        if isinstance(item, Mapping) and item and not all(isinstance(count, int) for count in item.values()):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _number(name.rpartition(".")[2], value)
    if isinstance(value, list):
        apart = "\n" if any(isinstance(item, Mapping) for item in value) else ", "
        return apart.join(_item(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(key, item)}" for key, item in value.items()) or "none"
    return str(value)


def _item(item: Any) -> str:
    """One of a list; a check (name, ok, detail) reads as one."""
    if not isinstance(item, Mapping):
        return str(item)
    if isinstance(item.get("ok"), bool) and "name" in item:
        return f"{'✓' if item['ok'] else '✗'} {item['name']}  {item.get('detail') or ''}".rstrip()
    return _shown("", item)


def _number(name: str, value: int) -> str:
    if name.endswith("_ns"):
        return str(value)
    if name.endswith("bytes") and value >= 1024:
        return f"{value:,} ({_size(value)})"
    return f"{value:,}"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _duration(run: Mapping[str, Any]) -> str:
    if not run["started_at"] or not run["finished_at"]:
        return ""
    begun, ended = (datetime.datetime.fromisoformat(run[name]) for name in ("started_at", "finished_at"))
    return f"{(ended - begun).total_seconds():.1f} s"
