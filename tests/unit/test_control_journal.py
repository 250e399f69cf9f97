"""A run's event file: contiguous, cut, redacted, whole after a full disk, readable while it grows."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bazaruto.control.engine import journal
from bazaruto.control.engine.redactor import Redactor


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_numbered_from_one(tmp_path: Path) -> None:
    book = journal.Journal(tmp_path / "events", tmp_path / "output", Redactor([]))
    for name in ("a", "b", "c"):
        book.append({"type": name, "stdout": ""})
    assert book.close()
    assert [(line["seq"], line["type"]) for line in lines(tmp_path / "events")] == [(1, "a"), (2, "b"), (3, "c")]


def test_a_full_disk_leaves_no_half_line_and_what_failed_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = journal.Journal(tmp_path / "events", tmp_path / "output", Redactor([]))
    book.append({"type": "a"})
    write = os.write

    def short(file: int, data: bytes) -> int:
        write(file, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "write", short)
        book.append({"type": "b"})
    assert [line["type"] for line in lines(tmp_path / "events")] == ["a"]
    book.append({"type": "c"})
    assert [(line["seq"], line["type"]) for line in lines(tmp_path / "events")] == [(1, "a"), (2, "b"), (3, "c")]
    assert book.close()


def test_a_reader_gives_whole_lines_while_the_file_grows_and_resumes_after_a_number(tmp_path: Path) -> None:
    path = tmp_path / "events"
    reader = journal.JournalReader(path)
    assert reader.read() == []
    path.write_bytes(b'{"seq":1}\n{"seq":2')
    assert [seq for seq, _ in reader.read()] == [1]
    assert reader.read() == []
    with path.open("ab") as file:
        file.write(b'}\n{"seq":3}\n')
    assert [seq for seq, _ in reader.read(limit_bytes=4)] == [2]
    assert [seq for seq, _ in reader.read()] == [3]
    assert [seq for seq, _ in journal.JournalReader(path, after=2).read()] == [3]


def test_a_line_that_cannot_be_read_is_never_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"seq": 1}\n' + bytes(100) + b"\n")
    reader = journal.JournalReader(path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"."):
            reader.read()


def test_a_long_text_is_cut_and_the_event_says_how_long_it_was(tmp_path: Path) -> None:
    book = journal.Journal(tmp_path / "events", tmp_path / "output", Redactor([]))
    book.append({"type": "a", "stdout": "ü" * 100_000, "message": "short"})
    book.close()
    (line,) = lines(tmp_path / "events")
    assert line["cut"] == {"stdout": 100_000}
    assert len(str(line["stdout"])) == journal.TEXT_LIMIT


@given(st.text())
def test_whatever_a_task_prints_can_be_stored(text: str) -> None:
    cleaned = Redactor([]).clean({"stdout": text + "\x00\ud800", "ratio": float("nan")})
    stored = json.dumps(cleaned)
    assert "\\u0000" not in stored
    assert "NaN" not in stored
    cleaned["stdout"].encode("utf-8")


def test_an_event_keeps_what_a_run_is_followed_by() -> None:
    event = journal.event_of(
        {
            "event": "runner_on_failed",
            "created": "2026-11-23T10:00:00.123456+01:00",
            "stdout": "fatal:\r\n no",
            "event_data": {
                "host": "db1",
                "task": "Dump",
                "play": "Back up",
                "role": "database_backup",
                "duration": 1.23456,
                "res": {"msg": "non-zero return code", "rc": 3, "stderr": "first\nlast words\n", "changed": True},
            },
        }
    )
    assert event["at"] == "2026-11-23T09:00:00.123Z"
    assert event["stdout"] == "fatal:\n no"
    assert event["message"] == "it ended with code 3: last words"
    assert (event["host"], event["task"], event["changed"], event["seconds"]) == ("db1", "Dump", True, 1.235)


def spoken(outcome: dict[str, object], action: str = "ansible.builtin.debug", event: str = "runner_on_ok") -> object:
    details = {"host": "db1", "task": "Say it", "resolved_action": action, "res": outcome}
    return journal.event_of({"event": event, "event_data": details}).get("message")


def test_what_a_debug_task_says_is_kept_line_by_line() -> None:
    assert spoken({"msg": "one"}) == "one"
    assert spoken({"msg": ["one", {"two": 2}]}) == 'one\n{"two": 2}'
    assert spoken({"msg": "of a loop"}, event="runner_item_on_ok") == "of a loop"
    assert spoken({"msg": "All items completed", "results": []}) is None
    assert spoken({"db": 1}) is None
    assert spoken({"censored": "hidden"}) is None
    assert spoken({"msg": "changed 3 files"}, action="ansible.builtin.copy") is None
