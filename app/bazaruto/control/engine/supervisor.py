"""The process of one run: it plays the playbook, writes down what happens, and last of all how it ended.

A child of the run's guard. It knows no database: events go into the run's journal, the outcome into outcome.json,
and whoever follows reads them there.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TextIO, cast

from bazaruto import processes
from bazaruto.control.engine import ending, journal, remote, rundir, vaults, verdict, warm
from bazaruto.control.engine.play import end_masters, play
from bazaruto.control.engine.recorder import Recorder
from bazaruto.control.engine.redactor import RedactedStream, Redactor
from bazaruto.control.engine.verdict import Ending

LOOK_SECONDS = 0.5  # between two looks at how long no event came, where that is limited
SECONDS_BETWEEN_ENDINGS = 0.2  # while the play is to be over, and is not


class Watch:
    """Ends the run's processes at its limits, when somebody cancels it, or when the supervisor is told to stop."""

    def __init__(self, spec: rundir.Spec, directory: rundir.RunDirectory, seen: Recorder) -> None:
        self._spec = spec
        self._directory = directory
        self._seen = seen
        self._deadline = time.monotonic() + spec.timeout_seconds
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.ending: Ending | None = None

    def listen(self) -> None:
        """Take signals from now on; to be called in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.write(self._wake_writer, b"s"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The play is over: stop watching, after an ending that has begun."""
        os.write(self._wake_writer, b"e")
        self._thread.join()

    def _watch(self) -> None:
        self.ending = self._wait()
        while self.ending:  # again until the play is over: the playbook may only just be starting
            ending.end_descendants()
            if self._is_over():
                return

    def _is_over(self) -> bool:
        woken, _, _ = select.select([self._wake_reader], [], [], SECONDS_BETWEEN_ENDINGS)
        return bool(woken) and b"e" in os.read(self._wake_reader, select.PIPE_BUF)

    def _wait(self) -> Ending | None:
        while (due := self._due()) is None:
            woken, _, _ = select.select([self._wake_reader], [], [], self._patience())
            if woken:
                return None if os.read(self._wake_reader, 1) == b"e" else self._told()
        return due

    def _told(self) -> Ending:
        if cancellation := self._directory.cancellation():
            return Ending("canceled", cancellation.sentence)
        return Ending("interrupted", "Its supervisor was told to stop (SIGTERM), and ended the playbook.")

    def _due(self) -> Ending | None:
        now = time.monotonic()
        if now >= self._deadline:
            return Ending("timed_out", f"It was ended after its time limit of {self._spec.timeout_seconds:g} s.")
        idle = self._spec.idle_timeout_seconds
        if idle is not None and now - self._seen.heard_at >= idle:
            return Ending("timed_out", f"It was ended after {idle:g} s without any event.")
        return None

    def _patience(self) -> float:
        left = max(0.0, self._deadline - time.monotonic())
        return left if self._spec.idle_timeout_seconds is None else min(left, LOOK_SECONDS)


def main(directory: rundir.RunDirectory) -> None:
    """Play the run, judge what was seen, and write the outcome."""
    spec = directory.spec()
    warm.show_as([sys.executable, "-m", "bazaruto.control.engine.supervisor", spec.run, str(directory.path)], spec.run)
    redactor = Redactor(directory.secrets())
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr, redactor))  # tracebacks may name values
    book = journal.Journal(directory.events_file, directory.output_file, redactor)
    seen = Recorder(book)
    watch = Watch(spec, directory, seen)
    watch.listen()
    ending.become_subreaper()
    if identity := processes.identify(os.getpid()):
        processes.write_pid_file(directory.supervisor_file, identity)
    started_at = journal.utc()
    if directory.cancellation():  # written before there was anybody to tell
        os.kill(os.getpid(), signal.SIGTERM)
    watch.start()
    rc, trouble = _play(directory, spec, seen, redactor)
    watch.stop()
    if seen.statistics is None:
        ending.end_descendants()  # ansible-playbook did not come to its end, and what it had started lives on
    end_masters(spec.run)
    elsewhere = _end_work_elsewhere(directory, watch, seen)
    whole = book.close()
    if not whole or seen.failed_to_record:
        trouble = f"Not every event could be recorded ({seen.failed_to_record or 'the disk refused'})."
    status, error = verdict.judge(spec, seen, watch.ending, rc, trouble)
    directory.write_outcome_at_last(
        rundir.Outcome(
            status=status,
            started_at=started_at,
            finished_at=journal.utc(),
            events=book.count if whole else journal.count_whole(directory.events_file),
            rc=rc,
            error=redactor.clean(" ".join(filter(None, [error, elsewhere.sentence])) or None),
            result=redactor.clean(seen.result()),
            hosts={redactor.text(host): counts for host, counts in seen.hosts().items()}
            if seen.statistics is not None
            else None,
            seconds=spec.seconds_since_claim(),
            left_running=elsewhere.hosts_left,
        )
    )


def _play(
    directory: rundir.RunDirectory, spec: rundir.Spec, seen: Recorder, redactor: Redactor
) -> tuple[int | None, str | None]:
    """Play, knowing what must not be seen: what the vaults of the run's content hold, too."""
    password_file = Path(spec.vault_password_file) if spec.vault_password_file else None
    try:
        home = directory.path.parents[2]  # HOME/control/runs/RUN
        vaulted = vaults.secrets(Path(spec.content_directory), Path(spec.inventory), home, password_file)
    except vaults.VaultError as error:
        return None, f"Nothing was done: {error}"
    directory.add_secrets(vaulted)
    redactor.learn(vaulted)
    return play(directory, spec, seen)


def _end_work_elsewhere(directory: rundir.RunDirectory, watch: Watch, seen: Recorder) -> remote.Ended:
    """Units end with their task, unless the play was ended before its end, or lost the host meanwhile."""
    if watch.ending or seen.statistics is None:
        return remote.end_work(directory)
    lost = {host for host, counts in seen.hosts().items() if counts.get("unreachable")}
    return remote.end_work(directory, lost & remote.hosts_with_units(directory)) if lost else remote.Ended([], [])
