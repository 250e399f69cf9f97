"""What /debug/pprof/heap shows: a tracemalloc profile when switched on, else what is known for nothing."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

from bazaruto.config import DebugSettings

TOP_LINES = 50
FRAMES = 5  # of each allocation's stack that are kept
HOW_TO_SWITCH_ON = (
    "Allocations are not traced, which costs nothing. To trace them, set BAZARUTO_DEBUG_HEAP_PROFILE=true "
    "(debug.heap_profile in the file) and restart; requests then take about twice the processor time."
)


def start(settings: DebugSettings) -> None:
    """Begin to trace allocations, when the settings say so."""
    if settings.heap_profile and not tracemalloc.is_tracing():
        tracemalloc.start(FRAMES)


def profile() -> str:
    """A text for people: memory of the process, garbage collector, and the lines that hold most."""
    collections = gc.get_stats()
    lines = [
        f"process {os.getpid()}",
        f"resident set: {_resident_bytes()} bytes",
        f"gc counts: {gc.get_count()}, thresholds: {gc.get_threshold()}, enabled: {gc.isenabled()}",
        *(
            f"gc generation {number}: {one['collections']} collections, {one['collected']} collected, "
            f"{one['uncollectable']} uncollectable"
            for number, one in enumerate(collections)
        ),
        "",
    ]
    return "\n".join([*lines, *(_traced() if tracemalloc.is_tracing() else [HOW_TO_SWITCH_ON]), ""])


def _traced() -> list[str]:
    current, peak = tracemalloc.get_traced_memory()
    snapshot = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, "<frozen *>")]
    )
    statistics = snapshot.statistics("lineno")
    return [
        f"traced: {current} bytes now, {peak} bytes at most",
        f"the {min(TOP_LINES, len(statistics))} lines of {len(statistics)} that hold most:",
        *(
            f"{one.size:>12} bytes {one.count:>8} blocks  {one.traceback[0].filename}:{one.traceback[0].lineno}"
            for one in statistics[:TOP_LINES]
        ),
    ]


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
