"""Prints what the faults came to."""

from __future__ import annotations

from collections.abc import Sequence

from .suite import Row

HEAD = ("fault", "runs", "counted", "untrue", "left", "slowest s")


def table(rows: Sequence[Row]) -> str:
    """One line for each fault, the total, and why something was left out."""
    cells = [HEAD, *(_cells(row) for row in rows if not row.skipped), _cells(_sum(rows))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines = [
        "  ".join(
            word.ljust(width) if column == 0 else word.rjust(width) for column, (word, width) in _numbered(row, widths)
        )
        for row in cells
    ]
    lines += [f"left out: {row.fault}: {row.skipped}" for row in rows if row.skipped]
    return "\n".join(lines)


def _numbered(row: Sequence[str], widths: Sequence[int]) -> enumerate[tuple[str, int]]:
    return enumerate(zip(row, widths, strict=True))


def _cells(row: Row) -> tuple[str, ...]:
    mark = "" if row.fine else " !"
    return (row.fault + mark, *map(str, (row.runs, row.counted, row.untrue, row.left)), f"{row.slowest:.1f}")


def _sum(rows: Sequence[Row]) -> Row:
    return Row(
        "all",
        runs=sum(row.runs for row in rows),
        counted=sum(row.counted for row in rows),
        untrue=sum(row.untrue for row in rows),
        left=sum(row.left for row in rows),
        slowest=max((row.slowest for row in rows), default=0.0),
        lies=[lie for row in rows for lie in row.lies],
    )
