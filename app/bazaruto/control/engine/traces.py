"""Removes what a run's playbook left outside its directory, where a secret of the run is in it.

Ansible cleans up after itself, but not when it was killed: a module's arguments stay in ~/.ansible/tmp, results of
asynchronous tasks in ~/.ansible_async, facts in the cache. What is looked at is known by place and age, what is
removed by its content; other runs of the same user have theirs beside it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bazaruto import processes
from bazaruto.control.engine.redactor import Redactor

LARGEST_FILE = 8 * 1024 * 1024  # bytes looked at; Ansible's own files are much smaller
# What is named for the process that made it: a module's directory, and a playbook's own, which lives as long as that.
_MODULE_DIRECTORY = re.compile(r"ansible-tmp-(?P<made>[0-9.]+)-(?P<pid>[0-9]+)-[0-9]+")
_PLAYBOOK_DIRECTORY = re.compile(r"ansible-local-(?P<pid>[0-9]+)[a-z0-9_]{8}")


def remove(redactor: Redactor, since: float, facts: Path) -> None:
    """Remove what was written since then (seconds since 1970) and holds a secret. Says what cannot be removed."""
    for path in _candidates(facts):
        try:
            if _written_since(path, since) and not _in_use(path) and _holds_secret(path, redactor):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except FileNotFoundError:
            continue  # whose it was has removed it
        except OSError as error:
            print(f"{path} may hold a secret of this run, and cannot be removed: {error}", file=sys.stderr, flush=True)


def _candidates(facts: Path) -> Iterator[Path]:
    for home in {Path.home(), Path(pwd.getpwuid(os.geteuid()).pw_dir)}:  # Ansible takes now the one, now the other
        yield from (home / ".ansible" / "tmp").glob("*")
        yield from (home / ".ansible_async").glob("*")
    yield from facts.glob("*")
    for directory in {tempfile.gettempdir(), "/tmp", "/var/tmp"}:  # noqa: S108 - where Ansible may have written
        yield from Path(directory).glob("ansible*")


def _written_since(path: Path, since: float) -> bool:
    """Whether it, or a file in it, is that young. Links are no candidates: they may lead anywhere."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return False
    return status.st_mtime >= since or any(file.lstat().st_mtime >= since for file in _files(path))


def _in_use(path: Path) -> bool:
    """Whether the process that made it lives: then it is another run's, for this run's are all ended."""
    match = _MODULE_DIRECTORY.fullmatch(path.name) or _PLAYBOOK_DIRECTORY.fullmatch(path.name)
    maker = processes.identify(int(match["pid"])) if match else None
    if match is None or maker is None:
        return False
    made = float(match.groupdict().get("made") or path.lstat().st_mtime)
    lived = time.clock_gettime(time.CLOCK_BOOTTIME) - maker.start_time / os.sysconf("SC_CLK_TCK")
    return lived + 1 >= time.time() - made  # a younger one only has its number


def _holds_secret(path: Path, redactor: Redactor) -> bool:
    return any(
        redactor.holds_secret(file.read_bytes().decode("utf-8", "replace"))
        for file in _files(path)
        if file.stat().st_size <= LARGEST_FILE
    )


def _files(path: Path) -> Iterator[Path]:
    found = path.rglob("*") if path.is_dir() else iter([path])
    return (file for file in found if stat.S_ISREG(file.lstat().st_mode))
