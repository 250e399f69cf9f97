"""Which hosts are asked after a run, without asking any; tests/hosts asks real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bazaruto.control.engine import remote, rundir, scopes


@pytest.fixture
def directory(tmp_path: Path) -> rundir.RunDirectory:
    made = rundir.RunDirectory(tmp_path / "control" / "runs" / "20261123-120000-abcdef")
    made.create(rundir.Spec(made.path.name, "sample", "local", str(tmp_path), "", str(tmp_path), 60.0), {})
    return made


def write_events(directory: rundir.RunDirectory, *hosts: str) -> None:
    events = [{"seq": 1, "type": "playbook_on_start", "host": None, "stdout": 'said "host":"nobody"'}]
    events += [{"seq": seq, "type": "runner_on_start", "host": host} for seq, host in enumerate(hosts, 2)]
    lines = (json.dumps(event, separators=(",", ":")) + "\n" for event in events)
    directory.events_file.write_text("".join(lines))


def test_a_run_on_this_machine_asks_nobody_and_starts_nothing(
    directory: rundir.RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(directory, "localhost")
    monkeypatch.setattr("sys.executable", "/nothing/there")  # whoever started a process would fail
    assert remote.end_work(directory) == remote.Ended([], [])
    assert remote.seconds_needed(directory) == 0


def test_every_host_that_was_touched_is_asked(directory: rundir.RunDirectory) -> None:
    write_events(directory, "localhost", "db1", 'a"b', "db1", "häuser")
    assert remote.hosts_to_ask(directory) == ['a"b', "db1", "häuser"]


def test_hosts_with_units_are_asked_though_no_event_names_them(directory: rundir.RunDirectory) -> None:
    """A task that is delegated names its host only when it ends; half a line was never followed by a start."""
    line = json.dumps({"host": "db2", "unit": "bazaruto-20261123-120000-abcdef-00000000.service"})
    remote.units_file(directory).write_text(f'{line}\n{{"host": "db')
    assert remote.hosts_to_ask(directory) == ["db2"]


def test_a_host_is_left_when_nobody_can_be_started_to_ask_it(
    directory: rundir.RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(directory, "db1")
    monkeypatch.setattr("sys.executable", "/nothing/there")
    ended = remote.end_work(directory)
    assert ended.hosts_left == ["db1"]
    assert str(ended.sentence).startswith("It may still be at work on db1: it could not be asked (FileNotFoundError")


@pytest.mark.skipif(scopes.BOOTED.is_dir(), reason="systemd is pid 1 here")
def test_without_systemd_there_is_no_scope() -> None:
    assert not scopes.enter("20261123-120000-abcdef")
    assert scopes.members("20261123-120000-abcdef") == []
    scopes.end("20261123-120000-abcdef")
