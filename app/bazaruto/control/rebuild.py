"""Makes a control database that was restored from a backup true again, before any worker looks at it.

The run directories know what became of runs since. A run that waited in the backup and has no directory may have been
canceled, or started elsewhere, since: nobody knows, so it is ended and never started.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import dict_row

from bazaruto import database
from bazaruto.config import Settings
from bazaruto.control import access, admin_token, launch, reindex, runs, tokens
from bazaruto.control.audit import heads, repairs
from bazaruto.control.audit.changes import Actor, Audit
from bazaruto.control.audit.heads import AuditUnwritable
from bazaruto.control.engine import rundir
from bazaruto.control.keys import Keys, KeyUnusable
from bazaruto.control.node import node_name
from bazaruto.database import statements

SQL = statements(__package__, "rebuild.sql")
UNKNOWN = (
    "It waited when the control database was backed up ({backup}), from which that was restored. Whether it was "
    "started elsewhere or canceled since is not known, so it is not started: launch it again if it is still wanted."
)


@dataclasses.dataclass(frozen=True)
class Counts:
    """What there is now."""

    runs: int
    events: int
    audit_entries: int
    tokens: int  # that were not revoked in the backup


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """What was found, and what there is now."""

    lines: list[str]  # a sentence for each thing that a person should know
    now: Counts


def after_restore(settings: Settings, backup: str) -> Rebuilt:
    """All of it, in the order in which each needs the one before. Doing it twice changes nothing the second time."""
    lines = [*_settle(settings, backup), *reindex.reindex(settings), *_keys(settings), *_audit(settings, backup)]
    lines += _admin(settings)
    with _connected(settings) as connection:
        counts = connection.execute(SQL.counts).fetchone() or {}
    return Rebuilt(lines, Counts(**counts))


def _settle(settings: Settings, backup: str) -> Iterator[str]:
    """Runs that the backup takes for running or waiting, as their directories know them."""
    node = node_name(settings.home)
    with _connected(settings) as connection:
        for row in connection.execute(SQL.not_over).fetchall():
            directory = launch.directory_of(settings, row["id"])
            if directory.path.is_dir() and (directory.was_started() or directory.outcome()):
                if row["status"] != "running" or row["node"] == node:
                    yield f"{row['id']}: {_take_over(connection, directory, row, node)}"
            elif row["status"] != "running":
                yield f"{row['id']}: {_end_unknown(connection, row, backup)}"


def _take_over(
    connection: psycopg.Connection[Any], directory: rundir.RunDirectory, row: dict[str, Any], node: str
) -> str:
    """A run with a directory: as it ended, or as running where it still lives."""
    lock = rundir.try_lock(directory.follower_lock)
    if lock is None:
        return "is followed by a worker: stop all workers first"
    with rundir.held(lock), connection.transaction():
        started = directory.spec().started_at
        connection.execute(SQL.had_started, {"id": row["id"], "node": node, "started_at": started})
        outcome = reindex.outcome_of(directory)
        if outcome is None:
            return "is still running; a worker follows it"
        added = reindex.fill(connection, directory, row["day"])
        known = max(outcome.events, row["events"])
        runs.end(connection, row["id"], dataclasses.replace(outcome, events=known))
    return f"was {row['status']} in the backup; it has ended as {outcome.status}, {added} events added"


def _end_unknown(connection: psycopg.Connection[Any], row: dict[str, Any], backup: str) -> str:
    error = UNKNOWN.format(backup=backup)
    with connection.transaction():
        ended = connection.execute(SQL.end_unknown, {"id": row["id"], "error": error}).fetchone()
        if ended is None:
            return "is waiting no more"
        runs.note(connection, row["id"], runs.RunStatus(ended["status"]), error)
        counted = {"operation": ended["operation"], "status": ended["status"], "seconds": ended["seconds"]}
        connection.execute(runs.SQL.count_ended, counted)
    return f"was {row['status']} in the backup and has no directory here; it is {ended['status']} and is not started"


def _keys(settings: Settings) -> Iterator[str]:
    """A key that is lost, or another one, is said, and never made anew."""
    with _connected(settings) as connection:
        for state in Keys(settings.home).states(connection):
            if state.problem:
                yield f"{state.name}: {state.problem}"


def _audit(settings: Settings, backup: str) -> Iterator[str]:
    """Where the file of heads knows entries that the database has lost, the audit says so itself."""
    few = settings.db.model_copy(update={"min_connections": 0, "max_connections": 2})
    with database.open_pool(settings.control_database_url, few, "bazaruto-rebuild") as pool:
        with pool.connection() as connection:
            last = connection.execute(SQL.last_entry).fetchone() or {"seq": 0}
        audit = Audit(settings.home, pool)
        beyond = _heads_beyond(audit, last["seq"])
        if not beyond:
            return
        lost = f"entries {last['seq'] + 1} to {beyond} are lost"
        reason = f"the control database was restored from {backup}"
        try:
            repairs.accept_rotation(audit, Actor("control_rebuild"), reason)
        except (AuditUnwritable, KeyUnusable) as error:
            yield f"audit: {lost}, and that could not be entered: {error}"
        else:
            yield f"audit: {lost}, which is entered as the one after {last['seq']}"


def _heads_beyond(audit: Audit, last: int) -> int:
    """The last entry that the files of heads know and the database does not; 0 when there is none."""
    found = 0
    for path in heads.files(audit.heads.path.parent):
        for line in heads.lines(path, path.stat().st_size):
            if line and line.state == "head" and line.seq > last:
                found = max(found, line.seq)
    return found


def _admin(settings: Settings) -> Iterator[str]:
    """Whoever may write the admin token's file is an admin: when the database does not know that token, a new one."""
    path = tokens.admin_file(settings.home)
    try:
        with _connected(settings) as connection:
            access.identify(connection, access.shown(f"Bearer {path.read_text(encoding='utf-8').strip()}"))
    except (OSError, access.NotIdentified):
        try:
            admin_token.replace(settings)
        except (AuditUnwritable, KeyUnusable, admin_token.CannotWriteToken) as error:
            yield f"{path} is no token of this database, and a new one cannot be made: {error}"
        else:
            yield f"{path} was no token of this database: it is a new one"


def _connected(settings: Settings) -> psycopg.Connection[Any]:
    return psycopg.connect(settings.control_database_url, row_factory=dict_row, autocommit=True)
