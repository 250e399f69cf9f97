"""Run PostgreSQL's own programs: of the right version, ended with us, their exit always looked at."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from ansible.module_utils.bazaruto_backup.refusal import Refused

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: the child may only make calls, not import.
_LIBC = ctypes.CDLL(None)


class ProgramFailed(Exception):
    """A program ended with an error; the text is its name and the end of what it said."""

    def __init__(self, program: str, returncode: int, said: str) -> None:
        super().__init__(f"{program} ended with {returncode}: {last_words(said)}")
        self.said = said


def end_with_a_tidy_up() -> None:
    """Let a SIGTERM raise SystemExit, so that what was begun is removed before the process ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))


def find(name: str, bin_directory: str) -> str:
    """The program's path, from bin_directory or else from PATH."""
    found = shutil.which(name, path=bin_directory or None)
    if not found:
        place = bin_directory or "PATH"
        raise Refused(f"{name} is not in {place}: install PostgreSQL's client programs, or correct bin_directory")
    return found


def major_version(path: str) -> int:
    """The major version a PostgreSQL program says it has."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if not match:
        raise Refused(f"{path} --version says no PostgreSQL version ({last_words(done.stdout + done.stderr)})")
    return int(match[1])


def at_least(names: Sequence[str], bin_directory: str, server_major: int) -> dict[str, str]:
    """The programs' paths; refuses, by name, one that is older than the server."""
    paths = {name: find(name, bin_directory) for name in names}
    for name, path in paths.items():
        version = major_version(path)
        if version < server_major:
            raise Refused(
                f"{name} ({path}) is version {version}, older than the server's {server_major}: "
                f"install PostgreSQL {server_major}'s client programs and name their bin_directory"
            )
    return paths


@contextlib.contextmanager
def running(
    argv: Sequence[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL, umask: int = 0o077
) -> Iterator[Running]:
    """Start a program that dies with this process; killed when the block is left before it ended."""
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            list(argv),
            env=dict(environment),
            stdin=stdin,
            stdout=stderr,
            stderr=stderr,
            umask=umask,
            cwd="/",
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it only makes one system call
        )
        try:
            yield Running(process, stderr, Path(argv[0]).name)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


class Running:
    """A started program."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes], name: str) -> None:
        self.process, self._stderr, self._name = process, stderr, name

    def wait(self) -> str:
        """Wait for its end and return what it said; ProgramFailed when it failed."""
        returncode = self.process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace")
        if returncode:
            raise ProgramFailed(self._name, returncode, said)
        return said


def run(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a program to its end and return what it said."""
    with running(argv, environment) as program:
        return program.wait()


def last_words(said: str, limit: int = 600) -> str:
    """The end of a program's words, in one line."""
    return " ".join(said.split())[-limit:] or "(it said nothing)"


def die_with_parent() -> None:
    """For preexec_fn: the kernel kills the child when this process ends, however it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
