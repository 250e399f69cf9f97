"""The process of one run: it plays the playbook through ansible-runner and writes down, last of all, how it ended.

Started by a worker, which it outlives: `python -m bazaruto.control.supervisor RUN_ID DIRECTORY LOCK_FD`. It knows no
database: events go into the run's journal, the outcome into outcome.json, and whoever follows reads them there.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bazaruto import processes
from bazaruto.control import journal, rundir

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
PR_SET_CHILD_SUBREAPER = 36
LAST_WORDS = 5  # lines of output that explain a run which ended before its first task
ENVIRONMENT = {
    "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner switches it off unless it is set
    "ANSIBLE_NOCOLOR": "True",  # events are records, not screens
    "ANSIBLE_FORCE_COLOR": "False",
}


class Recorder:
    """Takes ansible-runner's events: appends each to the journal, keeps what the outcome needs."""

    def __init__(self, book: journal.Journal) -> None:
        self._book = book
        self._items: dict[tuple[str, str], dict[str, Any]] = {}
        self._last_words: list[str] = []
        self.failures: list[dict[str, Any]] = []
        self.statistics: Mapping[str, Any] | None = None
        self.failed_to_record: str | None = None

    def __call__(self, data: dict[str, Any]) -> bool:
        """Never raises, since that would stop ansible-runner's reader; False: no file for each event."""
        try:
            self._take(data)
        except Exception as error:  # noqa: BLE001 - kept, and told in the outcome
            self.failed_to_record = f"{type(error).__name__}: {error}"
        return False

    def _take(self, data: dict[str, Any]) -> None:
        event = journal.event_of(data)
        self._book.append(event)
        if event["type"] == "playbook_on_stats":
            self.statistics = data.get("event_data") or {}
        elif event["type"] == "runner_item_on_failed" and not event["ignored"]:
            self._items.setdefault((event["host"], event["task"]), event)
        elif event["type"] in ("runner_on_failed", "runner_on_unreachable") and not event["ignored"]:
            self.failures.append(self._items.pop((event["host"], event["task"]), event))
        elif not event["host"] and event["stdout"].strip():
            self._hear(event["stdout"])

    def _hear(self, text: str) -> None:
        """Keep what explains an early end: the lines from an error on, or else the last ones."""
        said = [line.strip() for line in text.splitlines() if line.strip()]
        if any(line.startswith(("[ERROR]", "ERROR!")) for line in self._last_words[:1]):
            self._last_words = [*self._last_words, *said][:LAST_WORDS]
        elif errors := [line for line in said if line.startswith(("[ERROR]", "ERROR!"))]:
            self._last_words = errors
        else:
            self._last_words = [*self._last_words, *said][-LAST_WORDS:]

    def hosts(self) -> dict[str, dict[str, int]]:
        """The play's statistics turned round: host → how many tasks were ok, changed, failed, …"""
        counts: dict[str, dict[str, int]] = {}
        names = {"dark": "unreachable", "failures": "failed"}
        for kind in ("ok", "changed", "failures", "dark", "skipped", "rescued", "ignored"):
            for host, count in ((self.statistics or {}).get(kind) or {}).items():
                counts.setdefault(host, {})[names.get(kind, kind)] = count
        return counts

    def lost_hosts(self) -> list[str]:
        return sorted(
            host for host, counts in self.hosts().items() if counts.get("failed", 0) or counts.get("unreachable", 0)
        )

    def result(self) -> Any:
        return ((self.statistics or {}).get("artifact_data") or {}).get("result")

    def reason(self, rc: int | None) -> str:
        """One sentence for a run that did not succeed."""
        lost = self.lost_hosts()
        for failure in self.failures:
            if not lost or failure["host"] in lost:
                what = "could not reach" if failure["type"] == "runner_on_unreachable" else "failed on"
                return f'Task "{failure["task"]}" {what} {failure["host"]}: {failure["message"]}'
        if self.statistics is None:
            said = " ".join(self._last_words)
            return f"ansible-playbook ended (code {rc}) before the end of the play: {said or 'it said nothing'}"
        if lost:
            return f"The play failed on {', '.join(lost)}."
        return f"ansible-playbook ended with code {rc}."


class Watch:
    """Ends the run's processes at its time limit, or when the supervisor itself is told to stop."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.ended_by: str | None = None  # "limit" or "signal": then the play did not end by itself

    def start(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.write(self._wake_writer, b"s"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._thread.start()

    def stop(self) -> None:
        """The play is over: stop watching, after an ending that has begun."""
        os.write(self._wake_writer, b"e")
        self._thread.join()

    def _watch(self) -> None:
        woken, _, _ = select.select([self._wake_reader], [], [], self._timeout_seconds)
        if woken and os.read(self._wake_reader, 1) == b"e":
            return
        self.ended_by = "signal" if woken else "limit"
        end_descendants(GRACE_SECONDS)


def end_descendants(grace_seconds: float) -> None:
    """End everything below this process, also what became a session leader or a daemon; return when it is gone."""
    own = os.getpid()
    deadline = time.monotonic() + grace_seconds
    family = processes.descendants(own)
    for member in family:
        processes.send(member, signal.SIGTERM)
        processes.send(member, signal.SIGCONT)
    processes.wait_all(family, deadline)
    while left := processes.descendants(own):
        for member in left:
            processes.send(member, signal.SIGKILL)
        processes.wait_all(left, time.monotonic() + 1.0)


def main(arguments: list[str]) -> int:
    """Play the run in DIRECTORY; the exit code says only whether an outcome was written."""
    directory = rundir.RunDirectory(Path(arguments[1]))
    os.set_inheritable(int(arguments[2]), False)  # the lock is this process' sign of life, nobody else's
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    become_subreaper()
    identity = processes.identify(os.getpid())
    if identity:
        processes.write_pid_file(directory.supervisor_file, identity)
    outcome = supervise(directory)
    rundir.write_durably(directory.outcome_file, dataclasses.asdict(outcome))
    return 0


def supervise(directory: rundir.RunDirectory) -> rundir.Outcome:
    """Play, and judge what was seen."""
    spec = directory.spec()
    redactor = journal.Redactor(directory.secrets())
    book = journal.Journal(directory.events_file, redactor)
    recorder = Recorder(book)
    watch = Watch(spec.timeout_seconds)
    started_at = journal.utc()
    watch.start()
    rc, trouble = play(directory, spec, recorder)
    watch.stop()
    directory.remove_secrets()
    whole = book.close()
    if not whole or recorder.failed_to_record:
        trouble = f"Not every event could be recorded ({recorder.failed_to_record or 'the disk refused'})."
    status, error = judge(spec, recorder, watch.ended_by, rc, trouble)
    return rundir.Outcome(
        status=status,
        started_at=started_at,
        finished_at=journal.utc(),
        events=book.count,
        rc=rc,
        error=redactor.clean(error),
        result=redactor.clean(recorder.result()),
        hosts=redactor.clean(recorder.hosts()) if recorder.statistics is not None else None,
    )


def judge(
    spec: rundir.Spec, recorder: Recorder, ended_by: str | None, rc: int | None, trouble: str | None
) -> tuple[str, str | None]:
    """The run's status and the sentence for it. Success needs code 0, the statistics, some host and no lost one."""
    if rc == 0 and recorder.statistics is not None and not recorder.lost_hosts():
        if not recorder.hosts():
            return "failed", _nobody(spec)
        return "succeeded", trouble
    if ended_by == "limit":
        return "timed_out", f"It was ended after its time limit of {spec.timeout_seconds:g} s."
    if ended_by == "signal":
        return "interrupted", "Its supervisor was told to stop (SIGTERM), and ended the playbook."
    return "failed", " ".join(filter(None, [recorder.reason(rc), trouble]))


def _nobody(spec: rundir.Spec) -> str:
    """Ansible takes a play without hosts for a success; a backup of nothing is none."""
    chosen = f"none of its hosts is in --limit {spec.limit}" if spec.limit else "its inventory has no host for it"
    return f"Nothing was done: {chosen}. `ansible-inventory -i inventories/{spec.environment} --graph` shows the hosts."


def play(directory: rundir.RunDirectory, spec: rundir.Spec, recorder: Recorder) -> tuple[int | None, str | None]:
    """Run the playbook to its end: ansible-playbook's exit code, and what went wrong around it."""
    import ansible_runner

    os.environ.update(ENVIRONMENT)
    settings = {"suppress_output_file": True, "suppress_ansible_output": True, "pexpect_timeout": 1}
    settings_file = directory.private / "env" / "settings"
    settings_file.write_text(json.dumps(settings), encoding="utf-8")
    options = [*(["--check"] if spec.check else []), *(["--diff"] if spec.diff else [])]
    try:
        runner = ansible_runner.run(
            private_data_dir=str(directory.private),
            ident="run",
            project_dir=spec.content_directory,
            playbook=spec.playbook,
            inventory=spec.inventory,
            limit=spec.limit,
            cmdline=" ".join(options) or None,
            fact_cache_type="memory",
            event_handler=recorder,
            cancel_callback=lambda: False,  # else it would install a signal handler of its own
            quiet=True,
        )
    except Exception as error:  # noqa: BLE001 - told in the outcome
        return None, f"ansible-runner stopped with {type(error).__name__}: {error}"
    return runner.rc, None


def become_subreaper() -> None:
    """Descendants that lose their parent become children of this process, and can be found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
