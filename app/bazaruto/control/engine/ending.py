"""Ends processes of a run: everything below this one, also what became a session leader or a daemon."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable

from bazaruto import processes
from bazaruto.processes import ProcessIdentity

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
BURIAL_SECONDS = 1.0  # how long the kernel may take with those that got SIGKILL, until the next look
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Descendants that lose their parent become children of this process, and can be found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def end_descendants(grace_seconds: float = GRACE_SECONDS) -> int:
    """End everything below this process; returns how many there were, when all are gone."""
    own = os.getpid()
    return end_all(lambda: processes.descendants(own), grace_seconds)


def end_all(find: Callable[[], list[ProcessIdentity]], grace_seconds: float = GRACE_SECONDS) -> int:
    """SIGTERM, the grace, SIGKILL, again until `find` finds nobody; returns how many there were."""
    family = find()
    seen = set(family)
    for member in family:
        processes.send(member, signal.SIGTERM)
        processes.send(member, signal.SIGCONT)  # a frozen process acts on no signal but this one
    processes.wait_all(family, time.monotonic() + grace_seconds)
    while left := find():
        seen |= set(left)
        for member in left:
            processes.send(member, signal.SIGKILL)
        processes.wait_all(left, time.monotonic() + BURIAL_SECONDS)
    return len(seen)
