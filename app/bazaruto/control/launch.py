"""Starts the supervisor of a run that this node has the right to run."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bazaruto import processes
from bazaruto.config import Settings
from bazaruto.control.catalog import Catalogue
from bazaruto.control.engine import rundir, surroundings
from bazaruto.control.engine.launcher import Launcher, Request


class UnknownOperationError(Exception):
    """The content that a run was accepted with does not have its operation."""


class AlreadyStartedError(Exception):
    """A database that lost its last commits offers a run again; its directory remembers better."""


def directory_of(settings: Settings, run: str) -> rundir.RunDirectory:
    """Where a run's record is."""
    return rundir.RunDirectory(settings.home / "control" / "runs" / run)


def prepare(
    settings: Settings, catalogue: Catalogue, row: Mapping[str, Any], variables: dict[str, Any]
) -> rundir.RunDirectory:
    """Make the directory of a claimed run."""
    operation = catalogue.operations.get(row["operation"])
    if operation is None:
        raise UnknownOperationError(f"its content has no operation {row['operation']}")
    directory = directory_of(settings, row["id"])
    spec = rundir.Spec(
        run=row["id"],
        operation=row["operation"],
        environment=row["environment"],
        content_directory=str(catalogue.directory),
        playbook=str(catalogue.playbook(operation)),
        inventory=str(catalogue.inventory(row["environment"])),
        timeout_seconds=row["timeout_seconds"],
        idle_timeout_seconds=row["idle_timeout_seconds"],
        check=row["check_mode"],
        diff=row["diff"],
        limit=row["host_limit"],
        secret_variables=row["secret_variables"],
        vault_password_file=str(settings.vault_password_file) if settings.vault_password_file != Path() else None,
        tolerates=row["tolerates"],
        claimed_boot=processes.boot_id(),
        claimed_boot_seconds=rundir.boot_seconds(),
        record=record_of(row),
    )
    if directory.was_started():
        raise AlreadyStartedError(f"{directory.path} shows that it was started before")
    if directory.path.exists():
        shutil.rmtree(directory.path)  # of a claim that was never committed: no supervisor has seen it
    directory.create(spec, variables)
    return directory


def record_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The run as it lies in its directory: all that is known of it but what is sealed, moments in UTC."""
    return {name: _plain(value) for name, value in row.items() if name != "variables"}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat()
    return value.isoformat() if isinstance(value, datetime.date) else value


def start(home: Path, content_directory: Path, directory: rundir.RunDirectory, lock: int, warm: Launcher) -> int:
    """Start the run's guard, hand it the lock that is the run's sign of life, and return its pid."""
    run = directory.path.name
    log = os.open(directory.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        variables = surroundings.environment(home, content_directory, run)
        return warm.begin(Request(run, str(directory.path), variables, str(content_directory)), lock, log)
    finally:
        os.close(log)
