"""Processes that outlive the command which started them: who they are, whether they live, and their end."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PROC = Path("/proc")
ORPHAN_SECONDS = 1.0  # how long children may still take when their parent has ended
KILL_SECONDS = 10.0  # how long the kernel may take to bury a process that got SIGKILL


class ProcessesLeftError(Exception):
    """Some processes did not end, not even by SIGKILL."""


@dataclasses.dataclass(frozen=True, order=True)
class ProcessIdentity:
    """A process, told apart from a later one that got the same number."""

    boot_id: str  # of the machine's current start
    pid: int
    start_time: int  # clock ticks after the boot

    @property
    def started_at(self) -> float:
        """When the process started, in seconds of the Unix epoch."""
        return _booted_at() + self.start_time / os.sysconf("SC_CLK_TCK")


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the live process `pid`; None when there is none (a zombie is dead)."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else ProcessIdentity(boot_id(), pid, stat.start_time)


def is_alive(identity: ProcessIdentity | None) -> bool:
    """Whether exactly this process still lives, and not another one under its number."""
    _reap()
    return identity is not None and identity.boot_id == boot_id() and identify(identity.pid) == identity


def spawn_daemon(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path,
) -> ProcessIdentity:
    """Start a process in a session of its own, without a standard input, its output appended to `log_path`."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            [str(word) for word in argv],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
        )
    finally:
        os.close(log)
    _children.append(child)
    stat = _stat(child.pid)  # present even when it died at once: it is our child, and not reaped yet
    return ProcessIdentity(boot_id(), child.pid, stat.start_time if stat else 0)


def end(
    identity: ProcessIdentity,
    grace_seconds: float,
    *,
    first_signal: signal.Signals = signal.SIGTERM,
) -> None:
    """End a process and its descendants: `first_signal`, the grace, SIGKILL; return when all are gone.

    A number that meanwhile belongs to another process is left alone. Raises ProcessesLeftError.
    """
    if not is_alive(identity):
        return
    family = [identity, *descendants(identity.pid)]
    send(identity, first_signal)
    send(identity, signal.SIGCONT)  # a frozen process acts on no signal but this one
    if not wait_all([identity], time.monotonic() + grace_seconds):
        wait_all(family, time.monotonic() + ORPHAN_SECONDS)
    left = [member for member in family if is_alive(member)]
    left += [child for member in left for child in descendants(member.pid)]
    for member in left:
        send(member, signal.SIGKILL)
    if still := wait_all(left, time.monotonic() + KILL_SECONDS):
        raise ProcessesLeftError(f"processes {', '.join(str(member.pid) for member in still)} do not end")


def send(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False when it is gone."""
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def wait_all(identities: Iterable[ProcessIdentity], deadline: float) -> list[ProcessIdentity]:
    """Wait until all are dead or the monotonic `deadline` has passed; returns those that still live."""
    left = []
    for identity in identities:
        if not _wait(identity, deadline):
            left.append(identity)
    return left


def descendants(pid: int) -> list[ProcessIdentity]:
    """Every live process below `pid`, and those of its session that lost their parent."""
    parents: dict[int, list[int]] = {}
    session = []
    for other in everyone():
        if stat := _stat(other):
            parents.setdefault(stat.parent, []).append(other)
            if stat.session == pid and other != pid:
                session.append(other)
    found: list[int] = []
    waiting = [*parents.get(pid, []), *session]
    while waiting:
        child = waiting.pop()
        if child not in found and child != pid:
            found.append(child)
            waiting += parents.get(child, [])
    return [identity for identity in map(identify, found) if identity]


def family(pid: int) -> list[ProcessIdentity]:
    """Every live process below `pid`, found from parent to child: cheaper than `descendants`, to be asked often."""
    found: list[ProcessIdentity] = []
    waiting = _children_of(pid)
    while waiting:
        child = waiting.pop()
        if identity := identify(child):
            found.append(identity)
            waiting += _children_of(child)
    return found


def _children_of(pid: int) -> list[int]:
    try:
        return [
            int(word)
            for task in (PROC / str(pid) / "task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []  # gone meanwhile


def everyone() -> list[int]:
    """The numbers of all processes that can be seen."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty when it is gone or somebody else's."""
    try:
        content = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}  # gone meanwhile, or not ours to read: then it is not ours to end either
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def arguments_of(pid: int) -> list[str]:
    """The argument list of a process; empty when it is gone."""
    try:
        return [os.fsdecode(word) for word in (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []  # gone meanwhile


def parent_of(pid: int) -> int:
    """The number of the process's parent; 0 at the top, and for one that is gone."""
    found = _stat(pid)
    return found.parent if found else 0


def write_pid_file(path: Path, identity: ProcessIdentity) -> None:
    """Record a process, whole or not at all; an equal record is left alone."""
    if path.exists() and read_pid_file(path) == identity:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(dataclasses.asdict(identity)) + "\n", encoding="utf-8")
    partial.chmod(0o600)
    partial.replace(path)


def read_pid_file(path: Path) -> ProcessIdentity | None:
    """The recorded process, alive or not; None without a usable record."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return ProcessIdentity(str(values["boot_id"]), int(values["pid"]), int(values["start_time"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never written, or cut off: a record that cannot be read identifies nobody


@functools.cache
def boot_id() -> str:
    """Which start of the machine this is."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclasses.dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    session: int
    start_time: int


_children: list[subprocess.Popen[bytes]] = []  # started here and not reaped yet


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def _stat(pid: int) -> _Stat | None:
    try:
        line = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line[line.rindex(")") + 2 :].split()  # the name before it may hold spaces and brackets
    return _Stat(state=fields[0], parent=int(fields[1]), session=int(fields[3]), start_time=int(fields[19]))


def _wait(identity: ProcessIdentity, deadline: float) -> bool:
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(identity):
            return True
        poll = select.poll()
        poll.register(handle, select.POLLIN)  # readable when the process has ended
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(handle)
    return not is_alive(identity)


@functools.cache
def _booted_at() -> float:
    for line in (PROC / "stat").read_text(encoding="ascii").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
