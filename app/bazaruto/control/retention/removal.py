"""Removes runs, or only their events, so that a kill at any point leaves nothing half removed for long.

The order: a run's directory is renamed into control/removed, its rows are deleted and that is committed, the directory
is removed. What a killed one left behind is told apart by its rows: as long as they are there the directory goes back
and the run is decided upon anew; without them it is nobody's. `reindex` looks into control/runs only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from psycopg import Connection

from bazaruto.config import Settings
from bazaruto.control import launch
from bazaruto.control.engine import rundir
from bazaruto.control.retention.evidence import SQL
from bazaruto.control.retention.plan import Plan

AT_ONCE = 100  # runs in a transaction: locks are short, and so is what a kill leaves to be finished
EVENTS = ".events"  # ends the name of a directory that holds only a run's events and output
SNAPSHOT = "content-"  # begins the name of a snapshot


@dataclasses.dataclass(frozen=True)
class Removed:
    """What was done."""

    runs: list[str]
    without_events: list[str]


def directory_of(home: Path) -> Path:
    """Where lies what is being removed: on the file system of the runs, so that a rename brings it there."""
    return home / "control" / "removed"


def finish(connection: Connection[Any], settings: Settings) -> int:
    """Finish what a killed one left, or put it back to be decided upon anew; how much was removed."""
    aside, count = directory_of(settings.home), 0
    aside.mkdir(mode=0o700, parents=True, exist_ok=True)
    left = sorted(aside.iterdir())
    ids = [path.name.removesuffix(EVENTS) for path in left]
    known = {row["id"]: row for row in connection.execute(SQL.known_runs, {"ids": ids})}
    for path in left:
        row = known.get(path.name.removesuffix(EVENTS))
        directory = launch.directory_of(settings, path.name.removesuffix(EVENTS))
        if row and path.name.endswith(EVENTS) and not row["without_events"]:
            _put_back(path, directory.path)
        elif row and not path.name.endswith(EVENTS) and not directory.path.exists():
            path.rename(directory.path)
        else:
            remove_tree(path)
            count += 1
    return count


def remove(connection: Connection[Any], settings: Settings, plan: Plan) -> Removed:
    """Remove what the plan says; a run that something has come to need meanwhile stays."""
    runs, without = [], []
    for batch in _batches(plan.runs):
        runs += _batch(connection, settings, plan, batch, whole=True)
    for batch in _batches(plan.without_events):
        without += _batch(connection, settings, plan, batch, whole=False)
    return Removed(runs, without)


def _batches(runs: Sequence[str]) -> Iterator[list[str]]:
    remaining = iter(runs)
    while batch := list(itertools.islice(remaining, AT_ONCE)):
        yield batch


def _batch(connection: Connection[Any], settings: Settings, plan: Plan, ids: list[str], *, whole: bool) -> list[str]:
    """One transaction, and what follows it; the runs that are gone."""
    aside = directory_of(settings.home)
    with contextlib.ExitStack() as locks:
        with connection.transaction():
            locked = {row["id"] for row in connection.execute(SQL.lock_runs, {"ids": ids})}
            going = [run for run in ids if run in locked and _is_ours_alone(settings, run, locks)]
            if whole:
                going = _unreferred(connection, going)
            move = _move_whole if whole else _move_events
            moved = [path for run in going if (path := move(launch.directory_of(settings, run), aside))]
            _sync(settings.home)
            connection.execute(SQL.delete_events, {"days": plan.days_of(going), "ids": going})
            connection.execute(SQL.delete_runs if whole else SQL.mark_without_events, {"ids": going})
        for path in moved:
            remove_tree(path)
    return going


def _is_ours_alone(settings: Settings, run: str, locks: contextlib.ExitStack) -> bool:
    """Whether nobody follows the run or enters it again; nobody can until the locks are given back."""
    directory = launch.directory_of(settings, run)
    if not directory.path.is_dir():
        return True
    if rundir.is_locked(directory.supervisor_lock):
        return False
    lock = rundir.try_lock(directory.follower_lock)
    if lock is None:
        return False
    locks.callback(os.close, lock)
    return True


def _unreferred(connection: Connection[Any], going: list[str]) -> list[str]:
    """Those that no other run refers to: a retry may have been launched since the plan was made."""
    while found := {row["id"] for row in connection.execute(SQL.referred_to, {"ids": going})}:
        going = [run for run in going if run not in found]
    return going


def _move_whole(directory: rundir.RunDirectory, aside: Path) -> Path | None:
    if not directory.path.is_dir():
        return None  # it never started
    place = aside / directory.path.name
    if place.exists():
        remove_tree(place)  # of a run that was there once more, since a database from before was restored
    directory.path.rename(place)
    return place


def _move_events(directory: rundir.RunDirectory, aside: Path) -> Path | None:
    files = [path for path in (directory.events_file, directory.output_file) if path.exists()]
    if not files:
        return None
    place = aside / f"{directory.path.name}{EVENTS}"
    place.mkdir(mode=0o700, exist_ok=True)
    for path in files:
        path.rename(place / path.name)
    return place


def move_snapshot(home: Path, path: Path) -> Path:
    """Take a snapshot from where runs would look for it."""
    place = directory_of(home) / f"{SNAPSHOT}{path.name}"
    if place.exists():
        remove_tree(place)
    path.chmod(0o700)  # to be renamed into another directory
    path.rename(place)
    return place


def left_behind(home: Path, known: Container[str]) -> list[str]:
    """What a killed one left that is nobody's any more."""
    aside = directory_of(home)
    names = [path.name for path in aside.iterdir()] if aside.is_dir() else []
    return [name for name in names if name.removesuffix(EVENTS) not in known]


def _put_back(place: Path, directory: Path) -> None:
    for path in list(place.iterdir()):
        path.rename(directory / path.name)
    place.rmdir()


def _sync(home: Path) -> None:
    for part in ("removed", "runs"):
        if (home / "control" / part).is_dir():
            rundir.sync_directory(home / "control" / part)


def remove_tree(path: Path) -> None:
    """Remove a directory, also one that was sealed."""
    for inner, _, _ in os.walk(path):
        Path(inner).chmod(0o700)
    shutil.rmtree(path)


def bytes_of(paths: Iterable[Path]) -> int:
    """What the disk gives for these, with all that is in them; what goes meanwhile counts for nothing."""
    total = 0
    for path in paths:
        if path.is_file():
            total += path.lstat().st_blocks * 512
        for inner, _, files in os.walk(path, onerror=lambda _: None):
            for name in [".", *files]:
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(inner) / name).lstat().st_blocks * 512
    return total
