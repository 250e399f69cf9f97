"""A file that several processes append whole lines to, and that may be rotated or run out of space."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

LOOK_SECONDS = 1.0  # how often it is looked whether the file was rotated away


class LineFile:
    """Appends lines, each in one write(2) with O_APPEND; without a path they go to stderr.

    A line that cannot be written is dropped, because a full disk must not fail requests; stderr hears of it
    once, and again when lines can be written.
    """

    def __init__(self, path: Path | None, *, echo: bool = False) -> None:
        self._path = path
        self._echo = echo
        self._descriptor = -1
        self._inode = (0, 0)
        self._next_look = 0.0
        self._lost = 0
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        """Append the line, which ends with a newline.

        No lock is held during the write: it gives up the interpreter, and every other request would queue
        for that lock (measured: a fifth of the throughput).
        """
        if self._path is None or self._echo:
            _to_stderr(line)
        if self._path is None:
            return
        try:
            if time.monotonic() >= self._next_look:
                self._reopen_when_rotated(self._path)
            written = os.write(self._descriptor, line)
            if written < len(line):
                self._take_back(written)
        except OSError as error:
            self._lose(error)
        else:
            if self._lost:
                self._recovered()

    def _reopen_when_rotated(self, path: Path) -> None:
        with self._lock:
            if time.monotonic() < self._next_look:
                return
            try:
                status = path.stat()
                rotated = (status.st_dev, status.st_ino) != self._inode
            except FileNotFoundError:
                path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                rotated = True
            if rotated:
                self._open(path)
            self._next_look = time.monotonic() + LOOK_SECONDS

    def _open(self, path: Path) -> None:
        """Open the file under the same descriptor as before, because other threads may be writing to it."""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._descriptor >= 0:
            os.dup2(descriptor, self._descriptor, inheritable=False)
            os.close(descriptor)
        else:
            self._descriptor = descriptor
        opened = os.fstat(self._descriptor)
        self._inode = (opened.st_dev, opened.st_ino)

    def _take_back(self, written: int) -> None:
        """Cut off the part of a line that still fitted on the disk, unless another process wrote after it."""
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if os.fstat(self._descriptor).st_size == end:
            os.ftruncate(self._descriptor, end - written)
        raise OSError("no space for the whole line")

    def _lose(self, error: OSError) -> None:
        with self._lock:
            self._lost += 1
            first = self._lost == 1
        if first:
            _to_stderr(
                f"bazaruto: {self._path} cannot be written ({error.strerror or error}); "
                "log lines are lost until there is space and permission again\n".encode()
            )

    def _recovered(self) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            _to_stderr(f"bazaruto: {self._path} is written again; {lost} lines were lost\n".encode())


def _to_stderr(line: bytes) -> None:
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line)
    except (OSError, ValueError):
        return  # stderr is closed: there is nobody left to tell
