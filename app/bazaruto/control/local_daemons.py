"""The four daemons of one machine: started, awaited, found again, ended."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bazaruto import embedded, processes
from bazaruto.control.local_home import Home
from bazaruto.control.local_servers import bin_directory
from bazaruto.processes import ProcessIdentity
from bazaruto.server_user import EmbeddedError

READY_SECONDS = 60.0
PROBE_SECONDS = 2.0
STOP_SECONDS = 40.0  # more than the daemons' own drain_timeout
RUN_GRACE_SECONDS = 10.0  # how long a run's supervisor may take to end its playbook and record that
NOT_INHERITED = ("PG", "MAKE", "MFLAGS", "PYTEST", "ANSIBLE_")


class DaemonError(EmbeddedError):
    """A daemon does not run; the text holds the end of its log."""


@dataclasses.dataclass(frozen=True)
class Daemon:
    """One of the four: what runs, and where it answers."""

    name: str  # also of its pid file and of its output
    command: tuple[str, str]  # program and subcommand
    url: str | None = None  # of its HTTP face; a worker has none

    def log_path(self, home: Home) -> Path:
        """What it prints besides its log: usually nothing but the reason of its death."""
        return home.part("log", f"{self.name}.out")


def daemons(service_url: str, control_url: str) -> list[Daemon]:
    """All four, in the order in which they start."""
    return [
        Daemon("bazarutod", ("bazarutod", "serve"), service_url),
        Daemon("bazarutod-worker", ("bazarutod", "worker")),
        Daemon("bazaruto", ("bazaruto", "serve"), control_url),
        Daemon("bazaruto-worker", ("bazaruto", "worker")),
    ]


def environment(home: Home, service_port: int, control_port: int) -> dict[str, str]:
    """What daemons and commands of this home are started with: the caller's, but nothing that misleads libpq."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    kept.pop("BAZARUTO_RUN_ID", None)
    if configuration := kept.get("BAZARUTO_CONFIG"):
        kept["BAZARUTO_CONFIG"] = str(Path(configuration).absolute())
    return {
        **kept,
        "PATH": os.pathsep.join([str(bin_directory()), str(embedded.postgresql_bin()), kept.get("PATH", os.defpath)]),
        "BAZARUTO_HOME": str(home.path),
        "BAZARUTO_SERVICE_PORT": str(service_port),
        "BAZARUTO_CONTROL_PORT": str(control_port),
    }


def find(home: Home, daemon: Daemon) -> ProcessIdentity | None:
    """The running process of this daemon, also when its record was lost."""
    recorded = processes.read_pid_file(home.pid_file(daemon.name))
    if processes.is_alive(recorded):
        return recorded
    for pid in processes.everyone():
        if _is(daemon, pid) and processes.environment_of(pid).get("BAZARUTO_HOME") == str(home.path):
            return processes.identify(pid)
    return None


def start(home: Home, daemon: Daemon, env: dict[str, str]) -> ProcessIdentity:
    """Start it and record who it is; it need not be ready yet."""
    log_path = daemon.log_path(home)
    embedded.set_aside_log(log_path)
    program, subcommand = daemon.command
    identity = processes.spawn_daemon(
        [bin_directory() / program, subcommand], env=env, log_path=log_path, cwd=home.path
    )
    processes.write_pid_file(home.pid_file(daemon.name), identity)
    return identity


def await_ready(home: Home, started: dict[str, ProcessIdentity], all_daemons: Iterable[Daemon]) -> None:
    """Wait until each lives and, where it has a face, says that it is ready."""
    deadline = time.monotonic() + READY_SECONDS
    waiting = list(all_daemons)
    while waiting:
        for daemon in list(waiting):
            if not processes.is_alive(started[daemon.name]):
                raise DaemonError(f"{daemon.name} ended while it started: {_why(home, daemon)}")
            if daemon.url is None or is_ready(daemon.url):
                waiting.remove(daemon)
        if waiting and time.monotonic() > deadline:
            names = " and ".join(daemon.name for daemon in waiting)
            raise DaemonError(f"{names} not ready after {READY_SECONDS:.0f} s: {_why(home, waiting[0])}")
        if waiting:
            time.sleep(0.05)


def is_ready(url: str) -> bool:
    """Whether the HTTP face at `url` takes requests."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=PROBE_SECONDS) as answer:  # noqa: S310 -- our own http URL
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False  # not yet, or not any more


def stop(home: Home, all_daemons: Iterable[Daemon], report: Callable[[str], None]) -> list[str]:
    """End all of them, then every run that is still at work here; returns the names of those that ran."""
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda daemon: _stop_one(home, daemon), all_daemons))
    stopped = [name for name in ended if name]
    if left := runs_at_work(home):
        report(f"Ending {len(set(left.values()))} run(s) that are at work: {', '.join(sorted(set(left.values())))}")
        for identity in left:
            processes.send(identity, signal.SIGTERM)
        processes.wait_all(left, time.monotonic() + RUN_GRACE_SECONDS)
    for identity in runs_at_work(home):
        processes.end(identity, 0.0)
    return stopped


def runs_at_work(home: Home) -> dict[ProcessIdentity, str]:
    """Every process of a run of this home, with the run's id; the caller's own company is not one."""
    found = {}
    for pid in processes.everyone():
        variables = processes.environment_of(pid)
        if variables.get("BAZARUTO_HOME") == str(home.path) and (run := variables.get("BAZARUTO_RUN_ID")):
            identity = processes.identify(pid)
            if identity and pid not in _ancestors():
                found[identity] = run
    return found


def _stop_one(home: Home, daemon: Daemon) -> str | None:
    stopped = None
    while running := find(home, daemon):
        processes.end(running, STOP_SECONDS)
        stopped = daemon.name
    home.pid_file(daemon.name).unlink(missing_ok=True)
    return stopped


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid:
        found.add(pid)
        pid = processes.parent_of(pid)
    return found


def _is(daemon: Daemon, pid: int) -> bool:
    program, subcommand = daemon.command
    words = processes.arguments_of(pid)
    return len(words) >= 2 and Path(words[-2]).name == program and words[-1] == subcommand


def _why(home: Home, daemon: Daemon) -> str:
    """What it printed; or, when it printed nothing, the end of its log."""
    log_path = daemon.log_path(home)
    if not log_path.exists() or not log_path.stat().st_size:
        log_path = log_path.with_suffix(".log")
    return f"{embedded.last_lines(log_path)} ({log_path})"
