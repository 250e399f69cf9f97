"""What retention would remove at this moment: the same answer for a dry run and for the real one."""

from __future__ import annotations

import collections
import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from psycopg import Connection

from bazaruto.config import Settings
from bazaruto.control.retention import evidence
from bazaruto.control.retention.evidence import SQL
from bazaruto.control.retention.rules import Rules

NO_RUN = "(no run)"  # the operation of events whose run is gone already
WORTHWHILE_BYTES = 1024 * 1024  # a partition smaller than that is not written anew
WORTHWHILE_SHARE = 0.2  # of a partition's events that are gone, from which on it is


@dataclasses.dataclass(frozen=True)
class Partition:
    """The events of the runs of one day."""

    day: datetime.date
    name: str
    in_use: bool  # runs of that day may still be written
    bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What goes, and what would go but must stay."""

    rows: Mapping[str, Mapping[str, Any]]  # all runs there are
    runs: Sequence[str]  # to be removed, newest first
    without_events: Sequence[str]  # stay, but their events and output go
    kept: Mapping[str, str]  # run → why it stays although a rule lets it go
    drop: Sequence[Partition]  # no run that stays has events in them
    rewrite: Sequence[Partition]  # will have lost a worthwhile share
    events: Mapping[str, int]  # run → events that go; those of nobody under NO_RUN

    def days_of(self, runs: Iterable[str]) -> list[datetime.date]:
        """The days whose events are deleted one by one: not those whose partition goes as a whole."""
        whole = {partition.day for partition in self.drop}
        return sorted({self.rows[run]["day"] for run in runs} - whole)


def make_plan(
    connection: Connection[Any], settings: Settings, node: str, storages: Sequence[Path], rules: Rules
) -> Plan:
    """Decide for every run. Those of other nodes stay: their directories are there. Raises EvidenceUnknown."""
    everything = connection.execute(SQL.all_runs).fetchall()
    ours = [row for row in everything if row["node"] in (None, node)]
    ended = [row for row in ours if not row["living"]]
    due = [row for row in ended if rules.of(row["operation"]).lets_go(row)]
    silent = [row for row in ended if not row["without_events"] and rules.of(row["operation"]).lets_events_go(row)]
    due_ids = {row["id"] for row in due}
    living = [row for row in ours if row["living"] and rules.of(row["operation"]).would_let_go(row)]
    asked = {row["id"]: row for row in [*due, *silent, *living]}
    kept = evidence.direct(connection, settings, storages, list(asked.values()))
    kept |= evidence.by_reference(everything, due_ids - kept.keys())
    runs = [row["id"] for row in due if row["id"] not in kept]
    going = set(runs)
    left = [row for row in everything if row["id"] not in going]
    quiet = {row["id"] for row in silent} - due_ids - kept.keys()
    kept |= evidence.by_reference(left, quiet)
    without = [row["id"] for row in silent if row["id"] in quiet and row["id"] not in kept]
    return _with_events(connection, {row["id"]: row for row in everything}, runs, without, kept)


def _with_events(
    connection: Connection[Any],
    rows: Mapping[str, Mapping[str, Any]],
    runs: Sequence[str],
    without: Sequence[str],
    kept: Mapping[str, str],
) -> Plan:
    present = partitions(connection)
    going = {*runs, *without}
    needed = {row["day"] for row in rows.values() if row["id"] not in going and _has_events(row)}
    drop = [each for each in present if not each.in_use and each.day not in needed]
    whole = [each.day for each in drop]
    counted = connection.execute(SQL.events_of_days, {"days": whole}).fetchall()
    days = sorted({rows[run]["day"] for run in going}.difference(whole))
    single = connection.execute(SQL.events_of_runs, {"days": days, "ids": list(going)}).fetchall()
    events: collections.Counter[str] = collections.Counter()
    for row in [*counted, *single]:
        events[row["run"] if row["run"] in rows else NO_RUN] += row["events"]
    leaving: collections.Counter[datetime.date] = collections.Counter()
    for row in single:
        leaving[row["day"]] += row["events"]
    rewrite = to_rewrite(connection, [each for each in present if each.day not in whole], leaving)
    return Plan(rows, runs, without, kept, drop, rewrite, events)


def _has_events(row: Mapping[str, Any]) -> bool:
    return row["living"] or (row["events"] > 0 and not row["without_events"])


def to_rewrite(
    connection: Connection[Any], partitions: Sequence[Partition], leaving: Mapping[datetime.date, int]
) -> list[Partition]:
    """The partitions that lost so much, once what is leaving has left, that writing them anew pays."""
    removed = collections.Counter({row["day"]: row["removed"] for row in connection.execute(SQL.to_rewrite)})
    removed.update(leaving)
    found = []
    for each in partitions:
        if removed[each.day] and not each.in_use and each.bytes >= WORTHWHILE_BYTES:
            counted = connection.execute(SQL.events_of_days, {"days": [each.day]}).fetchall()
            left = sum(row["events"] for row in counted) - leaving.get(each.day, 0)
            if removed[each.day] >= WORTHWHILE_SHARE * (removed[each.day] + left):
                found.append(each)
    return found


def partitions(connection: Connection[Any]) -> list[Partition]:
    """All there are."""
    return [Partition(**row) for row in connection.execute(SQL.partitions).fetchall()]
