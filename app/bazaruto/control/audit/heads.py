"""The audit's heads outside of the database: an append-only file of this control node, and journald where there is one.

A line before the commit says what is meant (`intent`), one after it what is (`head`); a crash in between leaves an
intent, which the next writer turns into a head, or into `void` when its transaction was never committed.
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import json
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bazaruto import logs
from bazaruto.control.audit import journald

log = logs.get(__name__)
TAIL_BYTES = 256 * 1024  # more than anything that another process may have left open
REMEMBERED = 512  # lines; the last entry of this node is among them
REMEDY = "bazaruto audit accept-rotation --reason WHY"

State = Literal["intent", "head", "void"]
STATES: dict[bytes, State] = {b"intent": "intent", b"head": "head", b"void": "void"}
LINE = re.compile(rb'\{"seq": (\d{1,19}), "mac": "((?:[0-9a-f]{2})+)", "at": "[^"]*", "state": "(intent|head|void)"\}')


class AuditUnwritable(Exception):
    """The audit cannot be written, so nothing may be changed; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the file."""

    seq: int
    mac: bytes
    state: State


class Heads:
    """The file of one control node. May be shared by threads; processes share it by appending whole lines."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "heads.log"
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._read_to = 0
        self._torn = False  # the last line has no end
        self._known: dict[int, Line] = {}  # the newest line of an entry

    def catch_up(self, last: Line | None) -> list[Line]:
        """Make sure of the file, `last` being this node's last entry; the intents that nobody has concluded.

        Raises AuditUnwritable.
        """
        with self._lock:
            try:
                self._open(may_create=last is None)
                self._read()
            except OSError as error:
                raise AuditUnwritable(self._cannot(error)) from error
            if last is not None and not self._has(last):
                raise AuditUnwritable(
                    f"{self.path} does not know entry {last.seq}, the last of this control node: it was rotated away, "
                    f"shortened or replaced. Nothing is changed until it is put back, or given up with `{REMEDY}`."
                )
            return [line for line in self._known.values() if line.state == "intent"]

    def append(self, lines: list[Line], at: datetime.datetime) -> None:
        """Add lines, and wait until they are on the disk. Raises AuditUnwritable."""
        words = [
            json.dumps(
                {
                    "seq": line.seq,
                    "mac": line.mac.hex(),
                    "at": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                    "state": line.state,
                }
            )
            for line in lines
        ]
        with self._lock:
            try:
                self._write("".join(f"{word}\n" for word in words).encode())
            except OSError as error:
                raise AuditUnwritable(self._cannot(error)) from error
            for line in lines:
                self._remember(line)

    def conclude(self, line: Line, at: datetime.datetime) -> None:
        """Say that an entry is committed. What cannot be written now is left to the next writer."""
        with self._lock:
            if (known := self._known.get(line.seq)) and known.state == "head":
                return  # the next writer was faster
        try:
            self.append([line], at)
        except AuditUnwritable as error:
            log.warn("a head of the audit was not written; the next entry's writer adds it", error=str(error))
        _tell_journald(line)

    def begin_anew(self, last: int, now: datetime.datetime) -> None:
        """Put what is there aside, named for the last entry of the chain. Raises AuditUnwritable."""
        with self._lock:
            self._close()
            try:
                if self.path.exists():
                    self.path.rename(self.path.with_name(f"{self.path.name}.until-{last}-{now:%Y%m%dT%H%M%S%f}"))
                self._open(may_create=True)
            except OSError as error:
                raise AuditUnwritable(self._cannot(error)) from error

    def _open(self, *, may_create: bool) -> None:
        if self._descriptor is not None:
            found = os.fstat(self._descriptor)
            try:
                same = os.path.samestat(found, self.path.stat())
            except FileNotFoundError:
                same = False
            if same and found.st_mode & stat.S_IWUSR and found.st_size >= self._read_to:
                return
            self._close()
        if may_create:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if may_create else 0)
        descriptor = os.open(self.path, flags, 0o600)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IWUSR:
            os.close(descriptor)
            raise PermissionError(13, "it is read-only" if stat.S_ISREG(found.st_mode) else "it is no file")
        self._descriptor = descriptor
        self._read_to = max(0, found.st_size - TAIL_BYTES)
        if may_create and not found.st_size:
            _sync_directory(self.path.parent)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
        self._known.clear()

    def _read(self) -> None:
        """Take in what this and other processes have appended."""
        descriptor = self._descriptor or 0
        size = os.fstat(descriptor).st_size
        content = os.pread(descriptor, size - self._read_to, self._read_to)
        whole, _, rest = content.rpartition(b"\n")
        self._torn = bool(rest)
        self._read_to += len(content) - len(rest)
        for word in whole.split(b"\n"):
            if word and (line := parsed(word)):
                self._remember(line)

    def _remember(self, line: Line) -> None:
        known = self._known.pop(line.seq, None)
        concluded = known is not None and known.mac == line.mac and known.state == "head"
        self._known[line.seq] = known if known is not None and concluded else line
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

    def _has(self, last: Line) -> bool:
        return (known := self._known.get(last.seq)) is not None and known.mac == last.mac

    def _write(self, content: bytes) -> None:
        if self._descriptor is None:
            raise FileNotFoundError(2, "it is not open")
        content = b"\n" + content if self._torn else content
        written = os.write(self._descriptor, content)
        self._torn = written < len(content)
        if self._torn:
            raise OSError(28, "not all of a line could be written")
        os.fsync(self._descriptor)

    def _cannot(self, error: OSError) -> str:
        what = f"{self.path} cannot be written ({error.strerror}), and nothing is changed without an audit: "
        if isinstance(error, FileNotFoundError):
            return f"{what}put it back, or give it up with `{REMEDY}`."
        return f"{what}make it a file that this process can write, with room for more."


def files(directory: Path) -> list[Path]:
    """The file and those that were rotated away and kept beside it, the oldest names first."""
    found = (path for path in directory.glob("heads.log*") if path.is_file())
    return sorted(found, key=lambda path: (path.name == "heads.log", path.name))


def lines(path: Path, size: int) -> Iterator[Line | None]:
    """The lines of a file of this size; None for what is no line."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for word in file:
            if word.strip():
                yield parsed(word)
            if path.suffix != ".gz" and file.tell() >= size:
                return


def parsed(word: bytes) -> Line | None:
    """A line of the file; None for what is none, as a full disk leaves behind."""
    found = LINE.fullmatch(word.strip())
    return Line(int(found[1]), bytes.fromhex(found[2].decode()), STATES[found[3]]) if found else None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tell_journald(line: Line) -> None:
    """The head also as a message of journald, where there is one: `journalctl -t bazaruto-audit -o json`."""
    mac = line.mac.hex()
    fields = {"BAZARUTO_AUDIT_SEQ": str(line.seq), "BAZARUTO_AUDIT_MAC": mac}
    try:
        journald.tell("bazaruto-audit", f"audit entry {line.seq} has mac {mac}", fields)
    except OSError as error:
        log.warn("journald did not take a head of the audit; it is in the file", error=str(error))
