"""Lets old runs and events go, by rules, and gives the disk back; `python -m bazaruto.control.retention` on one node.

Reads what to do as one JSON object from the standard input and answers with one on the standard output. The settings
are those of the home: how the control database is reached stands in its files, never in an argument.
"""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from pydantic import BaseModel, ConfigDict, ValidationError

from bazaruto import config
from bazaruto.config import Settings
from bazaruto.control import launch, observe, output, snapshots
from bazaruto.control.retention import evidence, reclaim, removal
from bazaruto.control.retention.evidence import SQL
from bazaruto.control.retention.plan import NO_RUN, Plan, make_plan
from bazaruto.control.retention.rules import WrongRules, parse_rules

NAMED = 500  # runs that a result names; all are counted
PROBLEMS = (
    config.SettingsError,
    observe.NotMigratedError,
    evidence.EvidenceUnknown,
    WrongRules,
    psycopg.Error,
    OSError,
)


class BusyError(OSError):
    """Another retention is at work on this node."""


class Request(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: bool  # only say what would go
    rules: dict[str, Any]  # of every operation
    operations: dict[str, Any] = {}  # their own, where they have any
    backup_directories: list[Path] = []  # whose manifests and proofs name runs; none: the one of the settings


@dataclasses.dataclass
class Gone:
    """What went, or would."""

    runs: list[str]
    without_events: list[str]
    snapshots: list[str]
    snapshots_busy: bool
    leftovers: int
    reclaimed: reclaim.Reclaimed

    @property
    def changed(self) -> bool:
        reclaimed = [*self.reclaimed.dropped, *self.reclaimed.rewritten]
        return bool(self.runs or self.without_events or self.snapshots or self.leftovers or reclaimed)


def retain(settings: Settings, request: Request) -> dict[str, Any]:
    """Do, or foretell, all of it on this node; the result."""
    started = time.monotonic()
    rules = parse_rules(request.rules, request.operations)
    storages = request.backup_directories or _storages(settings)
    node = output.this_node(settings.home)
    with _alone(settings.home), _connected(settings) as connection:
        before = _measure(connection, settings)
        leftovers = 0 if request.check else removal.finish(connection, settings)
        plan = make_plan(connection, settings, node, storages, rules)
        gone = _foretell(settings, plan) if request.check else _do(connection, settings, plan, leftovers)
        after = before if request.check else _measure(connection, settings)
    return {
        "node": node,
        "check": request.check,
        "changed": gone.changed,
        **_counted(plan, gone),
        "database": _returned(before["database"], None if request.check else after["database"]),
        "disk": _returned(
            before["disk"], before["disk"] - _leaving(settings, gone) if request.check else after["disk"]
        ),
        "seconds": round(time.monotonic() - started, 3),
    }


def _storages(settings: Settings) -> list[Path]:
    """Where backups lie. Those of the control plane itself may not have begun yet."""
    own = settings.control_backup_directory
    return [settings.backup_directory, *([own] if own.is_dir() else [])]


def _do(connection: Connection[DictRow], settings: Settings, plan: Plan, leftovers: int) -> Gone:
    removed = removal.remove(connection, settings, plan)
    gone, busy = _remove_snapshots(connection, settings)
    reclaimed = reclaim.reclaim(connection, plan.drop, vacuum=bool(removed.runs or removed.without_events))
    return Gone(removed.runs, removed.without_events, gone, busy, leftovers, reclaimed)


def _remove_snapshots(connection: Connection[DictRow], settings: Settings) -> tuple[list[str], bool]:
    """The snapshots that are gone, and whether launches left no time to look."""
    with snapshots.at_rest(settings.home) as alone:
        if not alone:
            return [], True
        in_use = {row["snapshot"] for row in connection.execute(SQL.snapshots_in_use)}
        unused = snapshots.unused(settings, in_use)
        moved = [removal.move_snapshot(settings.home, path) for path in unused]
    for path in moved:
        removal.remove_tree(path)
    return [path.name for path in unused], False


def _foretell(settings: Settings, plan: Plan) -> Gone:
    leaving = set(plan.runs)
    in_use = {row["snapshot"] for run, row in plan.rows.items() if run not in leaving and row["snapshot"]}
    unused = [path.name for path in snapshots.unused(settings, in_use)]
    reclaimed = reclaim.Reclaimed([each.name for each in plan.drop], [each.name for each in plan.rewrite])
    leftovers = len(removal.left_behind(settings.home, plan.rows))
    return Gone(list(plan.runs), list(plan.without_events), unused, False, leftovers, reclaimed)


def _counted(plan: Plan, gone: Gone) -> dict[str, Any]:
    """What went, by operation too, and what would have gone but must stay."""
    runs, kept = set(gone.runs), collections.Counter(plan.kept.values())
    operations: dict[str, dict[str, Any]] = {}
    for run in [*gone.runs, *gone.without_events, *plan.kept]:
        _of(operations, plan.rows[run]["operation"])
    for run in [*gone.runs, *gone.without_events]:
        each = _of(operations, plan.rows[run]["operation"])
        each["runs_removed" if run in runs else "runs_without_events"] += 1
        each["events_removed"] += plan.events.get(run, 0)
    for run, reason in plan.kept.items():
        of_operation = _of(operations, plan.rows[run]["operation"])["kept_though_due"]
        of_operation[reason] = of_operation.get(reason, 0) + 1
    if plan.events.get(NO_RUN):
        _of(operations, NO_RUN)["events_removed"] = plan.events[NO_RUN]
    return {
        "runs_removed": len(gone.runs),
        "runs_without_events": len(gone.without_events),
        "events_removed": sum(each["events_removed"] for each in operations.values()),
        "snapshots_removed": len(gone.snapshots),
        "leftovers_removed": gone.leftovers,
        "kept_though_due": dict(kept.most_common()),
        "operations": dict(sorted(operations.items())),
        "partitions_dropped": len(gone.reclaimed.dropped),
        "partitions_rewritten": len(gone.reclaimed.rewritten),
        "left_to_the_next_time": [*gone.reclaimed.busy, *(["snapshots"] if gone.snapshots_busy else [])],
        "runs": gone.runs[:NAMED],
        "runs_not_named": max(0, len(gone.runs) - NAMED),
    }


def _of(operations: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    nothing = {"runs_removed": 0, "runs_without_events": 0, "events_removed": 0, "kept_though_due": {}}
    return operations.setdefault(name, nothing)


def _measure(connection: Connection[DictRow], settings: Settings) -> dict[str, int]:
    row = connection.execute(SQL.database_bytes).fetchone() or {}
    control = settings.home / "control"
    return {
        "database": int(row["bytes"]),
        "disk": removal.bytes_of([control / "runs", control / "removed", control / "content"]),
    }


def _leaving(settings: Settings, gone: Gone) -> int:
    """What the directories take that would go."""
    control = settings.home / "control"
    events = [launch.directory_of(settings, run) for run in gone.without_events]
    return removal.bytes_of(
        [
            *(control / "runs" / run for run in gone.runs),
            *(control / "content" / name for name in gone.snapshots),
            *(each.events_file for each in events),
            *(each.output_file for each in events),
        ]
    )


def _returned(before: int, after: int | None) -> dict[str, int | None]:
    return {
        "bytes_before": before,
        "bytes_after": after,
        "bytes_returned": None if after is None else max(0, before - after),
    }


@contextmanager
def _connected(settings: Settings) -> Iterator[Connection[DictRow]]:
    """The control database, without a limit of time: a large table takes what it takes."""
    url = settings.control_database_url
    if not url:
        raise config.SettingsError(
            f"Where the control database is is not known in {settings.home}: put control_database_url into a settings "
            "file (0600) and name that in run_retention_settings_file, or in the BAZARUTO_CONFIG of the worker."
        )
    with psycopg.connect(url, autocommit=True, row_factory=dict_row, application_name="bazaruto-retention") as opened:
        opened.execute("SET timezone = 'UTC'")
        yield opened


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One retention at a time on a node, whoever starts it."""
    descriptor = os.open(home / "control" / "retention.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BusyError("Another retention is at work on this node: wait for its end.") from None
    finally:
        os.close(descriptor)


def main(given: str, environment: Mapping[str, str]) -> int:
    """Read the request, answer it; a failure is one sentence on the standard error."""
    try:
        request = Request.model_validate_json(given)
        settings = config.load(environment)
        observe.refuse_without_tables(settings)
        result = retain(settings, request)
    except ValidationError as error:
        return _refuse("; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()))
    except PROBLEMS as error:
        return _refuse(str(error))
    print(json.dumps(result))
    return 0


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1
