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
from typing import Any

import psycopg

from bazaruto import embedded, processes
from bazaruto.control import trust
from bazaruto.control.local.home import Home
from bazaruto.control.local.servers import SQL, bin_directory
from bazaruto.processes import ProcessIdentity
from bazaruto.server_user import EmbeddedError

READY_SECONDS = 60.0
PROBE_SECONDS = 2.0
STOP_SECONDS = 40.0  # more than the daemons' own drain_timeout
RUN_GRACE_SECONDS = 10.0  # how long a run's supervisor may take to end its playbook and record that
NOT_INHERITED = ("PG", "MAKE", "MFLAGS", "PYTEST", "ANSIBLE_")


class DaemonError(EmbeddedError):
    """A daemon does not run; the text holds the end of its log."""


# What runs, in the order in which it starts; the names are those of the logs, the pid files and the output.
COMMANDS = {
    "bazarutod": ("bazarutod", "serve"),
    "bazaruto-worker": ("bazarutod", "worker"),
    "control": ("bazaruto", "serve"),
    "control-worker": ("bazaruto", "worker"),
}


@dataclasses.dataclass(frozen=True)
class Daemon:
    """One of the four, and how it is seen to be ready."""

    name: str
    url: str | None = None  # of its HTTP face, which says when it is ready
    ca_file: Path = Path()  # whom to believe there, when it is HTTPS
    database_url: str | None = None  # where a worker announces itself


def daemons(local: dict[str, Any]) -> list[Daemon]:
    """All four; `local` is what local.json holds."""
    service, control = local["service"], local["control"]
    return [
        Daemon("bazarutod", url=service["url"]),
        Daemon("bazaruto-worker", database_url=service["database_url"]),
        Daemon("control", url=control["url"], ca_file=Path(control.get("ca_file", ""))),
        Daemon("control-worker", database_url=control["database_url"]),
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


def find(home: Home, name: str) -> ProcessIdentity | None:
    """The running process of this daemon, also when its record was lost."""
    recorded = processes.read_pid_file(home.pid_file(name))
    if processes.is_alive(recorded):
        return recorded
    for pid in processes.everyone():
        if _is(name, pid) and processes.environment_of(pid).get("BAZARUTO_HOME") == str(home.path):
            return processes.identify(pid)
    return None


def start_all(home: Home, missing: list[Daemon], env: dict[str, str]) -> None:
    """Start these, and wait until each takes requests or jobs."""
    announced = {daemon.name: _newest_worker(daemon) for daemon in missing if daemon.database_url}
    started = {daemon.name: _start(home, daemon.name, env) for daemon in missing}
    _await(home, started, missing, lambda worker: _newest_worker(worker) > announced[worker.name])


def await_running(home: Home, running: dict[str, ProcessIdentity], all_daemons: list[Daemon]) -> None:
    """Wait until those that run already take requests."""
    _await(home, running, all_daemons, lambda _: True)


def _start(home: Home, name: str, env: dict[str, str]) -> ProcessIdentity:
    program, subcommand = COMMANDS[name]
    embedded.set_aside_log(_output(home, name))
    identity = processes.spawn_daemon(
        [bin_directory() / program, subcommand], env=env, log_path=_output(home, name), cwd=home.path
    )
    processes.write_pid_file(home.pid_file(name), identity)
    return identity


def _await(
    home: Home,
    started: dict[str, ProcessIdentity],
    all_daemons: Iterable[Daemon],
    worker_is_ready: Callable[[Daemon], bool],
) -> None:
    deadline = time.monotonic() + READY_SECONDS
    waiting = list(all_daemons)
    while waiting:
        for daemon in list(waiting):
            if not processes.is_alive(started[daemon.name]):
                raise DaemonError(f"{daemon.name} ended while it started: {_why(home, daemon.name)}")
            if is_ready(daemon) if daemon.url else worker_is_ready(daemon):
                waiting.remove(daemon)
        if waiting and time.monotonic() > deadline:
            names = " and ".join(daemon.name for daemon in waiting)
            raise DaemonError(f"{names} not ready after {READY_SECONDS:.0f} s: {_why(home, waiting[0].name)}")
        if waiting:
            time.sleep(0.05)


def _newest_worker(daemon: Daemon) -> int:
    with psycopg.connect(daemon.database_url or "", connect_timeout=5, password="") as connection:
        row = connection.execute(SQL.newest_worker).fetchone()
    return int(row[0]) if row else 0


def is_ready(daemon: Daemon) -> bool:
    """Whether its HTTP face takes requests. Raises DaemonError where somebody has to be believed who is not."""
    url = daemon.url or ""
    direct = urllib.request.ProxyHandler({})  # a proxy for the world is not one for here
    https = urllib.request.HTTPSHandler(context=trust.context(url, daemon.ca_file))
    try:
        with urllib.request.build_opener(direct, https).open(f"{url}/readyz", timeout=PROBE_SECONDS) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError) as error:
        if why := trust.why_not(url, error):
            raise DaemonError(why) from error
        return False  # not yet, or not any more


def stop(home: Home, report: Callable[[str], None]) -> list[str]:
    """End all of them, then every run that is still at work here; returns the names of those that ran."""
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda name: _stop_one(home, name), COMMANDS))
    stopped = [name for name in ended if name]
    if left := runs_at_work(home):
        report(f"Ending {len(set(left.values()))} run(s) that are at work: {', '.join(sorted(set(left.values())))}")
        for identity in left:
            processes.send(identity, signal.SIGTERM)
        processes.wait_all(left, time.monotonic() + RUN_GRACE_SECONDS)
    for identity in runs_at_work(home):
        processes.end(identity, 0.0)
    return stopped


def stop_control(home: Home) -> list[str]:
    """End the control plane's API and worker; returns the names of those that ran."""
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda name: _stop_one(home, name), ("control", "control-worker")))
    return [name for name in ended if name]


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


def _stop_one(home: Home, name: str) -> str | None:
    stopped = None
    while running := find(home, name):
        processes.end(running, STOP_SECONDS)
        stopped = name
    home.pid_file(name).unlink(missing_ok=True)
    return stopped


def _ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid:
        found.add(pid)
        pid = processes.parent_of(pid)
    return found


def _is(name: str, pid: int) -> bool:
    program, subcommand = COMMANDS[name]
    words = processes.arguments_of(pid)
    return len(words) >= 2 and Path(words[-2]).name == program and words[-1] == subcommand


def _output(home: Home, name: str) -> Path:
    """What it prints besides its log: usually nothing but the reason of its death."""
    return home.part("log", f"{name}.out")


def _why(home: Home, name: str) -> str:
    """What it printed; or, when it printed nothing, the end of its log."""
    path = _output(home, name)
    if not path.exists() or not path.stat().st_size:
        path = path.with_suffix(".log")
    return f"{embedded.last_lines(path)} ({path})"
