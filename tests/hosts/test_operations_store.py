"""Backups are made on db1, kept on ctl1, proven on mon1, restored on db1; what goes wrong leaves nothing half."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from bazaruto.control import backups
from tests.hosts.operations_rig import STORE, Rig
from tests.lab import faults
from tests.lab.waiting import becomes_true, until

KEY = "/var/lib/bazaruto-backup/.ssh/id_ed25519"
SSH = f"ssh -i {KEY} -o BatchMode=yes -o ConnectTimeout=5"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The hosts, for all tests of this file."""
    made = Rig(tmp_path_factory.mktemp("home"))
    try:
        made.up()
        yield made
    finally:
        made.lab.down()


def test_a_backup_ends_on_another_host_and_is_proven_on_a_third(rig: Rig, tmp_path: Path) -> None:
    made = rig.play("backup")
    assert made.code == 0, made.said
    name = made.result["name"]
    assert (made.result["host"], made.result["path"]) == ("ctl1", str(STORE / f"{name}.dump"))
    assert rig.listed(rig.ctl1) == [name]
    assert rig.listed(rig.db1) == []
    drilled = rig.play("restore_drill")
    assert drilled.code == 0, drilled.said
    assert (drilled.result["name"], drilled.result["status"], drilled.result["level"]) == (
        name,
        "verified",
        "invariants",
    )
    assert rig.mon1.run(f"find {STORE}/staged -type f").stdout == ""
    assert rig.mon1.run("pgrep -x postgres", check=False).stdout == ""
    copy = rig.copy_of_store(tmp_path)
    [shown] = backups.page({backups.Kind.DATABASE: copy}, None, 10)[0]
    assert (shown.name, shown.status) == (name, backups.BackupStatus.VERIFIED)


def test_the_newest_proven_backup_is_restored_and_the_restore_undone(rig: Rig) -> None:
    rig.sql("UPDATE users SET name = 'changed'")
    asked = rig.play("restore")
    assert asked.code != 0
    assert "-e confirm=lab" in asked.said
    assert rig.db1.run(f"find {STORE}/staged -type f").stdout == ""  # nothing moves before the confirmation
    done = rig.play("restore", confirm="lab")
    assert done.code == 0, done.said
    assert rig.sql("SELECT count(*) FROM users WHERE name = 'changed'") == "0"
    assert rig.db1.run(f"find {STORE}/staged -type f").stdout == ""
    undone = rig.play("restore_undo", confirm="lab")
    assert undone.code == 0, undone.said
    assert rig.sql("SELECT count(*) FROM users WHERE name = 'changed'") == "300"


def test_the_stores_key_moves_files_of_one_directory_and_does_nothing_else(rig: Rig) -> None:
    target = f"postgres@{rig.db1.address}"
    assert "not allowed" in denied(rig, f"{SSH} {target} id") or "rrsync" in denied(rig, f"{SSH} {target} id")
    denied(rig, f"rsync -e {shlex.quote(SSH)} {target}:/etc/passwd /tmp/stolen")
    denied(rig, f"rsync -e {shlex.quote(SSH)} {target}:../../../etc/passwd /tmp/stolen")
    denied(rig, f"{SSH} -o ExitOnForwardFailure=yes -W 127.0.0.1:5432 {target}")
    assert rig.ctl1.run("test -e /tmp/stolen", check=False).returncode != 0


def test_what_is_not_what_its_manifest_says_is_not_taken_into_the_store(rig: Rig) -> None:
    before = rig.listed(rig.ctl1)
    made = rig.play("backup", "--limit", "db1")
    assert made.code == 0, made.said
    name, dump = made.result["name"], STORE / f"{made.result['name']}.dump"
    assert (made.result["host"], rig.listed(rig.db1)) == ("db1", [name])
    rig.db1.run(f"printf X | dd of={dump} bs=1 seek=1000 conv=notrunc")
    refused = rig.play("backup")
    assert refused.code != 0
    assert f"{name} from db1 is not taken into the store" in refused.said
    assert "another checksum" in refused.said
    assert name not in rig.listed(rig.ctl1)
    assert name in rig.listed(rig.db1)
    rig.db1.run(f"rm {STORE}/{name}.*")
    assert set(rig.listed(rig.ctl1)) >= set(before)


def test_a_connection_that_is_cut_in_the_middle_leaves_nothing_listed_and_the_next_run_mends_it(rig: Rig) -> None:
    rig.sql("CREATE TABLE bulk AS SELECT sha512(i::text::bytea) AS noise FROM generate_series(1, 200000) AS i")
    made = rig.play("backup", "--limit", "db1")
    assert made.code == 0, made.said
    name = made.result["name"]
    before = rig.listed(rig.ctl1)
    arriving = f"find {STORE}/arriving -type f -name '*{name}*.dump*' -size +64k"
    faults.slow(rig.db1, 4000)
    playing = rig.start("backup", "--limit", "ctl1")
    try:
        until(lambda: rig.ctl1.run(arriving, check=False).stdout != "", 120, "nothing has arrived on ctl1")
        faults.cut(rig.db1)
        said, _ = playing.communicate(timeout=150)
    finally:
        faults.heal(rig.db1)
    assert playing.returncode != 0
    assert "cut off in the middle" in " ".join(said.split()), said
    assert rig.listed(rig.ctl1) == before
    assert becomes_true(rig.db1.answers, 30)
    mended = rig.play("backup")
    assert mended.code == 0, mended.said
    assert name in mended.result["stored"]
    assert rig.listed(rig.db1) == []
    rig.sql("DROP TABLE bulk")


def test_a_full_disk_on_the_databases_host_refuses_the_backup(rig: Rig) -> None:
    before = rig.listed(rig.ctl1)
    faults.fill(rig.db1, "backups")
    try:
        refused = rig.play("backup")
    finally:
        faults.free(rig.db1, "backups")
    assert refused.code != 0
    assert "are free: free some, or use another directory" in refused.said or "No space left" in refused.said
    assert (rig.listed(rig.ctl1), rig.listed(rig.db1)) == (before, [])


def test_a_store_that_is_down_is_said_and_the_backup_waits_where_it_was_made(rig: Rig) -> None:
    before = rig.listed(rig.db1)
    rig.ctl1.kill()
    made = rig.play("backup")
    rig.lab.up(["ctl1"])
    assert made.code != 0
    assert "ctl1" in made.said
    assert "unreachable" in made.said.lower()
    waiting = rig.listed(rig.db1)
    assert len(waiting) == len(before) + 1
    mended = rig.play("backup")
    assert mended.code == 0, mended.said
    assert set(waiting) <= set(mended.result["stored"])
    assert rig.listed(rig.db1) == []


def denied(rig: Rig, command: str) -> str:
    """What is said to the store's account when it tries what it may not."""
    done = rig.as_store("sh", "-c", shlex.quote(command))
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr
