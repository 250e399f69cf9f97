"""The warm process that runs are forked from, and the worker's side of it.

`python -m bazaruto.control.engine.launcher DESCRIPTOR ROOM` imports Ansible once and then waits. It has no threads and
knows no database. A request is one message with two descriptors: the run's permit, a socket of its own, and its log
file. The launcher forks, and the new process says its pid on the permit. Only then the worker sends, over the permit,
the run's lock: nobody begins a run without holding that.

So no run is started twice. The worker sends the lock or, after its deadline, closes the permit; never both. A process
that was frozen meanwhile, or that is forked from a late request, finds the permit closed and goes away; it never held
the lock, so it does not make a dead run look alive either. And a lock that was sent cannot be lost unnoticed: it is
held by the message until the process takes it, and free when that process died, which is how any run is found dead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from bazaruto.control.engine import warm

DEADLINE_SECONDS = 1.0  # for a process that must only fork; the other way takes less
KILL_SECONDS = 2.0
ROOM = 4096  # bytes in the command line, for the words of the longest process to be shown
NO_RUN = "00000000-000000-000000"  # as long as every run's id
MESSAGE_BYTES = 1 << 20
READY = b"ready"


@dataclasses.dataclass(frozen=True)
class Request:
    """A run that is to be started."""

    run: str
    directory: str
    environment: dict[str, str]  # all of it
    cwd: str


class LauncherUnavailable(Exception):
    """The run was not started, and will not be by the launcher; start it in another way."""


class Launcher:
    """The worker's side. Used by one thread."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment`: what every run gets, and so all that the warm process may see."""
        self._environment = {**environment, warm.RUN_VARIABLE: NO_RUN}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self._versions: object = None
        self._executed: list[subprocess.Popen[bytes]] = []  # guards that are this process' own children

    def start(self) -> None:
        """Start the warm process; it is of use as soon as it has imported Ansible."""
        self.stop()
        self._versions = versions(self._environment)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [sys.executable, "-m", "bazaruto.control.engine.launcher", str(theirs.fileno()), "-" * ROOM]
            self._process = subprocess.Popen(
                words,
                env=self._environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.setblocking(False)
        self._control, self._ready = ours, False

    def stop(self) -> None:
        """End the warm process; runs live on."""
        if self._control:
            self._control.close()
            self._control = None
        if self._process:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_SECONDS)
            self._process = None

    @property
    def pid(self) -> int | None:
        """Of the warm process."""
        return self._process.pid if self._process else None

    def is_ready(self) -> bool:
        """Whether Ansible is imported there."""
        if self._control and not self._ready:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._ready = self._control.recv(len(READY)) == READY
        return self._ready

    def begin(self, request: Request, lock: int, log_file: int) -> int:
        """Start a run's guard in a session of its own, warm or else executed; returns its pid."""
        self._executed = [child for child in self._executed if child.poll() is None]
        try:
            return self.launch(request, lock, log_file)
        except LauncherUnavailable as unavailable:
            from bazaruto import logs  # not for the warm process: it stays small

            logs.get(__name__).info("run is executed", run=request.run, reason=str(unavailable))
        child = subprocess.Popen(
            [sys.executable, "-m", "bazaruto.control.engine.guard", request.run, request.directory, str(lock)],
            env=request.environment,
            cwd=request.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=[lock],
            start_new_session=True,
        )
        self._executed.append(child)
        return child.pid

    def launch(self, request: Request, lock: int, log_file: int) -> int:
        """Start a run's guard and hand it the lock; returns its pid. Raises LauncherUnavailable: it was not started."""
        control = self._renewed(request.environment)
        try:
            return _ask(control, request, lock, log_file)
        except OSError as error:
            self.start()
            raise LauncherUnavailable(f"the warm process does not answer ({error}); another one is started") from error

    def _renewed(self, environment: Mapping[str, str]) -> socket.socket:
        """A new Ansible, Python or ansible.cfg needs a new launcher, one that died too."""
        if versions(environment) != self._versions or self._process is None or self._process.poll() is not None:
            self._environment = {**environment, warm.RUN_VARIABLE: NO_RUN}
            self.start()
        if self._control is None or not self.is_ready():
            raise LauncherUnavailable("the warm process is not ready yet")
        return self._control


def _ask(control: socket.socket, request: Request, lock: int, log_file: int) -> int:
    """Ask for a process; when it is there, send it the lock."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            message = json.dumps(dataclasses.asdict(request)).encode()
            socket.send_fds(control, [message], [theirs.fileno(), log_file])
        ours.settimeout(DEADLINE_SECONDS)
        answer = json.loads(ours.recv(MESSAGE_BYTES) or b'{"error": "it ended"}')
        if "error" in answer:
            raise OSError(answer["error"])
        socket.send_fds(ours, [b"lock"], [lock])
    pid: int = answer["pid"]
    return pid


def versions(environment: Mapping[str, str]) -> object:
    """What a warm process is out of date without: the interpreter, all packages, and Ansible's settings file."""
    places = [sys.executable, *(place for place in sys.path if place.endswith("-packages"))]
    places.append(str(metadata.distribution("ansible-core").locate_file("ansible/release.py")))
    settings = environment.get("ANSIBLE_CONFIG")
    with contextlib.suppress(OSError):
        return [(place, Path(place).stat().st_mtime_ns) for place in places], settings and Path(settings).read_bytes()
    return None


def main(arguments: list[str]) -> int:
    """Wait for requests until the worker's end of the socket closes."""
    from bazaruto.control.engine import guard, play

    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    os.environ.update(play.ENVIRONMENT)
    warm.import_ansible()
    gc.collect()
    gc.freeze()  # what all runs share is not looked at again, and stays shared
    with contextlib.suppress(ConnectionError):  # the worker is gone
        control.send(READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
            if not message:
                return 0
            permit, log_file = descriptors
            _fork(Request(**json.loads(message)), permit, log_file, guard.main)
    return 0


def _fork(request: Request, permit: int, log_file: int, guard: Callable[[list[str]], int]) -> None:
    """Fork the process of one run. What it needs no more is closed at once here."""
    try:
        if os.fork() == 0:
            _be_guard(request, permit, log_file, guard)
    except OSError as error:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(permit)) as answer:
            answer.send(json.dumps({"error": f"it cannot fork: {error}"}).encode())
    finally:
        os.close(permit)
        os.close(log_file)


def _be_guard(request: Request, permit: int, log_file: int, guard: Callable[[list[str]], int]) -> None:
    """In the forked process: be a new process, wait for the lock, guard the run. Never returns."""
    code = 1
    try:
        gc.freeze()
        _begin(permit, log_file)
        lock = _take_lock(permit)
        if lock is None:
            os._exit(0)
        warm.set_environment(request.environment)
        os.chdir(request.cwd)
        sys.argv = ["bazaruto.control.engine.guard", request.run, request.directory, str(lock)]
        warm.show_as([sys.executable, "-m", *sys.argv], request.run)
        code = guard(sys.argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - told in the run's log; the run is found dead by its lock
        traceback.print_exc()
    finally:
        warm.finish()
        os._exit(code)


def _begin(permit: int, log_file: int) -> None:
    """Own session, own streams, own signals, and no descriptor but the permit."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor, source in enumerate((nothing, log_file, log_file)):
        os.dup2(source, descriptor)
    os.closerange(3, permit)
    os.closerange(permit + 1, os.sysconf("SC_OPEN_MAX"))
    warm.reset_signals(keep_ignored=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    warm.open_streams()


def _take_lock(permit: int) -> int | None:
    """The run's lock, or None when the worker has given this process up."""
    with socket.socket(fileno=permit) as waiting:
        try:
            waiting.send(json.dumps({"pid": os.getpid()}).encode())
            _, descriptors, _, _ = socket.recv_fds(waiting, len(b"lock"), 1)
        except ConnectionError:
            return None
    return descriptors[0] if descriptors else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
