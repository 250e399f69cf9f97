"""A file that several processes append whole lines to, and that may be rotated or run out of space."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from pathlib import Path

LINES_A_WRITE = 64
LOOK_SECONDS = 1.0  # how often it is looked whether the file was rotated away


class LineFile:
    """Appends lines, whole lines in one write(2) with O_APPEND; without a path they go to stderr.

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
        self._waiting: deque[bytes] = deque()
        self._writing = threading.Lock()

    def write(self, line: bytes) -> None:
        """Append the line, which ends with a newline, before this returns; under load another thread does it.

        Threads never wait for each other here: os.write gives up the interpreter, and a queue for a lock held
        meanwhile cost four fifths of the throughput. Who comes while one writes leaves the line with it.
        """
        if self._path is None or self._echo:
            _to_stderr(line)
        if self._path is None:
            return
        self._waiting.append(line)
        while self._waiting and self._writing.acquire(blocking=False):
            try:
                self._write_waiting(self._path)
            finally:
                self._writing.release()

    def _write_waiting(self, path: Path) -> None:
        lines: list[bytes] = []
        while self._waiting and len(lines) < LINES_A_WRITE:
            lines.append(self._waiting.popleft())
        if not lines:
            return
        text = b"".join(lines)
        try:
            if time.monotonic() >= self._next_look:
                self._reopen_when_rotated(path)
            written = os.write(self._descriptor, text)
            if written < len(text):
                self._take_back(text[:written])
        except OSError as error:
            self._lose(error, len(lines))
        else:
            if self._lost:
                _to_stderr(f"bazaruto: {path} is written again; {self._lost} lines were lost\n".encode())
                self._lost = 0

    def _reopen_when_rotated(self, path: Path) -> None:
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) == self._inode:
                return
        except FileNotFoundError:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        opened = os.fstat(descriptor)
        self._inode = (opened.st_dev, opened.st_ino)

    def _take_back(self, written: bytes) -> None:
        """Cut off the part of a line that still fitted on the disk, unless another process wrote after it."""
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if os.fstat(self._descriptor).st_size == end:
            os.ftruncate(self._descriptor, end - len(written) + written.rfind(b"\n") + 1)
        raise OSError("no space for whole lines")

    def _lose(self, error: OSError, lines: int) -> None:
        if not self._lost:
            _to_stderr(
                f"bazaruto: {self._path} cannot be written ({error.strerror or error}); "
                "log lines are lost until there is space and permission again\n".encode()
            )
        self._lost += lines


def _to_stderr(line: bytes) -> None:
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line)
    except (OSError, ValueError):
        return  # stderr is closed: there is nobody left to tell
