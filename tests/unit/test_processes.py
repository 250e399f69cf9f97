"""Processes are told apart from others that get their number, and end with all they started."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from bazaruto import processes
from bazaruto.processes import ProcessIdentity

DEADLINE_SECONDS = 10.0


def start(tmp_path: Path, code: str, **env: str) -> ProcessIdentity:
    return processes.spawn_daemon(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        log_path=tmp_path / "out",
        cwd=tmp_path,
    )


def await_text(path: Path, text: str) -> str:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if path.exists() and text in (found := path.read_text(encoding="utf-8")):
            return found
        time.sleep(0.01)
    raise AssertionError(f"{text!r} never stood in {path}")


def test_a_daemon_has_a_session_of_its_own_and_no_input(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getsid(0) == os.getpid(), sys.stdin.read() == '', os.getcwd(), flush=True)"
    identity = start(tmp_path, code)
    assert await_text(tmp_path / "out", "\n").split() == ["True", "True", str(tmp_path)]
    assert processes.wait_all([identity], time.monotonic() + DEADLINE_SECONDS) == []
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def test_a_process_that_ended_is_not_alive_though_nobody_reaped_it(tmp_path: Path) -> None:
    identity = start(tmp_path, "")
    processes.wait_all([identity], time.monotonic() + DEADLINE_SECONDS)
    assert not processes.is_alive(identity)
    assert processes.identify(identity.pid) is None


@pytest.mark.parametrize("change", [{"boot_id": "another"}, {"start_time": 1}])
def test_a_process_with_the_same_number_but_another_start_is_left_alone(
    tmp_path: Path, change: dict[str, str | int]
) -> None:
    identity = start(tmp_path, "import time; time.sleep(60)")
    values = {**dataclasses.asdict(identity), **change}
    foreign = ProcessIdentity(str(values["boot_id"]), identity.pid, int(values["start_time"]))
    try:
        assert not processes.is_alive(foreign)
        processes.end(foreign, 0.1)
        assert not processes.send(foreign, signal.SIGKILL)
        assert processes.is_alive(identity)
    finally:
        processes.end(identity, 0.0)
    assert not processes.is_alive(identity)


FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
stubborn = ignore + "print('born', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep 60 & echo born; exit 0"])
print("born", flush=True)
time.sleep(60)
"""


def test_the_end_takes_stubborn_children_and_orphans_of_the_session_along(tmp_path: Path) -> None:
    identity = start(tmp_path, FAMILY, MARK=str(tmp_path))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (tmp_path / "out").read_text().count("born") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    marked = [pid for pid in processes.everyone() if processes.environment_of(pid).get("MARK") == str(tmp_path)]
    assert len(marked) == 3
    processes.end(identity, 0.2)
    left = [pid for pid in marked if processes.identify(pid)]
    assert left == []


def test_a_frozen_process_still_ends_by_its_own_handler(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def leave(*_):\n    print('left by itself', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    identity = start(tmp_path, code)
    await_text(tmp_path / "out", "ready")
    processes.send(identity, signal.SIGSTOP)
    processes.end(identity, DEADLINE_SECONDS)
    assert "left by itself" in (tmp_path / "out").read_text()
    assert not processes.is_alive(identity)


def test_a_pid_file_gives_back_what_was_written(tmp_path: Path) -> None:
    identity = processes.identify(os.getpid())
    assert identity is not None
    path = tmp_path / "one.pid.json"
    processes.write_pid_file(path, identity)
    assert processes.read_pid_file(path) == identity
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.pid.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', '{"boot_id": "", "pid": "x"}'])
def test_a_damaged_pid_file_identifies_nobody(tmp_path: Path, content: str) -> None:
    path = tmp_path / "one.pid.json"
    path.write_text(content)
    assert processes.read_pid_file(path) is None
    assert processes.read_pid_file(tmp_path / "missing.pid.json") is None


def test_a_start_is_dated_now(tmp_path: Path) -> None:
    identity = start(tmp_path, "import time; time.sleep(60)")
    assert abs(identity.started_at - time.time()) < 2.5  # the kernel dates its boot in whole seconds
    processes.end(identity, 0.0)
