"""What a benchmark yields: a ratio, its two sides, and the goal it is held against."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One line of the result."""

    name: str
    ours: float
    theirs: float
    unit: str
    goal: str  # as a person reads it, for example "<= 0.5"; empty when there is none

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.theirs else float("nan")


def alternate(pairs: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """Measure both sides in turn, so that a machine that slows down slows both; medians of each."""
    left, right = [], []
    for _ in range(pairs):
        right.append(theirs())
        left.append(ours())
    return statistics.median(left), statistics.median(right)


def medians(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Measure any number of sides in turn; medians of each."""
    took: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, take in sides.items():
            took[side].append(take())
    return {side: statistics.median(values) for side, values in took.items()}


def report(figures: Sequence[Figure], path: Path) -> None:
    """Print the figures as a table and keep them as JSON."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"\n{platform.machine()}, {os.cpu_count()} CPUs, load {load}, Python {platform.python_version()}")
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        goal = f"   goal {figure.goal}" if figure.goal else ""
        print(
            f"{figure.name:<{width}}  {figure.ours:>10.3f} / {figure.theirs:>10.3f} {figure.unit:<6}"
            f" = {figure.ratio:.3f}{goal}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
    path.write_text(json.dumps({"load": load, "figures": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"kept in {path}")
