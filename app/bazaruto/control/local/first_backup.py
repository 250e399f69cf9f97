"""The first backup of a new installation, and the drill that proves it, through the control plane."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bazaruto.control.client import Client, RefusedError, UnreachableError
from bazaruto.control.local.machine import Installation, Say, StepError
from bazaruto.control.local.servers import bin_directory

EVERY = 1_000_000  # more backups than a directory holds


@dataclasses.dataclass(frozen=True)
class FirstBackup:
    """The verified backup that the installation has."""

    backup: dict[str, Any]  # as the control plane lists it
    made_now: bool  # False: an earlier `up`, or somebody else, made it


def ensure(installation: Installation, env: dict[str, str], say: Say, *, quiet: bool = False) -> FirstBackup:
    """See that one backup is verified: nothing to do when one is, else back up (or take what waits), and drill.

    The runs print their own progress on this terminal; `quiet` sends it to the standard error.
    """
    backups = _backups(installation)
    if verified := _newest(backups, "verified"):
        return FirstBackup(verified, made_now=False)
    waiting = _newest(backups, "unverified")
    if waiting is None:
        say("First backup")
        _run(env, quiet, "backup")
        waiting = _newest(_backups(installation), "unverified")
        if waiting is None:
            raise StepError(
                "The backup succeeded, but no new one is listed: see `bazaruto backups` and `bazaruto runs`."
            )
    say(f"Restoring {waiting['name']} into a scratch database to prove it")
    _run(env, quiet, "restore_drill", "-p", f"backup={waiting['name']}")
    if verified := _newest(_backups(installation), "verified"):
        return FirstBackup(verified, made_now=True)
    raise StepError(
        f"The drill of {waiting['name']} succeeded, but it is not listed as verified: see `bazaruto backups`."
    )


def _run(env: dict[str, str], quiet: bool, operation: str, *words: str) -> None:
    here = {**env, "XDG_CONFIG_HOME": os.devnull}  # this installation, also for who is logged in to another
    argv = [str(bin_directory() / "bazaruto"), "run", operation, *words, "--reason", "bazaruto up"]
    code = subprocess.run(argv, env=here, stdout=sys.stderr if quiet else None, check=False).returncode
    if code:
        raise StepError(
            f"`bazaruto run {operation}` ended with {code}: `bazaruto runs` names it, `bazaruto logs RUN` shows why; "
            "everything else runs, and the next `bazaruto up` tries this again."
        )


def _newest(backups: list[dict[str, Any]], status: str) -> dict[str, Any] | None:
    found = [backup for backup in backups if backup["status"] == status]
    return max(found, key=lambda backup: str(backup["created_at"]), default=None)


def _backups(installation: Installation) -> list[dict[str, Any]]:
    """Every backup of the service that the control plane knows."""
    try:
        token = installation.home.admin_token.read_text(encoding="utf-8").strip()
        control = installation.local["control"]
        client = Client(control["url"], token, ca_file=Path(control.get("ca_file", "")))
        return client.items("/api/v1/backups", EVERY, kind="database")
    except (OSError, UnreachableError, RefusedError) as error:
        raise StepError(f"The backups cannot be listed: {error} See `bazaruto status`.") from error
