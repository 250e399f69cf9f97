"""Rebuilds the index, which PostgreSQL is, from the record, which the run directories are.

For a control database that was lost, or restored from before some runs. What has ended is entered as it ended; what
lives is entered as running, and a worker follows it; whatever died without an outcome gets one.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Json

from bazaruto.config import Settings
from bazaruto.control import events, runs
from bazaruto.control.engine import journal, rundir, sweep
from bazaruto.control.node import node_name
from bazaruto.control.retention import evidence

NEVER_STARTED = "It had not started when the control database was lost: launch it again."
JSON_COLUMNS = ("parameters", "result", "hosts", "plan")
LATER_COLUMNS = (  # which directories of the version before do not have
    "approval",
    "plan_for",
    "plan_run",
    "confirming_run",
    "plan",
    "approval_expires_at",
    "approved_at",
    "approved_by",
    "approve_reason",
)


def reindex(settings: Settings) -> Iterator[str]:
    """Enter every run of this node that the database does not have, and events it lacks; a line for each."""
    node = node_name(settings.home)
    directories = sorted(path for path in (settings.home / "control" / "runs").glob("*") if path.is_dir())
    with psycopg.connect(settings.control_database_url, row_factory=dict_row, autocommit=True) as connection:
        for path in directories:
            directory = rundir.RunDirectory(path)
            try:
                said = _enter(connection, directory, node)
            except (OSError, ValueError, KeyError, TypeError, psycopg.Error) as error:
                said = f"cannot be entered: {type(error).__name__}: {error}"
            if said and path.is_dir():  # else retention has removed it meanwhile
                yield f"{path.name}: {said}"


def _enter(connection: psycopg.Connection[Any], directory: rundir.RunDirectory, node: str) -> str | None:
    lock = rundir.try_lock(directory.follower_lock)
    if lock is None:
        return None  # a worker follows it, and fills the index up
    with rundir.held(lock):
        row = runs.find(connection, directory.path.name)
        if row is None:
            return _enter_anew(connection, directory, node)
        if not runs.RunStatus(row["status"]).terminal or not directory.events_file.exists():
            return None
        added = fill(connection, directory, row["day"])
        return f"{added} events added" if added else None


def _enter_anew(connection: psycopg.Connection[Any], directory: rundir.RunDirectory, node: str) -> str:
    record = directory.spec().record
    outcome = outcome_of(directory)
    with connection.transaction():
        connection.execute(runs.SQL.enter_run, _row(record, node, outcome))
        for change in record["changes"]:
            connection.execute(runs.SQL.enter_change, {"run": record["id"], **change})
        if outcome is None:
            return "entered as running; a worker follows it"
        runs.note(connection, record["id"], runs.RunStatus(outcome.status), outcome.error or "the playbook ended")
        added = fill(connection, directory, record["day"])
        if outcome.events and not directory.events_file.exists():
            connection.execute(evidence.SQL.mark_without_events, {"ids": [record["id"]]})
    return f"entered as {outcome.status}, with {added} events"


def outcome_of(directory: rundir.RunDirectory) -> rundir.Outcome | None:
    """How a run ended, also one whose processes died; None while it lives."""
    living = rundir.is_locked(directory.supervisor_lock)
    return None if living else directory.outcome() or _outcome_of_the_dead(directory)


def _outcome_of_the_dead(directory: rundir.RunDirectory) -> rundir.Outcome:
    """What becomes of a run without an outcome and without anybody who could write one."""
    if directory.was_started():
        return sweep.bury(directory)
    now = journal.utc()
    outcome = rundir.Outcome("interrupted", now, now, events=0, error=NEVER_STARTED, seconds=0.0)
    directory.write_outcome(outcome)
    return outcome


def _row(record: dict[str, Any], node: str, outcome: rundir.Outcome | None) -> dict[str, Any]:
    """The run's columns: as they were when it was claimed, then as it ended."""
    later = dict.fromkeys(LATER_COLUMNS)
    values = {**later, **record, "node": node, "status": "running", "finished_at": None, "events": 0}
    if outcome:
        values |= {
            "status": outcome.status,
            "finished_at": _finished_at(record, outcome),
            "error": outcome.error,
            "result": outcome.result,
            "hosts": outcome.hosts,
            "events": outcome.events,
            "left_running": outcome.left_running,
        }
    as_json = {name: None if values[name] is None else Json(values[name]) for name in JSON_COLUMNS}
    return {**values, **as_json}


def _finished_at(record: dict[str, Any], outcome: rundir.Outcome) -> datetime.datetime:
    started_at = datetime.datetime.fromisoformat(record["started_at"])
    if outcome.seconds is not None:
        return started_at + datetime.timedelta(seconds=outcome.seconds)
    return max(started_at, datetime.datetime.fromisoformat(outcome.finished_at))


def fill(connection: psycopg.Connection[Any], directory: rundir.RunDirectory, day: Any) -> int:
    """Copy the events that PostgreSQL lacks; how many those were."""
    run, added = directory.path.name, 0
    reader = journal.JournalReader(directory.events_file, events.resume(connection, day, run))
    while batch := reader.read():
        events.store(connection, day, run, batch)
        added += len(batch)
    return added
