"""The heap profile: nothing while off, the lines that hold most while on."""

from __future__ import annotations

import tracemalloc

from bazaruto import heap
from bazaruto.config import DebugSettings


def test_while_off_nothing_is_traced_and_the_text_says_how_to_switch_it_on() -> None:
    heap.start(DebugSettings())
    assert not tracemalloc.is_tracing()
    text = heap.profile()
    assert "resident set: " in text
    assert "gc counts: " in text
    assert "BAZARUTO_DEBUG_HEAP_PROFILE=true" in text


def test_while_on_the_line_that_holds_most_is_named() -> None:
    heap.start(DebugSettings(heap_profile=True))
    try:
        kept = [bytes(1000) for _ in range(5000)]
        text = heap.profile()
    finally:
        tracemalloc.stop()
    assert len(kept) == 5000
    first = next(line for line in text.splitlines() if " blocks  " in line)
    assert "test_heap.py:" in first
    assert int(first.split()[0]) >= 5_000_000
