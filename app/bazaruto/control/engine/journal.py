"""A run's event file: what of ansible-runner's events is kept, appended by the supervisor, read by whoever follows.

One JSON object a line, `seq` from 1 without gaps. Nothing here needs the database, or Ansible.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bazaruto.control.engine import steady
from bazaruto.control.engine.redactor import Redactor

TEXT_LIMIT = 24 * 1024  # characters kept of one text; a line stays below 64 KiB of plain text
NUMBER = re.compile(r'\{"seq":(\d+),')
BLOCK_BYTES = 1024 * 1024
SPEAKING = frozenset({"debug", "ansible.builtin.debug"})  # what such a task says is meant for people


class AppendOnly:
    """A file that grows by whole pieces. What cannot be written (a full disk) is kept and tried again later."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size
        self._unwritten = b""

    def append(self, piece: bytes) -> bool:
        """Write what is unwritten; False when the disk refuses, with nothing half-written left behind."""
        self._unwritten += piece
        try:
            whole = os.write(self._file, self._unwritten) == len(self._unwritten)
        except OSError:
            whole = False
        if whole:
            self._size += len(self._unwritten)
            self._unwritten = b""
        else:
            os.ftruncate(self._file, self._size)
        return whole

    def close(self) -> bool:
        """Make all of it durable; False when something could not be written."""
        whole = not self._unwritten or self.append(b"")
        os.fsync(self._file)
        os.close(self._file)
        return whole


class Journal:
    """The writing end: the events, and beside them, uncut, what Ansible printed; all of it redacted."""

    def __init__(self, path: Path, output: Path, redactor: Redactor) -> None:
        self._events = AppendOnly(path)
        self._output = AppendOnly(output)
        self._redactor = redactor
        self.count = 0

    def append(self, event: Mapping[str, Any]) -> None:
        self.count += 1
        clean = self._redactor.event(event)
        line = {"seq": self.count, **cut(clean)}
        self._events.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        if printed := clean.get("stdout"):
            self._output.append(printed.encode() + b"\n")

    def close(self) -> bool:
        """Make all of it durable; False when something could not be written."""
        output = self._output.close()
        return self._events.close() and output


def count_whole(path: Path) -> int:
    """How many events a journal holds whose writer is dead; half a line at its end is removed."""
    count = position = end = 0
    try:
        with path.open("r+b") as file:
            while block := file.read(BLOCK_BYTES):
                count += block.count(b"\n")
                if b"\n" in block:
                    end = position + block.rfind(b"\n") + 1
                position += len(block)
            file.truncate(end)
    except FileNotFoundError:
        return 0
    return count


class JournalReader:
    """The reading end: whole lines, from where it last stopped, while the file still grows."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self._path = path
        self._position = 0
        self._after = after

    def read(self, limit_bytes: int = 4 * 1024 * 1024) -> list[tuple[int, str]]:
        """The next (seq, line) pairs; an empty list when there is nothing new."""
        try:
            if self._path.stat().st_size <= self._position:
                return []
        except FileNotFoundError:
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            block = file.read(limit_bytes)
            block += b"" if block.endswith(b"\n") else file.readline()
        end = block.rfind(b"\n") + 1
        pairs = [_numbered(line) for line in block[:end].splitlines()]
        self._position += end  # only now: a line that cannot be read is not passed over the next time
        return [pair for pair in pairs if pair[0] > self._after]


def event_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Our event from ansible-runner's: what a person or a program follows a run by."""
    details = data.get("event_data") or {}
    outcome = details.get("res") or {}
    event: dict[str, Any] = {
        "at": utc(data.get("created")),
        "type": data.get("event", "verbose"),
        "host": details.get("host"),
        "task": details.get("task"),
        "play": details.get("play"),
        "role": details.get("role"),
        "stdout": str(data.get("stdout", "")).replace("\r\n", "\n"),  # it passed through a terminal
    }
    if event["type"].startswith("runner_"):
        event["action"] = details.get("resolved_action") or details.get("task_action")
    if isinstance(outcome, Mapping) and event["type"].endswith(("ok", "failed", "unreachable", "skipped")):
        event["changed"] = bool(outcome.get("changed", False))
        if event["type"].endswith(("failed", "unreachable")):
            event["message"] = failure_message(outcome)
            event["ignored"] = bool(details.get("ignore_errors"))
        elif event["type"].endswith("ok") and event["action"] in SPEAKING and (said := spoken(outcome)):
            event["message"] = said
    if isinstance(details.get("duration"), int | float):
        event["seconds"] = round(details["duration"], 3)
    return event


def touched(data: Mapping[str, Any]) -> set[str]:
    """The hosts on which something was started, also those a task was delegated to."""
    details = data.get("event_data") or {}
    if not str(data.get("event", "")).startswith("runner_") or not details.get("host"):
        return set()
    outcome = details.get("res")
    delegated = outcome.get("_ansible_delegated_vars") if isinstance(outcome, Mapping) else None
    to = delegated.get("ansible_delegated_host") if isinstance(delegated, Mapping) else None
    return {str(details["host"]), *([str(to)] if to else [])}


def failure_message(outcome: Mapping[str, Any]) -> str:
    """What a failed task says about itself: its message, and of a command its last words."""
    message = str(outcome.get("msg") or outcome.get("censored") or "it gave no message").strip()
    if message == "non-zero return code":
        words = str(outcome.get("stderr") or outcome.get("stdout") or "").strip().splitlines()
        message = f"it ended with code {outcome.get('rc')}" + (f": {words[-1]}" if words else "")
    return message


def spoken(outcome: Mapping[str, Any]) -> str:
    """What a debug task says, line by line; nothing when it only printed a variable, or sums up its loop."""
    said = outcome.get("msg") if "results" not in outcome else None
    lines = said if isinstance(said, list) else [] if said is None else [said]
    return "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)


def cut(event: dict[str, Any]) -> dict[str, Any]:
    """The event with texts too long for a record shortened; it says so, and how long they were."""
    too_long = {name: len(text) for name, text in event.items() if isinstance(text, str) and len(text) > TEXT_LIMIT}
    if not too_long:
        return event
    shortened = {name: event[name][:TEXT_LIMIT] for name in too_long}
    told = {"digest": steady.digest(event["stdout"])} if event.get("type") == "runner_on_file_diff" else {}
    return {**event, **shortened, **told, "cut": too_long}


def utc(moment: str | None = None) -> str:
    """ISO 8601 in UTC with Z, of a moment in any zone, or of now."""
    when = datetime.datetime.fromisoformat(moment) if moment else datetime.datetime.now(datetime.UTC)
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return when.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _numbered(line: bytes) -> tuple[int, str]:
    text = line.decode("utf-8", "replace")
    written = NUMBER.match(text)  # as Journal writes it; reading all of it would take three times as long
    return int(written[1] if written else json.loads(text)["seq"]), text
