"""A whole installation on one machine: brought up from nothing or mended, looked at, taken down."""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bazaruto.config import Settings, in_url
from bazaruto.control.local import daemons, preflight, servers
from bazaruto.control.local.daemons import Daemon
from bazaruto.control.local.home import Home, make_directories, only_one
from bazaruto.control.local.servers import Servers
from bazaruto.processes import ProcessIdentity
from bazaruto.server_user import EmbeddedError

DEFAULT_RULES = ("bazaruto.service", "default_rules.json")
WELL = frozenset({"running", "own"})  # the states in which a process is as it should be

Step = Callable[[str], AbstractContextManager[None]]  # shows what is being done, until it is done
Say = Callable[[str], None]


class StepError(EmbeddedError):
    """A command of the set-up failed; the text holds its last words."""


@dataclasses.dataclass(frozen=True)
class Process:
    """One of an installation's processes, as `status` shows it."""

    name: str
    state: str  # running, starting (not ready), stopped, own (a server that the settings name)
    pid: int | None
    started_at: float | None  # seconds of the Unix epoch
    log: str


@dataclasses.dataclass(frozen=True)
class Installation:
    """What runs on this machine and where it is reached."""

    home: Home
    local: dict[str, Any]  # the content of local.json
    processes: tuple[Process, ...]

    @property
    def running(self) -> bool:
        """Whether everything that belongs to it runs and is ready."""
        return bool(self.local) and all(process.state in WELL for process in self.processes)


def up(settings: Settings, step: Step, say: Say) -> Installation:
    """Bring everything up: what is missing is made, what died is started, what runs is left alone.

    `settings` holds what somebody asked for, not what an earlier `up` decided. Raises EmbeddedError.
    """
    home = Home(settings.home)
    if not home.local_file.exists():
        preflight.refuse_little_space(home.path)
    make_directories(home)
    with only_one(home, say):
        before = home.read_local()
        settings = _as_before(settings, before)
        service_url, control_url = _addresses(settings)
        running = {name: daemons.find(home, name) for name in daemons.COMMANDS}
        chosen = servers.choose(settings, home)
        if any(running.values()):
            _refuse_changes(before, service_url, control_url, chosen)
        _refuse_taken_ports(settings, running)
        local = _start_servers(chosen, settings, step)
        home.write_local(local)
        _start_daemons(home, settings, running, step)
    return status(settings)


def down(settings: Settings, step: Step, say: Say) -> list[str]:
    """End everything of this home and wait until it is gone; data stays. Returns what ran."""
    home = Home(settings.home)
    if not home.part("run").is_dir():
        return []
    with only_one(home, say):
        settings = _as_before(settings, home.read_local())
        with step("Stop service and control plane"):
            stopped = daemons.stop(home, say)
        with step("Stop PostgreSQL and Redis"):
            stopped += servers.stop(servers.choose(settings, home))
    return stopped


def stop_control(settings: Settings, step: Step, say: Say) -> list[str]:
    """End the control plane's API and worker, and nothing else: runs at work go on. Returns what ran."""
    home = Home(settings.home)
    if not home.part("run").is_dir():
        return []
    with only_one(home, say), step("Stop the control plane"):
        return daemons.stop_control(home)


def clean(settings: Settings, step: Step, say: Say) -> None:
    """End everything and remove the home with all its data."""
    home = Home(settings.home)
    if not home.path.exists():
        return
    if not home.local_file.exists() and not home.part("run").is_dir():
        raise StepError(
            f"{home.path} does not look like an installation of Bazaruto: remove it by hand if you mean it."
        )
    down(settings, step, say)
    with step(f"Remove {home.path}"):
        shutil.rmtree(home.path)


def status(settings: Settings) -> Installation:
    """What runs now. Starts and changes nothing."""
    home = Home(settings.home)
    local = home.read_local()
    if not local:
        return Installation(home, {}, ())
    settings = _as_before(settings, local)
    chosen = servers.choose(settings, home)
    found = [_server_status(chosen, name) for name in servers.NAMES]
    everyone = daemons.daemons(local)
    with ThreadPoolExecutor() as pool:
        found += pool.map(lambda daemon: _daemon_status(home, daemon), everyone)
    return Installation(home, local, tuple(found))


def command_environment(settings: Settings) -> dict[str, str]:
    """The environment for a command of this installation."""
    settings = _as_before(settings, Home(settings.home).read_local())
    return daemons.environment(Home(settings.home), settings.service_port, settings.control_port)


def guide_variables(settings: Settings) -> dict[str, str]:
    """The variables with which the operations guide's commands work as printed."""
    home = Home(settings.home)
    local = home.read_local()
    if not local:
        raise StepError(f"Nothing is set up in {home.path}: run `make up`.")
    service = local["service"]
    path = [local["postgresql"]["bin_directory"], local["bin_directory"], os.environ.get("PATH", os.defpath)]
    return {
        "DB_HOST": service["host"],
        "DB_USER": service["user"],
        "DB_NAME": service["database"],
        "PGPORT": str(service["port"]),
        "PGPASSFILE": local["postgresql"]["passfile"],
        "PATH": os.pathsep.join(path),
    }


def _as_before(settings: Settings, local: dict[str, Any]) -> Settings:
    """Ports and servers that nobody asks for stay as the last `up` had them."""
    kept: dict[str, Any] = {}
    for name, face in (("service_port", "service"), ("control_port", "control")):
        port = urlsplit(local.get(face, {}).get("url", "")).port
        if name not in settings.model_fields_set and port and not (face == "control" and settings.control_url):
            kept[name] = port
    embedded_then = local.get("embedded", servers.NAMES)
    for name, process, url in (
        ("database_url", servers.SERVICE, local.get("service", {}).get("database_url")),
        ("control_database_url", servers.CONTROL, local.get("control", {}).get("database_url")),
        ("redis_url", servers.REDIS, local.get("redis_url")),
    ):
        if not getattr(settings, name) and process not in embedded_then:
            kept[name] = url
    return settings.model_copy(update=kept)


def _addresses(settings: Settings) -> tuple[str, str]:
    return f"http://{in_url(settings.service_host)}:{settings.service_port}", settings.control_address


def _refuse_changes(before: dict[str, Any], service_url: str, control_url: str, chosen: Servers) -> None:
    """What runs keeps its address and its servers until it is stopped."""
    for face, wanted in (("service", service_url), ("control", control_url)):
        current = before.get(face, {}).get("url", wanted)
        if current != wanted:
            raise StepError(f"It runs on {current}, the settings say {wanted}: run `bazaruto down` first.")
    if before and sorted(before.get("embedded", [])) != chosen.embedded:
        raise StepError(
            "It runs with other database or Redis servers than the settings say: run `bazaruto down` first."
        )


def _refuse_taken_ports(settings: Settings, running: dict[str, ProcessIdentity | None]) -> None:
    if not running["bazarutod"]:
        preflight.refuse_taken_port(settings.service_host, settings.service_port, "BAZARUTO_SERVICE_PORT")
    if not running["control"]:
        preflight.refuse_taken_port(settings.control_host, settings.control_port, "BAZARUTO_CONTROL_PORT")
    if settings.service_port == settings.control_port:
        raise StepError(
            "BAZARUTO_SERVICE_PORT and BAZARUTO_CONTROL_PORT are the same: set one of them to another port."
        )


def _start_servers(chosen: Servers, settings: Settings, step: Step) -> dict[str, Any]:
    new = not all(cluster.data.exists() for cluster in chosen.clusters.values())
    with step("Make and start PostgreSQL and Redis" if new else "See that PostgreSQL and Redis run"):
        servers.start(chosen)
    found = servers.coordinates(chosen, settings)
    service_url, control_url = _addresses(settings)
    found["service"]["url"] = service_url
    found["control"]["url"] = control_url
    found["control"]["ca_file"] = "" if settings.control_ca_file == Path() else str(settings.control_ca_file)
    return {
        **found,
        "embedded": chosen.embedded,
        "backup_directory": str(settings.backup_directory),
        "config_backup_directory": str(settings.backup_directory / "config"),
        "control_backup_directory": str(settings.control_backup_directory),
        "vault_password_file": "" if settings.vault_password_file == Path() else str(settings.vault_password_file),
        "rules_file": str(settings.rules_file),
        "bin_directory": str(servers.bin_directory()),
        "socket_directory": str(servers.socket_directory(chosen)),
    }


def _start_daemons(home: Home, settings: Settings, found: dict[str, ProcessIdentity | None], step: Step) -> None:
    everyone = daemons.daemons(home.read_local())
    running = {name: identity for name, identity in found.items() if identity}
    if missing := [daemon for daemon in everyone if daemon.name not in running]:
        env = daemons.environment(home, settings.service_port, settings.control_port)
        _prepare(home, settings, env, step, demo=not running)
        with step(f"Start {', '.join(daemon.name for daemon in missing)}"):
            daemons.start_all(home, missing, env)
    if here := [daemon for daemon in everyone if daemon.name in running]:
        with step(f"See that {', '.join(running)} are ready"):
            daemons.await_running(home, running, here)


def _prepare(home: Home, settings: Settings, env: dict[str, str], step: Step, *, demo: bool) -> None:
    """Whatever must be in place before daemons run, again every time: an earlier `up` may have been cut off.

    Where one of them runs already, the demo data was there before it started.
    """
    with step("Bring both databases to this version"), ThreadPoolExecutor() as pool:
        for done in [pool.submit(_command, home, env, program, "migrate") for program in ("bazarutod", "bazaruto")]:
            done.result()
    _copy_default_rules(settings.rules_file)
    if demo:
        with step("See that the demo data is there"):
            _command(home, env, "bazarutod", "demo")


def _command(home: Home, env: dict[str, str], program: str, *words: str) -> None:
    done = subprocess.run(
        [servers.bin_directory() / program, *words],
        env=env,
        cwd=home.path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise StepError(f"`{program} {' '.join(words)}` failed: {' | '.join(lines[-3:]) or 'it said nothing'}")


def _copy_default_rules(target: Path) -> None:
    if target.exists():
        return
    package, name = DEFAULT_RULES
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_bytes((importlib.resources.files(package) / name).read_bytes())
    partial.replace(target)


def _server_status(chosen: Servers, name: str) -> Process:
    log = str(chosen.home.part("log", f"{name}.out"))
    if name not in chosen.embedded:
        return Process(name, "own", None, None, "")
    return _process(name, servers.find(chosen, name), log)


def _daemon_status(home: Home, daemon: Daemon) -> Process:
    found = daemons.find(home, daemon.name)
    ready = bool(found) and (daemon.url is None or daemons.is_ready(daemon))
    return _process(daemon.name, found, str(home.part("log", f"{daemon.name}.log")), ready=ready)


def _process(name: str, found: ProcessIdentity | None, log: str, *, ready: bool = True) -> Process:
    if found is None:
        return Process(name, "stopped", None, None, log)
    return Process(name, "running" if ready else "starting", found.pid, found.started_at, log)
