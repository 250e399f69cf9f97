"""The guard of one run: parent of its supervisor, so that a run ends truthfully even when that is killed.

`python -m bazaruto.control.engine.guard RUN DIRECTORY LOCK_FD`, in a session of its own. It is small, does nothing
while all is well but note who lives below it, and holds, with the supervisor, the lock that is the run's sign of life.
When the supervisor died, or is stuck past the run's limits, it ends every descendant and writes the outcome itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path

from bazaruto import processes
from bazaruto.control.engine import ending, remote, rundir, scopes, supervisor, verdict
from bazaruto.control.engine.play import end_masters
from bazaruto.processes import ProcessIdentity

LOOK_SECONDS = 1.0  # between two looks at who lives below, and at whether the supervisor is stuck
STUCK_SECONDS = 5.0  # beyond limit and grace, until a supervisor counts as stuck


def main(arguments: list[str]) -> int:
    """Guard the run in DIRECTORY to its outcome."""
    directory = rundir.RunDirectory(Path(arguments[2]))
    os.set_inheritable(int(arguments[3]), False)  # the lock is the run's sign of life, no playbook's
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ending.become_subreaper()
    scopes.enter(directory.path.name)  # so that nobody ends this run who only stops the worker's unit
    if identity := processes.identify(os.getpid()):
        processes.write_pid_file(directory.guard_file, identity)
    child = os.fork()
    if child == 0:
        _supervise(directory)
    Guard(directory, child).watch()
    return 0


def _supervise(directory: rundir.RunDirectory) -> None:
    """Be the supervisor, and leave without anything of the guard's."""
    code = 1
    try:
        supervisor.main(directory)
        code = 0
    except BaseException:  # noqa: BLE001 - the guard writes the outcome; this says why there was none
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Guard:
    """Waits for the supervisor's end, and stands in for it when it must."""

    def __init__(self, directory: rundir.RunDirectory, child: int) -> None:
        self._directory = directory
        self._child = child
        self._limit = directory.spec().timeout_seconds
        self._started = time.monotonic()
        self._cancel_seen: float | None = None
        self._recorded: list[ProcessIdentity] = []

    def watch(self) -> None:
        """Return when the run's outcome is written."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.kill(self._child, signal.SIGTERM))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        handle = os.pidfd_open(self._child)
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        while not ended.poll(LOOK_SECONDS * 1000):
            self._record_processes()
            if self._stuck():
                os.kill(self._child, signal.SIGKILL)
        os.close(handle)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # from here on its number may be somebody else's
        _, status = os.waitpid(self._child, 0)
        if self._directory.outcome() is None:
            self._stand_in(status)

    def _stuck(self) -> bool:
        """Whether the supervisor should have ended the run by itself, long ago."""
        if not self._playing():
            return False
        now = time.monotonic()
        patience = ending.GRACE_SECONDS + STUCK_SECONDS
        if self._cancel_seen is None and self._directory.cancel_file.exists():
            self._cancel_seen = now
        due = [self._started + self._limit, *([] if self._cancel_seen is None else [self._cancel_seen])]
        late = now - min(due) - patience
        return late > 0 and late > remote.seconds_needed(self._directory)  # it may be asking hosts

    def _playing(self) -> bool:
        """Whether the supervisor's last act has not begun: that removes the secrets, and may have to wait for room."""
        return self._directory.private.exists()

    def _record_processes(self) -> None:
        """Note who lives below, for whoever must end them should this process be killed too."""
        family = sorted(processes.family(os.getpid()))
        if family != self._recorded:
            partial = self._directory.processes_file.with_suffix(".partial")
            try:
                partial.write_text(json.dumps([dataclasses.asdict(member) for member in family]), encoding="utf-8")
                partial.replace(self._directory.processes_file)
            except OSError:
                return  # a full disk: what was noted before is better than nothing, and it is tried again
            self._recorded = family

    def _stand_in(self, status: int) -> None:
        """End what the supervisor left behind, then say so."""
        past_limit = self._playing() and time.monotonic() - self._started > self._limit
        self._record_processes()  # those of the last second too, in case that this process is killed meanwhile
        ended = ending.end_descendants()
        end_masters(self._directory.path.name)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        who = f"Its supervisor {how} before it wrote an outcome; {ended} processes that it left were ended."
        self._directory.write_outcome_at_last(
            verdict.unfinished(self._directory, who, remote.end_work(self._directory), past_limit)
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
