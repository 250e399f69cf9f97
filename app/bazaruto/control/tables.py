"""Results and lists as tables for people: empty things left out, nested ones told in words; `-o json` has all."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z")
GAP = (0, 2, 0, 0)  # between columns; none before the first, so that 80 columns hold a hash


def facts(value: Any) -> Table:
    """An object, name by name."""
    table = Table(show_header=False, box=None, padding=GAP, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, item in _flat(value if isinstance(value, Mapping) else {"result": value}):
        if not _is_empty(item):
            table.add_row(f"  {name}", _shown(name, item))
    return table


def listing(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """A list: column title → key. Only the last column is folded; states have their colours."""
    table = Table(box=None, padding=GAP, pad_edge=False, header_style="bold")
    for title in columns:
        table.add_column(title, overflow="fold", no_wrap=title != list(columns)[-1])
    for row in rows:
        cells = [Text(_shown(key, row.get(key)), style=STYLES.get(str(row.get(key)), "")) for key in columns.values()]
        table.add_row(*cells)
    return table


def took(run: Mapping[str, Any]) -> str:
    """How long a run took; nothing while it has not ended."""
    if not run["started_at"] or not run["finished_at"]:
        return ""
    begun, ended = (datetime.datetime.fromisoformat(run[name]) for name in ("started_at", "finished_at"))
    return f"{(ended - begun).total_seconds():.1f} s"


def moment(text: str) -> str:
    """A time to the second; any other text as it is."""
    found = MOMENT.fullmatch(text)
    return f"{found[1]}Z" if found else text


def size(count: float) -> str:
    """Bytes as a person reads them."""
    if count < 1024:
        return f"{count:,.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested names joined by dots; an object that only holds counts stays together."""
    for name, item in value.items():
        if isinstance(item, Mapping) and not _are_counts(item):
            yield from _flat(item, f"{prefix}{name}.")
        elif not name.endswith("_ns"):  # for comparing, not for reading
            yield f"{prefix}{name}", item


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | Mapping) and not value)


def _are_counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(count) is int for count in value.values())


def _are_checks(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) and {"name", "ok"} <= set(each) for each in value)


def _shown(name: str, value: Any) -> str:
    """One value in words; `name` says what its numbers count."""
    last = name.rpartition(".")[2]
    if _are_checks(value):
        return _checks(value)
    if _are_counts(value):
        return _counts(value, summed=last.endswith("rows"))
    if isinstance(value, list):
        apart = "\n" if any(isinstance(item, Mapping) for item in value) else ", "
        return apart.join(_shown("", item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(key, item)}" for key, item in value.items() if not _is_empty(item))
    return _one(last, value)


def _one(name: str, value: Any) -> str:
    """A value that holds no others."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(name, value)
    return moment(str(value))


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many hold, and each that does not."""
    broken = [check for check in checks if not check["ok"]]
    lines = [f"{len(checks) - len(broken)} of {len(checks)} hold"]
    return "\n".join([*lines, *(f"✗ {check['name']}  {check.get('detail') or ''}".rstrip() for check in broken)])


def _counts(counts: Mapping[str, int], *, summed: bool) -> str:
    """What there is most of first; what there is none of is not named."""
    some = sorted(((count, name) for name, count in counts.items() if count), key=lambda each: (-each[0], each[1]))
    told = ", ".join(f"{name} {count:,}" for count, name in some)
    return f"{sum(counts.values()):,}: {told}".removesuffix(": ") if summed else told or "none"


def _number(name: str, value: float) -> str:
    if name.endswith("bytes"):
        return f"{size(value)} ({value:,})" if value >= 1024 else size(value)
    if name.endswith("seconds"):
        return f"{value:,.1f} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
