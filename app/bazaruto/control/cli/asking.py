"""Whom the commands ask: this machine's control plane; and what names a run there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bazaruto import config
from bazaruto.control.client_errors import RefusedError

if TYPE_CHECKING:
    from bazaruto.control.client import Client


def client() -> Client:
    """A client with this machine's token."""
    from bazaruto.control.client import connect

    return connect(config.load())


def path(run: str) -> str:
    """Where a run is."""
    return f"/api/v1/runs/{checked(run)}"


def checked(run: str) -> str:
    """A run's id; anything else would be another path."""
    if not run.replace("-", "").isalnum() or not run.isascii():
        raise RefusedError(f"{run} is no run's id: `bazaruto runs` lists them.")
    return run


def word(name: str) -> str:
    """A name that is one part of a path; anything else would be another path."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise RefusedError(f"{name!r} is no name.")
    return name
