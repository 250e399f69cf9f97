"""What must stay although a rule lets it go: runs that something kept refers to, or that still do something."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psycopg import Connection

from bazaruto.config import Settings
from bazaruto.control import idempotency, launch
from bazaruto.control.engine import rundir
from bazaruto.database import statements

SQL = statements(__package__, "evidence.sql")

NOT_OVER = "it is not over"
UNSETTLED = "it may have left something running"
ALIVE = "a process of it lives, or follows it"
BACKUP = "it made a backup that is still there"
PROOF = "it drilled a backup that is still there"
KEY = "an idempotency key refers to it"
RETRIED = "a run that is kept tries it again"
WAITED_FOR = "a run waits for it"
PLAN = "it is the plan of a run that is kept, or has one that is"


class EvidenceUnknown(Exception):
    """It cannot be found out which runs backups refer to, so that nothing may be removed."""


def direct(
    connection: Connection[Any], settings: Settings, storages: Sequence[Path], rows: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Why each of these runs must stay, as far as that is to be seen from itself and from outside: run → reason."""
    keys = connection.execute(SQL.runs_of_keys, {"seconds": idempotency.KEPT_SECONDS}).fetchall()
    named = {**{row["run"]: KEY for row in keys}, **_named_by_backups(storages)}
    found: dict[str, str] = {}
    for row in rows:
        if reason := _state(settings, row) or named.get(row["id"]):
            found[row["id"]] = reason
    return found


def by_reference(rows: Sequence[Mapping[str, Any]], leaving: set[str]) -> dict[str, str]:
    """The runs that must not leave since one refers to them that stays, which may be so for one that was to leave."""
    links = _links(rows)
    found: dict[str, str] = {}
    staying = [row["id"] for row in rows if row["id"] not in leaving]
    while staying:
        for target, reason in links.get(staying.pop(), ()):
            if target in leaving and target not in found:
                found[target] = reason
                staying.append(target)
    return found


def _links(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Run → the runs it refers to. A plan and what it is the plan of stay, or go, together."""
    links: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for column, reason in (("retry_of", RETRIED), ("waiting_for", WAITED_FOR)):
            if row[column]:
                links.setdefault(row["id"], []).append((row[column], reason))
        for other in filter(None, (row["plan_for"], row["plan_run"], row["confirming_run"])):
            links.setdefault(row["id"], []).append((other, PLAN))
            links.setdefault(other, []).append((row["id"], PLAN))
    return links


def _state(settings: Settings, row: Mapping[str, Any]) -> str | None:
    if row["living"]:
        return NOT_OVER
    if row["unsettled"]:
        return UNSETTLED
    directory = launch.directory_of(settings, row["id"])
    alive = rundir.is_locked(directory.supervisor_lock) or rundir.is_locked(directory.follower_lock)
    return ALIVE if alive else None


def _named_by_backups(storages: Sequence[Path]) -> dict[str, str]:
    """Run → what the manifests and proofs in the storages say it did."""
    named: dict[str, str] = {}
    for storage in storages:
        try:
            listed = [*storage.iterdir(), *(storage / "proofs").glob("*.json")]
        except OSError as error:
            raise EvidenceUnknown(
                f"The backup directory {storage} cannot be read ({error.strerror}), so that nobody knows which runs "
                "its backups refer to, and none is removed: mend it; where there are no backups, make it, empty."
            ) from error
        for path in listed:
            if path.suffix == ".json" and (run := _run_of(path)):
                named.setdefault(run, PROOF if path.parent.name == "proofs" else BACKUP)
    return named


def _run_of(path: Path) -> str | None:
    """The run that a manifest or a proof names; a file that is neither names none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None  # its backup was removed meanwhile
    except ValueError:
        return None
    except OSError as error:
        raise EvidenceUnknown(f"{path} cannot be read ({error.strerror}), and no run is removed: mend it.") from error
    run = value.get("run") if isinstance(value, Mapping) else None
    return run if isinstance(run, str) and run else None
