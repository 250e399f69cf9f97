"""A control plane to break: its own PostgreSQL, API and workers that can be killed, and come back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from bazaruto import embedded, processes, server_user
from bazaruto.processes import ProcessIdentity
from tests.integration.conftest import OWNER, RunningCluster
from tests.integration.control.conftest import TERMINAL, ControlPlane

TASK = "Wait for the file"  # in which each run is when something happens to it
RECOVERY_SECONDS = 10.0
START_SECONDS = 90.0  # until a run is in its task, on a machine that has much else to do
LATE_SECONDS = 60.0  # how much longer an end is waited for, to say what it was
LOOK_SECONDS = 0.03
DISK_MEGABYTES = 256
# A killed server must not forget what it promised; a disk that loses power is not what is tried here.
DURABLE = {
    **embedded.POSTGRESQL_SETTINGS,
    "shared_buffers": "64MB",
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "on",
    "autovacuum": "off",
}


@dataclasses.dataclass
class FaultPlane(ControlPlane):
    """A control plane whose processes get more variables than they need."""

    extra: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.extra}


@dataclasses.dataclass
class Case:
    """One run that something happened to, and what must be true of it."""

    run: str
    trace: Path  # where the run notes what it did
    allowed: frozenset[str] = frozenset()  # the states in which it may end
    reached_end: bool | None = None  # whether it played its last task; None: either, as its record says
    counted: bool = True  # it was in its task when it happened
    since: float = 0.0  # from when on its end is waited for, by the monotonic clock
    within: float = RECOVERY_SECONDS
    says: str = ""  # what its error must hold
    spoilt: bool = False  # its directory is damaged, and nothing can be read there
    record: dict[str, Any] | None = None  # as it ended
    started: bool = True  # whether it must have begun
    seconds: float | None = None  # how long its end took
    lies: list[str] = dataclasses.field(default_factory=list)
    left: int = 0  # its processes that lived on

    def must_be(self, *states: str, end: bool | None = None, says: str = "", within: float | None = None) -> None:
        """From now on it ends within so many seconds, in one of these states."""
        self.allowed, self.reached_end, self.says = frozenset(states), end, says
        self.since = time.monotonic()
        self.within = RECOVERY_SECONDS if within is None else within

    def release(self) -> None:
        """Let its task end."""
        (self.trace / "go").touch()


class Rig:
    """Everything that a fault may touch."""

    def __init__(self, root: Path, plane: FaultPlane, cluster: RunningCluster) -> None:
        self.root = root
        self.plane = plane
        self.cluster = cluster
        self.disk: Path | None = None  # a small one, that can be filled: where the run directories are
        self.patience = 1.0  # how many times as long as promised an end may take, on a machine with much else to do
        self._numbers = itertools.count(1)
        self._client: httpx.Client | None = None

    @property
    def http(self) -> httpx.Client:
        if self._client is None:
            self._client = self.plane.http
        return self._client

    # Runs

    def new_trace(self) -> Path:
        trace = self.root / "traces" / f"{next(self._numbers)}-{secrets.token_hex(4)}"
        trace.mkdir(parents=True)
        return trace

    def launch(self, operation: str = "trace", **parameters: Any) -> Case:
        trace = self.new_trace()
        run = self.plane.launch(operation, parameters={"trace": str(trace), **parameters})
        return Case(run["id"], trace)

    def in_task(self, count: int, operation: str = "trace", **parameters: Any) -> list[Case]:
        """Launch runs and wait until an event proves of each that it is in its task."""
        cases = [self.launch(operation, **parameters) for _ in range(count)]
        for case in cases:
            self.plane.until(functools.partial(self._in_task, case), START_SECONDS)
        return cases

    def _in_task(self, case: Case) -> bool:
        """Seen in its task; or over before that, which then does not count."""
        events = self.plane.events(case.run)
        if any(event["task"] == TASK and event["type"] == "runner_on_start" for event in events):
            return True
        case.counted = (self.record(case.run) or {})["status"] not in TERMINAL
        return not case.counted

    def provably_running(self, cases: Sequence[Case]) -> list[Case]:
        """Note, right after it happened, which runs it happened to: those without an outcome by now."""
        for case in cases:
            case.counted = case.counted and not (self.plane.directory(case.run) / "outcome.json").exists()
        return list(cases)

    def record(self, run: str) -> dict[str, Any] | None:
        """The run as the API shows it; None while it cannot."""
        try:
            answer = self.http.get(f"/api/v1/runs/{run}")
        except httpx.TransportError:
            return None
        found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return found

    def settle(self, cases: Sequence[Case]) -> None:
        """Wait for the end of each, and note how long that took; one that comes too late is a lie, and so is none."""
        waiting = [case for case in cases if case.record is None]
        while waiting:
            for case in waiting:
                found, now = self.record(case.run), time.monotonic()
                late = now - case.since - case.within * self.patience
                if found and found["status"] in TERMINAL:
                    case.record, case.seconds = found, now - case.since
                    case.lies += [f"ended {late:.1f} s too late"] if late > 0 else []
                elif late > LATE_SECONDS:
                    case.lies.append(f"did not end within {case.within + LATE_SECONDS:g} s: {found}")
                    waiting = []
            waiting = [case for case in waiting if case.record is None]
            time.sleep(LOOK_SECONDS)

    def cancel(self, run: str) -> httpx.Response:
        return self.http.post(f"/api/v1/runs/{run}/cancel", json={"reason": "a fault"})

    # Processes

    def guard(self, run: str) -> ProcessIdentity:
        return self._recorded(run, "guard.json")

    def supervisor(self, run: str) -> ProcessIdentity:
        return self._recorded(run, "supervisor.json")

    def _recorded(self, run: str, name: str) -> ProcessIdentity:
        path = self.plane.directory(run) / name
        found = processes.read_pid_file(path)
        assert found, f"{path} names nobody"
        return found

    def playbook(self, run: str) -> ProcessIdentity:
        """The run's ansible-playbook, a child of its supervisor, as daemons become, too."""
        supervisor = self.supervisor(run)
        children = [pid for pid in processes.everyone() if processes.parent_of(pid) == supervisor.pid]
        played = [
            pid for pid in children if any(word.endswith("/ansible-playbook") for word in processes.arguments_of(pid))
        ]
        found = [identity for identity in map(processes.identify, played) if identity]
        assert len(found) == 1, f"the supervisor of {run} has {len(found)} playbooks"
        return found[0]

    def kill(self, what: str) -> None:
        """SIGKILL the API or a worker, and see it dead."""
        process = self.plane.processes.pop(what)
        process.kill()
        process.wait(10)

    def restart(self, *whats: str) -> None:
        for what in whats:
            self.plane.start(what)

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        """One more worker, under a name of its own."""
        kept = self.plane.processes.pop("worker", None)
        process = self.plane.start("worker")
        del self.plane.processes["worker"]
        self.plane.processes[name] = process
        if kept:
            self.plane.processes["worker"] = kept
        return process

    def kill_postgresql(self) -> None:
        processes.end(self.cluster.identity, embedded.STOP_SECONDS, first_signal=signal.SIGKILL)

    def start_postgresql(self) -> None:
        self.cluster.identity = embedded.start_cluster(self.cluster.cluster)

    def bring_back(self) -> None:
        """Whatever a fault took away runs again."""
        self.start_postgresql()
        for what in ("serve", "worker"):
            process = self.plane.processes.get(what)
            if process is None or process.poll() is not None:
                self.plane.start(what)
            else:
                process.send_signal(signal.SIGCONT)
        self.plane.until(self._ready)

    def _ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def log(self, what: str) -> str:
        return (self.plane.home / "log" / f"{what}.out").read_text(encoding="utf-8", errors="replace")

    def journal(self, run: str) -> list[dict[str, Any]]:
        """The run's events as its directory has them."""
        path = self.plane.directory(run) / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def rig(patience: float = 1.0) -> Iterator[Rig]:
    """A running one, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bazaruto-faults-") as name:
        root = Path(name)
        root.chmod(0o711)  # the server's user passes through it
        cluster = _cluster(root)
        try:
            home = root / "a home"
            for part in ("log", "backups"):
                (home / part).mkdir(parents=True)
            plane = FaultPlane(home, cluster.cluster.url(OWNER, OWNER), _free_port())
            migrated = plane.cli("migrate")
            assert migrated.returncode == 0, migrated.stderr
            built = Rig(root, plane, cluster)
            built.patience = patience
            built.disk = _small_disk(home / "control" / "runs")
            try:
                built.restart("serve", "worker")
                yield built
            finally:
                for process in plane.processes.values():
                    process.kill()
                    process.wait(10)
                _sweep(root)
                if built.disk:
                    subprocess.run(["umount", "--lazy", built.disk], check=True)
        finally:
            processes.end(cluster.identity, embedded.STOP_SECONDS, first_signal=signal.SIGQUIT)


def _cluster(root: Path) -> RunningCluster:
    runs_as = server_user.server_user([embedded.postgresql_bin() / "postgres", root])
    cluster = embedded.Cluster(
        directory=root / "postgresql",
        socket_directory=root / "socket",
        passfile=root / "pgpass",
        log_path=root / "postgresql.out",
        user=runs_as,
        settings=DURABLE,
    )
    embedded.create_cluster(cluster)
    running = RunningCluster(cluster, embedded.start_cluster(cluster))
    embedded.ensure_role(cluster, OWNER, OWNER)
    return running


def _small_disk(where: Path) -> Path | None:
    """A file system in memory, which only root can mount."""
    if os.geteuid() != 0:
        return None
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = f"size={DISK_MEGABYTES}m,mode=0700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], capture_output=True, check=False)
    return where if mounted.returncode == 0 else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _sweep(root: Path) -> None:
    """End what a failed fault left behind: processes that name this rig's own directory."""
    for pid in processes.everyone():
        home = processes.environment_of(pid).get("BAZARUTO_HOME", "")
        named = any(str(root) in word for word in (*processes.arguments_of(pid), home))
        identity = processes.identify(pid) if named and pid != os.getpid() else None
        if identity and "postgres" not in "".join(processes.arguments_of(pid)[:1]):
            processes.send(identity, signal.SIGKILL)
