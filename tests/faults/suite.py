"""What a fault is, and how it is tried: round by round, each run judged, the next change started."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable

from . import truth
from .rig import Case, Rig

NEXT_SECONDS = 60.0  # within which the next change must have succeeded, on a machine that has much else to do
Play = Callable[[Rig, int], list[Case]]
Missing = Callable[[Rig], str | None]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    name: str
    play: Play  # makes it happen to so many runs, and says what must be true of them
    batch: int  # runs at once
    missing: Missing  # why this machine cannot do it, or None


@dataclasses.dataclass
class Row:
    """What was found."""

    fault: str
    runs: int = 0
    counted: int = 0  # those that were in their task when it happened
    untrue: int = 0  # those whose record, or whose remains, said something else than the truth
    left: int = 0  # processes
    slowest: float = 0.0  # seconds to an end, after what was broken was back
    lies: list[str] = dataclasses.field(default_factory=list)
    skipped: str | None = None
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        return not self.lies and not self.left


FAULTS: dict[str, Fault] = {}


def fault(name: str, *, batch: int = 5, missing: Missing = lambda _: None) -> Callable[[Play], Play]:
    """Enter a function as a fault of this name."""

    def enter(play: Play) -> Play:
        FAULTS[name] = Fault(name, play, batch, missing)
        return play

    return enter


def attempt(rig: Rig, chosen: Fault, runs: int) -> Row:
    """Try a fault until so many runs counted, with as many again at most."""
    row = Row(chosen.name)
    started = time.monotonic()
    if reason := chosen.missing(rig):
        row.skipped = reason
        return row
    while row.counted < runs and row.runs < 2 * runs:
        _round(rig, chosen, min(chosen.batch, runs - row.counted), row)
    if row.counted < runs:
        row.lies.append(f"only {row.counted} of {row.runs} runs were in their task when it happened")
    row.seconds = time.monotonic() - started
    return row


def _round(rig: Rig, chosen: Fault, count: int, row: Row) -> None:
    try:
        cases = chosen.play(rig, count)
    except Exception:  # noqa: BLE001 - the other faults are still tried
        row.lies.append(traceback.format_exc(limit=-4))
        row.runs += count
        rig.bring_back()
        return
    rig.settle(cases)
    for case in cases:
        truth.judge(rig, case)
        row.slowest = max(row.slowest, case.seconds or 0.0)
    rig.bring_back()
    next_one = _next_change(rig)
    for case in [*cases, next_one]:
        case.lies += truth.changed_since(rig, case.record)
        row.left += case.left
        row.untrue += bool(case.lies)
        row.lies += [f"{case.run}: {lie}" for lie in case.lies]
    row.runs += len(cases)
    row.counted += sum(case.counted for case in cases)


def _next_change(rig: Rig) -> Case:
    """The next change in the environment starts and succeeds."""
    case = rig.launch("trace_change")
    case.release()
    case.must_be("succeeded", end=True, within=NEXT_SECONDS)
    rig.settle([case])
    truth.judge(rig, case)
    case.lies = [f"the next change: {lie}" for lie in case.lies]
    return case
