"""What a task does in a transient unit arrives as it would without one, and ends with the unit."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.conftest import PLAYBOOKS, REPOSITORY, Run, kill, make_run
from tests.lab.host import Host
from tests.lab.waiting import becomes_true


def test_what_a_task_says_passes_through_a_unit_unchanged(host: Host, run: Run) -> None:
    code, said = run.play(PLAYBOOKS / "streams.yml")
    assert code == 0, said
    assert [unit["host"] for unit in run.units()] == [host.name] * 3
    assert host.units(run.pattern()) == []  # they end with their task


def test_stopping_the_unit_ends_what_became_a_daemon(host: Host, run: Run) -> None:
    playing = run.start(PLAYBOOKS / "linger.yml", number=1001, stubborn=True)
    assert becomes_true(lambda: count(host, "sleep 71001") == 5, 90)
    kill(playing)
    assert count(host, "sleep 71001") == 5  # killing ssh ended nothing
    host.run(f"systemctl stop '{run.pattern()}'")
    assert count(host, "sleep 71001") == 0


def test_an_ordinary_user_needs_sudo_without_a_password(host: Host, tmp_path: Path) -> None:
    run = make_run(host, tmp_path, "guest")
    code, said = run.play(PLAYBOOKS / "streams.yml")
    assert code != 0
    assert "sudo: a password is required" in said, said
    host.run("echo 'guest ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/guest")
    try:
        code, said = run.play(PLAYBOOKS / "streams.yml")
    finally:
        host.run("rm /etc/sudoers.d/guest")
    assert code == 0, said


def test_what_cannot_be_written_down_is_not_started(host: Host, run: Run) -> None:
    run.environment["BAZARUTO_RUN_UNITS"] = "/dev/full"
    code, said = run.play(PLAYBOOKS / "streams.yml")
    assert code != 0
    assert "could not be written down in /dev/full, so it was not started" in said


def test_the_roles_own_backup_runs_in_units_of_its_run(host: Host, run: Run) -> None:
    prepare_database(host)
    code, said = run.play(REPOSITORY / "playbooks" / "backup.yml")
    assert code == 0, said
    assert {unit["host"] for unit in run.units()} == {host.name}
    assert len(run.units()) == 2  # the dump, and the retention
    assert host.run("stat -c '%U %a' /var/backups/bazaruto/*.dump").stdout.splitlines()[-1] == "postgres 600"


def prepare_database(host: Host) -> None:
    """A database whose one index takes ten minutes to restore, and no time to dump."""
    host.run("install -d -o postgres -g postgres -m 700 /var/backups/bazaruto")
    if host.run("sudo -u postgres psql -XAtc 'SELECT 1' bazaruto", check=False).returncode == 0:
        return
    statements = """
        CREATE DATABASE bazaruto;
        \\connect bazaruto
        CREATE FUNCTION slow(id int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
          IF current_setting('application_name') LIKE 'bazaruto restore%' THEN PERFORM pg_sleep(600); END IF;
          RETURN id; END $$;
        CREATE TABLE items (id int PRIMARY KEY);
        INSERT INTO items SELECT generate_series(1, 10);
        CREATE INDEX items_slow ON items (slow(id));
    """
    host.run(f"sudo -u postgres psql -X -v ON_ERROR_STOP=1 <<'END'\n{statements}\nEND")


def count(host: Host, command: str) -> int:
    """How many processes on the host have this command line."""
    return len(host.run(f"pgrep --exact --full '{command}'", check=False).stdout.split())
