"""A backup or restore that is canceled in the middle of its work in the database leaves nothing of it on the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.conftest import REPOSITORY, Run, make_run
from tests.hosts.test_end_work import sessions
from tests.hosts.test_runs_elsewhere import cancel, ended, start_guard
from tests.hosts.test_transient_units import prepare_database
from tests.lab.host import Host
from tests.lab.waiting import becomes_true

GRACE_SECONDS = 10.0


def test_a_canceled_dump_is_gone_with_its_unit_and_its_session(host: Host, run: Run) -> None:
    prepare_database(host)
    lock = "sudo -u postgres env PGOPTIONS='-c client_connection_check_interval=1s' psql -X"
    lock += " -c 'BEGIN; LOCK TABLE items; SELECT pg_sleep(600)' bazaruto"
    host.run(f"systemd-run --collect --unit=test-dump-lock {lock}")
    try:
        canceled(host, run, "backup", lambda: "|Lock|" in sessions(host, run))
    finally:
        host.run("systemctl stop test-dump-lock")
    assert host.run("pgrep pg_dump", check=False).stdout == ""
    assert host.run(f"grep -l {run.id} /var/backups/bazaruto/*.json", check=False).stdout == ""


def test_a_canceled_restore_is_gone_with_its_unit_and_its_session(host: Host, run: Run, tmp_path: Path) -> None:
    prepare_database(host)
    code, said = make_run(host, tmp_path / "before").play(REPOSITORY / "playbooks" / "backup.yml")
    assert code == 0, said
    newest = host.run("basename -s .dump $(ls -t /var/backups/bazaruto/*.dump | head -n 1)").stdout.strip()
    wanted = {"database_restore_confirm": "hosts", "database_restore_backup": newest}
    canceled(host, run, "restore", lambda: "CREATE INDEX" in sessions(host, run), **wanted)
    assert host.run("pgrep pg_restore", check=False).stdout == ""
    assert host.run("sudo -u postgres psql -XAtc 'SELECT count(*) FROM items' bazaruto").stdout == "10\n"


def canceled(host: Host, run: Run, playbook: str, at_work: Callable[[], bool], **variables: Any) -> None:
    """Start it under its guard, cancel it while it is provably at work in the server, and see that all of it ends."""
    guard = start_guard(run, REPOSITORY / "playbooks" / f"{playbook}.yml", **variables)
    if not becomes_true(at_work, 90):
        pytest.fail(f"it was never at work: {(run.directory.path / 'stdout.log').read_text()}")
    assert host.units(run.pattern()) != []
    begun = time.monotonic()
    cancel(run)
    outcome = ended(run, guard)
    assert (outcome["status"], outcome["left_running"]) == ("canceled", []), outcome
    assert becomes_true(lambda: sessions(host, run) == "", GRACE_SECONDS)
    assert time.monotonic() - begun < 60
    assert host.units(run.pattern()) == []
