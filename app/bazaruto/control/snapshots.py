"""Which snapshots of the content nobody needs any more; and the lock that keeps them while a launch is being accepted.

A launch is checked against a snapshot before its run is written down. In between no run refers to that snapshot, which
is why whoever accepts holds the lock, shared, and whoever removes holds it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from bazaruto.config import Settings
from bazaruto.control import content_files
from bazaruto.control.content import NAME_LENGTH
from bazaruto.control.content_files import ContentError

PATIENCE_SECONDS = (
    30.0  # for launches that are being accepted; they take milliseconds, and seconds without the database
)
LOOK_SECONDS = 0.05


@contextlib.contextmanager
def kept(home: Path) -> Iterator[None]:
    """While a launch is being accepted: no snapshot is removed."""
    descriptor = _open(home)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def at_rest(home: Path) -> Iterator[bool]:
    """While snapshots are removed: no launch is accepted. False when launches leave no room for that."""
    descriptor, until = _open(home), time.monotonic() + PATIENCE_SECONDS
    try:
        while not (alone := _try_alone(descriptor)) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        yield alone
    finally:
        os.close(descriptor)


def unused(settings: Settings, in_use: Collection[str]) -> list[Path]:
    """The snapshots that are neither in use, by the beginning of their digest, nor the current or the newest one."""
    store = settings.home / "control" / "content"
    if not store.is_dir():
        return []
    found = sorted(path for path in store.iterdir() if not path.name.startswith("."))
    current = _current(settings.content_directory)
    newest = max((path.stat().st_mtime for path in found), default=0.0)
    return [
        path
        for path in found
        if path.name[:NAME_LENGTH] not in in_use
        and path.name[:NAME_LENGTH] != current
        and path.stat().st_mtime < newest
    ]


def _current(source: Path) -> str | None:
    """The name a snapshot of the source would have now; None while it cannot be read."""
    root = Path(os.path.realpath(source))
    try:
        files = content_files.read(root, content_files.fingerprint(root))
    except (OSError, ContentError):
        return None
    return content_files.digest(files)[:NAME_LENGTH]


def _open(home: Path) -> int:
    return os.open(home / "control" / "content.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
