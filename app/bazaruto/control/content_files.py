"""The files that a run is made of: which belong to the content, whether they changed, what they are together."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

PARTS = ("ansible.cfg", "collections", "inventories", "playbooks", "roles")  # of a content directory; all a run may use
LEFT_OUT = frozenset({".git", ".ansible", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
LEFT_OUT_ENDINGS = (".pyc", ".swp", ".swo", "~")  # what interpreters and editors leave beside a file
LARGEST_BYTES = 64 * 2**20  # of all files together: a snapshot is made while somebody waits
LINK, PLAIN, EXECUTABLE = 0o120000, 0o100400, 0o100500  # modes of a snapshot; others' umask must not matter

Fingerprint = tuple[tuple[str, int, int, int, int, int], ...]


class ContentError(Exception):
    """The content cannot be run as it is; the text says where and what to do."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file, or symbolic link, as a snapshot has it."""

    mode: int  # LINK, PLAIN or EXECUTABLE
    data: bytes  # of a link: where it leads


def belongs(path: str) -> bool:
    """Whether a path inside a part is content, and no cache or an editor's leavings."""
    return not any(_left_out(name) for name in path.split("/"))


def fingerprint(root: Path) -> Fingerprint:
    """What a write to any file of the content changes, except one in the same tick of the clock."""
    marks: list[tuple[str, int, int, int, int, int]] = []
    for part in PARTS:
        _look(f"{root}/{part}", part, False, marks)
    return tuple(sorted(marks))


def whole_fingerprint(root: Path) -> Fingerprint:
    """The same of everything below a snapshot, where nothing may have been added either."""
    marks: list[tuple[str, int, int, int, int, int]] = []
    with os.scandir(root) as entries:
        for entry in entries:
            _look(entry.path, entry.name, True, marks)
    return tuple(sorted(marks))


def newest(marks: Fingerprint) -> int:
    """When one of the files was changed last, in nanoseconds: by ctime, which nobody can set."""
    return max((mark[4] for mark in marks), default=0)


def read(root: Path, marks: Fingerprint) -> dict[str, File]:
    """All files by their relative path. Raises ContentError for what no snapshot can hold."""
    size = sum(mark[2] for mark in marks)
    if size > LARGEST_BYTES:
        raise ContentError(
            f"The content in {root} has {size // 2**20} MiB, and {LARGEST_BYTES // 2**20} MiB is what is copied for a "
            f"run: move what is no {', '.join(PARTS)} of an operation out of it."
        )
    return {mark[0]: _read(root / mark[0], mark[1]) for mark in marks}


def digest(files: Mapping[str, File]) -> str:
    """SHA-256 over paths, modes and bytes."""
    together = hashlib.sha256()
    for path in sorted(files, key=os.fsencode):
        file = files[path]
        together.update(b"%s\0%o\0%d\0" % (os.fsencode(path), file.mode, len(file.data)))
        together.update(file.data)
    return together.hexdigest()


def _look(path: str, name: str, everything: bool, marks: list[tuple[str, int, int, int, int, int]]) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ContentError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISDIR(status.st_mode):
        times = (status.st_ctime_ns, status.st_mtime_ns)
        marks.append((name, status.st_mode, status.st_size, status.st_ino, *times))
        return
    for entry in _entries(path):
        if everything or not _left_out(entry.name):
            _look(entry.path, f"{name}/{entry.name}", everything, marks)


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except FileNotFoundError:
        return  # removed meanwhile: the next look agrees, or says that something changes
    except OSError as error:
        raise ContentError(f"{path} cannot be read: {error.strerror}.") from error


def _left_out(name: str) -> bool:
    return name in LEFT_OUT or name.startswith(".#") or name.endswith(LEFT_OUT_ENDINGS)


def _read(path: Path, mode: int) -> File:
    try:
        if stat.S_ISLNK(mode):
            return File(LINK, os.fsencode(path.readlink()))
        if not stat.S_ISREG(mode):
            raise ContentError(f"{path} is neither a file, a directory nor a symbolic link: remove it.")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return File(EXECUTABLE if mode & stat.S_IXUSR else PLAIN, file.read(LARGEST_BYTES + 1))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ContentError(f"{path} cannot be read: {error.strerror}.") from error
