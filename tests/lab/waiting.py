"""Waiting for what becomes true, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.lab.errors import LabError

PAUSE_SECONDS = 0.03


def becomes_true(true: Callable[[], bool], seconds: float) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


def until(true: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait until it is true, or say what is not."""
    if not becomes_true(true, seconds):
        raise LabError(f"After {seconds:g} s {otherwise}.")
