"""Ending what a run left on its hosts: all of it, on every host, and a reason for each that cannot be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bazaruto.control.engine import remote
from tests.hosts.conftest import PLAYBOOKS, REPOSITORY, Run, ask, kill, make_run
from tests.hosts.test_transient_units import count, prepare_database
from tests.lab import faults
from tests.lab.host import Host
from tests.lab.waiting import becomes_true


def test_everything_that_a_killed_run_left_is_ended(host: Host, run: Run) -> None:
    leave(host, run, 2001)
    answer = ask(run)
    assert answer["left"] == []
    assert answer["stopped"] == run.units()
    assert count(host, "sleep 72001") == 0
    assert ask(run) == {"left": [], "stopped": []}  # any number of times


def test_a_frozen_unit_is_ended_too_and_other_runs_are_spared(host: Host, run: Run) -> None:
    host.run("systemd-run --collect --unit=bazaruto-20261123-120000-other-1 env sleep 72002")
    leave(host, run, 2003)
    host.run(f"systemctl freeze {run.units()[0]['unit']}")
    answer = ask(run)
    assert answer["left"] == [], answer
    assert count(host, "sleep 72003") == 0
    assert count(host, "sleep 72002") == 1
    host.run("systemctl stop bazaruto-20261123-120000-other-1")


def test_a_restore_is_ended_with_its_session_in_the_server(host: Host, run: Run, tmp_path: Path) -> None:
    prepare_database(host)
    code, said = make_run(host, tmp_path / "before").play(REPOSITORY / "playbooks" / "backup.yml")
    assert code == 0, said
    newest = host.run("basename -s .dump $(ls -t /var/backups/bazaruto/*.dump | head -n 1)").stdout.strip()
    playing = run.start(
        REPOSITORY / "playbooks" / "restore.yml",
        database_restore_confirm="hosts",
        database_restore_backup=newest,
    )
    assert becomes_true(lambda: "CREATE INDEX" in sessions(host, run), 90), kill(playing)
    kill(playing)
    assert "CREATE INDEX" in sessions(host, run)
    assert ask(run)["left"] == []
    assert host.run("pgrep pg_restore", check=False).stdout == ""
    assert becomes_true(lambda: sessions(host, run) == "", 5)
    assert host.run("sudo -u postgres psql -XAtc 'SELECT count(*) FROM items' bazaruto").stdout == "10\n"


def test_a_session_whose_client_was_killed_ends_within_two_seconds(host: Host, run: Run) -> None:
    """SIGKILL: nobody was left who could cancel the statement."""
    prepare_database(host)
    lock = "sudo -u postgres psql -X -c 'BEGIN; LOCK TABLE items; SELECT pg_sleep(20)' bazaruto"
    host.run(f"systemd-run --collect --unit=test-lock {lock}")
    locks = "SELECT mode FROM pg_locks WHERE relation = 'items'::regclass"
    assert becomes_true(
        lambda: "AccessExclusive" in host.run(f'sudo -u postgres psql -XAtc "{locks}" bazaruto').stdout, 10
    )
    playing = run.start(REPOSITORY / "playbooks" / "backup.yml")
    assert becomes_true(lambda: "|Lock|" in sessions(host, run), 90), kill(playing)
    kill(playing)
    host.run(f"systemctl kill --signal=KILL '{run.pattern()}'")
    assert becomes_true(lambda: sessions(host, run) == "", 3)
    host.run("systemctl stop test-lock")


@pytest.fixture
def cut_host(host: Host) -> Iterator[Host]:
    """The host, reachable again after the test."""
    yield host
    faults.thaw(host)
    faults.join(host)
    assert becomes_true(lambda: host.run("true", check=False).returncode == 0, 10)


def test_a_host_that_is_cut_off_is_left_with_a_reason_until_it_answers(cut_host: Host, run: Run) -> None:
    playing = run.start(PLAYBOOKS / "linger.yml", number=2005)
    assert becomes_true(lambda: count(cut_host, "sleep 72005") == 5, 90)
    faults.cut(cut_host)
    kill(playing)
    answer = ask(run)
    assert [left["host"] for left in answer["left"]] == [cut_host.name]
    assert "could not be reached" in answer["left"][0]["reason"]
    assert answer["stopped"] == []
    faults.join(cut_host)
    assert becomes_true(lambda: cut_host.run("true", check=False).returncode == 0, 10)
    assert count(cut_host, "sleep 72005") == 5  # it was at work all the time
    assert ask(run, cut_host.name)["stopped"] == run.units()  # the retry asks only whom it must
    assert count(cut_host, "sleep 72005") == 0


def test_a_frozen_host_is_left_with_a_reason_within_the_deadline(cut_host: Host, run: Run) -> None:
    leave(cut_host, run, 2006)
    faults.freeze(cut_host)
    begun = time.monotonic()
    answer = ask(run)
    assert time.monotonic() - begun < remote.DEADLINE_SECONDS + remote.MARGIN_SECONDS
    assert [left["host"] for left in answer["left"]] == [cut_host.name]
    faults.thaw(cut_host)
    assert ask(run)["stopped"] == run.units()


def test_a_host_that_does_not_let_us_stop_is_left_with_a_reason(host: Host, tmp_path: Path) -> None:
    run = make_run(host, tmp_path, "guest")
    host.run("echo 'guest ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/guest")
    leave(host, run, 2007)
    host.run("rm /etc/sudoers.d/guest")
    answer = ask(run)
    unit = run.units()[0]["unit"]
    assert [left["host"] for left in answer["left"]] == [host.name]
    assert f"{unit} did not stop" in answer["left"][0]["reason"]
    assert "sudo: a password is required" in answer["left"][0]["reason"]
    host.run(f"systemctl stop {unit}")
    assert ask(run) == {"left": [], "stopped": []}  # asking alone needs no right


def test_a_host_that_the_run_only_touched_is_asked(host: Host, run: Run) -> None:
    host.run(f"systemd-run --collect --unit=bazaruto-{run.id}-by-a-role sleep 72008")
    run.directory.events_file.write_text(f'{{"seq":1,"type":"runner_on_start","host":"{host.name}","task":"x"}}\n')
    assert ask(run)["stopped"] == [{"host": host.name, "unit": f"bazaruto-{run.id}-by-a-role.service"}]


def test_a_host_that_nobody_knows_any_more_is_left(host: Host, run: Run) -> None:
    answer = ask(run, "gone", host.name)
    assert [left["host"] for left in answer["left"]] == ["gone"]


def leave(host: Host, run: Run, number: int) -> None:
    """Let a run die in the middle of its work."""
    playing = run.start(PLAYBOOKS / "linger.yml", number=number)
    assert becomes_true(lambda: count(host, f"sleep 7{number}") == 5, 90)
    kill(playing)


def sessions(host: Host, run: Run) -> str:
    """What the run's sessions in the server are doing."""
    statement = (
        "SELECT application_name, wait_event_type, query FROM pg_stat_activity "
        f"WHERE application_name LIKE '%{run.id}%'"
    )
    return host.run(f'sudo -u postgres psql -XAtc "{statement}"').stdout
