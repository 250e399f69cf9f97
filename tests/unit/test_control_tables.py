"""What a person sees of a result: counts and failures in words, no empty rows, nothing as Python writes it."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from bazaruto.control import tables

HASH = "14cc3f4a9b4a9f8ed377e3ef938f6bd1a1a2b4dde5c74a589ff4a66d7260b293"


def printed(table: Any, width: int = 80) -> list[str]:
    screen = Console(width=width, color_system=None, force_terminal=False)
    with screen.capture() as capture:
        screen.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_checks_are_counted_and_only_those_that_do_not_hold_are_named() -> None:
    checks = [{"name": f"rule_{number}", "ok": number != 2, "detail": "3 rows"} for number in range(4)]
    assert printed(tables.facts({"checks": checks})) == ["  checks  3 of 4 hold", "          ✗ rule_2  3 rows"]


def test_rows_are_summed_and_named_by_their_number_without_the_empty_tables() -> None:
    rows = {"tokens": 0, "users": 1200, "claims": 3600}
    assert printed(tables.facts({"rows": rows})) == ["  rows  4,800: claims 3,600, users 1,200"]
    assert printed(tables.facts({"rows": {"users": 0}})) == ["  rows  0"]


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_what_is_empty_is_left_out(empty: object) -> None:
    assert printed(tables.facts({"error": empty, "jobs": 0, "deep": {"error": empty}})) == ["  jobs  0"]


def test_numbers_times_and_nested_objects_read_as_words() -> None:
    result = {
        "size_bytes": 977582,
        "mtime_ns": 1,
        "seconds": 1.8183,
        "writes_kept": False,
        "created_at": "2026-11-23T16:52:46.037052Z",
        "removed": ["a", "b"],
        "steps": [{"name": "dump", "seconds": 2}, {"name": "seal", "note": None}],
        "proof": {"level": "invariants"},
    }
    lines = printed(tables.facts(result))
    assert lines == [
        "  size_bytes   954.7 KiB (977,582)",
        "  seconds      1.8 s",
        "  writes_kept  no",
        "  created_at   2026-11-23T16:52:46Z",
        "  removed      a, b",
        "  steps        name dump, seconds 2.0 s",
        "               name seal",
        "  proof.level  invariants",
    ]


def test_eighty_columns_hold_a_hash_and_a_run_in_one_line() -> None:
    assert printed(tables.facts({"size_bytes": 1, "sha256": HASH}))[1].endswith(HASH)
    run = {"id": "20261123-165716-846210", "operation": "config_restore", "status": "succeeded"}
    columns = {"RUN": "id", "OPERATION": "operation", "STATUS": "status", "WHY": "why"}
    header, line, rest = printed(tables.listing([{**run, "why": "it " * 20}], columns))
    assert header.split() == ["RUN", "OPERATION", "STATUS", "WHY"]
    assert line.startswith("20261123-165716-846210  config_restore  succeeded  it it")
    assert rest.startswith(" " * 50)
