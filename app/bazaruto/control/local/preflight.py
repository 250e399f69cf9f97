"""What keeps an installation from starting, found before anything is touched, each as one sentence."""

from __future__ import annotations

import errno
import shutil
import socket
from pathlib import Path

from bazaruto import processes
from bazaruto.server_user import EmbeddedError

NEEDED_BYTES = 300 * 2**20  # two clusters, their logs, a first backup and its drill
SOCKET_TABLES = ("net/tcp", "net/tcp6")
LISTENING = "0A"


class PreflightError(EmbeddedError):
    """The installation cannot start here; the text says what to do."""


def refuse_little_space(home: Path, needed_bytes: int = NEEDED_BYTES) -> None:
    """An installation that fills its disk at the first backup is worse than none."""
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise PreflightError(
            f"{home} has {free // 2**20} MB free, an installation needs {needed_bytes // 2**20} MB: "
            "free some, or set BAZARUTO_HOME to a directory on another disk."
        )


def refuse_taken_port(host: str, port: int, setting: str) -> None:
    """Say who listens there, and which setting chooses another port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise PreflightError(
                f"Port {port} on {host} may not be opened by this user: set {setting} to one above 1023."
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PreflightError(
                    f"Port {port} on {host} is taken by {_listener(port)}: end that, or set {setting} to a free port."
                ) from error
            raise PreflightError(f"{host}:{port} cannot be opened ({error.strerror}): set another address.") from error


def _listener(port: int) -> str:
    wanted = {f"socket:[{inode}]" for inode in _inodes(port)}
    for pid in processes.everyone():
        process = processes.PROC / str(pid)
        try:
            if any(str(handle.readlink()) in wanted for handle in (process / "fd").iterdir()):
                return f"process {pid} ({(process / 'comm').read_text(encoding='utf-8').strip()})"
        except OSError:
            continue  # gone, or another user's: its files are not ours to see
    return "a process of another user"


def _inodes(port: int) -> set[str]:
    found = set()
    for table in SOCKET_TABLES:
        path = processes.PROC / table
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found
