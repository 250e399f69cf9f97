"""A PostgreSQL cluster that lives as long as one block: nothing outside its directories is touched or reachable."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.bazaruto_backup import programs, storage
from ansible.module_utils.bazaruto_backup.connection import Server
from ansible.module_utils.bazaruto_backup.refusal import Refused

SUPERUSER = "postgres"
INITIAL_BYTES = 160 * 1024 * 1024  # an empty cluster and its first WAL
_NAME = re.compile(r"drill_[0-9a-z_-]+")
_LOCK = ".drill.lock"
_SOCKET_NOTE = "socket_directory"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.02
_DEBIAN = Path("/usr/lib/postgresql")
# It is thrown away: nothing of it needs to survive a crash, and nobody outside needs to reach it.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "80",
}


def server_programs(bin_directory: str) -> str:
    """The directory of initdb and postgres: the one named, that of PATH, or Debian's newest."""
    if bin_directory:
        programs.find("initdb", bin_directory)
        return bin_directory
    if found := shutil.which("initdb"):
        return str(Path(found).parent)
    versions = [path for path in _DEBIAN.glob("*/bin") if path.parent.name.isdigit()]
    if not versions:
        raise Refused("initdb is in no known place: install PostgreSQL's server, or set restore_drill_bin_directory")
    return str(max(versions, key=lambda path: int(path.parent.name)))


@contextlib.contextmanager
def only_drill(base: Path) -> Iterator[list[str]]:
    """Be the only drill in this directory; what killed ones left there is ended and removed, and named."""
    if not base.exists():
        base.mkdir()
        base.chmod(0o711)  # whatever the umask: the server's user passes through it
    descriptor = os.open(base / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise Refused(f"another drill is at work in {base} ({holder}): wait for its end") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}, since {storage.utc_now()}\n".encode(), 0)
        left = leftovers(base)
        for path in left:
            remove(path)
        yield [path.name for path in left]
    finally:
        os.close(descriptor)


def leftovers(base: Path) -> list[Path]:
    """What killed drills left; only to be asked by the only drill."""
    if not base.is_dir():
        return []
    return sorted(path for path in base.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def remove(directory: Path) -> None:
    """End a drill's processes and remove its directories."""
    _end_processes(directory / "data")
    with contextlib.suppress(FileNotFoundError):
        sockets = Path((directory / _SOCKET_NOTE).read_text(encoding="utf-8"))
        shutil.rmtree(sockets, ignore_errors=True)
    shutil.rmtree(directory)


class Scratch:
    """A throw-away cluster: initdb, start, and in any case its end."""

    def __init__(self, options: dict[str, Any], base: Path) -> None:
        self.directory = base / f"drill_{options['run'].lower()}"
        self.data = self.directory / "data"
        self.bin_directory = server_programs(options["bin_directory"])
        self.prefix: list[str] = options["server_command_prefix"]
        self.user = pwd.getpwnam(options["server_user"]) if options["server_user"] else None
        if not _NAME.fullmatch(self.directory.name):
            raise Refused(f"the run {options['run']!r} is not of letters, digits, - and _: correct bazaruto_run_id")

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """The running cluster, reached as its superuser; gone when the block is left."""
        process = None
        try:
            self._make()
            process = self._start()
            server = Server(
                {
                    "host": str(self.sockets),
                    "port": 5432,
                    "user": SUPERUSER,
                    "passfile": str(self.directory / "passfile"),
                    "bin_directory": self.bin_directory,
                },
                f"bazaruto drill {self.directory.name}",
            )
            self._await(process, server)
            yield server
        finally:
            if process:
                _stop(process)
            if self.directory.exists():
                remove(self.directory)

    def _make(self) -> None:
        """initdb, with a password that only this drill knows."""
        self.directory.mkdir(mode=0o700)
        self.sockets = Path(tempfile.mkdtemp(prefix="bazaruto-drill-", dir=_short_directory()))
        self._private(_SOCKET_NOTE, str(self.sockets))
        password = secrets.token_hex(24)
        self._private("password", password + "\n")
        self._private("passfile", f"*:*:*:{SUPERUSER}:{password}\n")
        for path in (self.directory, self.sockets, *self.directory.iterdir()):
            if self.user:
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        argv = [
            *(*self.prefix, programs.find("initdb", self.bin_directory), f"--pgdata={self.data}"),
            *(f"--username={SUPERUSER}", "--auth=scram-sha-256", f"--pwfile={self.directory / 'password'}"),
            *("--encoding=UTF8", "--locale=C", "--no-sync"),
        ]
        try:
            programs.run(argv, _environment())
        except programs.ProgramFailed as error:
            raise Refused(f"no throw-away cluster could be made in {self.directory}: {error}") from error

    def _private(self, name: str, content: str) -> None:
        descriptor = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)

    def _start(self) -> subprocess.Popen[bytes]:
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        argv = [programs.find("postgres", self.bin_directory), "-D", str(self.data), "-k", str(self.sockets), *settings]
        with (self.directory / "log").open("wb") as log:
            return subprocess.Popen(
                [*self.prefix, *argv],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                preexec_fn=programs.die_with_parent,  # noqa: PLW1509 - it only makes one system call
            )

    def _await(self, process: subprocess.Popen[bytes], server: Server) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                server.connect("postgres").close()
            except Refused as error:
                said = programs.last_words((self.directory / "log").read_text(encoding="utf-8", errors="replace"))
                if process.poll() is not None:
                    raise Refused(f"the throw-away cluster did not start: {said}") from error
                if time.monotonic() > deadline:
                    raise Refused(f"the throw-away cluster did not answer in {_START_SECONDS:.0f} s: {said}") from error
                time.sleep(_POLL_SECONDS)
            else:
                return


def _short_directory() -> str:
    """Where a socket's path stays below the 107 bytes it may have."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    short = Path(runtime).is_absolute() and len(os.fsencode(runtime)) <= 60 and os.access(runtime, os.W_OK)
    return runtime if short else tempfile.gettempdir()


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGQUIT)  # at once: there is nothing to keep
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_processes(data: Path) -> None:
    """Kill every PostgreSQL process of this data directory: each has it as its working directory."""
    deadline = time.monotonic() + _STOP_SECONDS
    while found := [pid for pid in _processes() if _works_in(pid, data)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise Refused(f"the processes {found} of {data} do not end: end them, then try again")
        time.sleep(_POLL_SECONDS)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _works_in(pid: int, data: Path) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/cwd").readlink() == data and Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
        )
    except OSError:
        return False  # it has ended, or belongs to another user: then it is none of ours
