"""The role database_backup: what it makes, under writers, after kills, and what it refuses."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests import role_modules
from tests.integration.roles import module_process
from tests.integration.roles.conftest import Place

dump = role_modules.load("database_backup", "database_dump")
from ansible.module_utils.bazaruto_backup.refusal import Refused  # noqa: E402 - found after role_modules was imported

DEADLINE_SECONDS = 30.0


def options(place: Place, **changes: Any) -> dict[str, Any]:
    basic = {"connection": place.connection, "database": place.database, "directory": str(place.storage)}
    return {**basic, "compression_level": 1, "run": "20261123-154142", **changes}


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def files(place: Place) -> set[str]:
    return {path.name for path in place.storage.iterdir() if path.is_file() and not path.name.startswith(".")}


def test_a_backup_is_sealed_private_and_described(place: Place) -> None:
    done = place.play("backup", bazaruto_run_id="20261123-154142-3f9a1c")
    assert done.returncode == 0, done.output
    assert done.result is not None
    name = done.result["name"]
    assert files(place) == {f"{name}.dump", f"{name}.json", f"{name}.roles.sql"}
    path = place.storage / f"{name}.dump"
    assert {p.stat().st_mode & 0o777 for p in place.storage.iterdir() if p.is_file()} == {0o600}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (done.result["sha256"], done.result["size_bytes"]) == (digest, path.stat().st_size)
    assert done.result["path"] == str(path)
    assert done.result["status"] == "unverified"
    assert done.result["rows"]["users"] == 300
    assert done.result["rows"]["claims"] == 600
    manifest = json.loads((place.storage / f"{name}.json").read_text())
    assert manifest["run"] == "20261123-154142-3f9a1c"
    assert manifest["created_at"].endswith("Z")
    assert manifest["rows"] == done.result["rows"]
    assert manifest["roles"] == ["bazaruto"]
    assert "claims.claims_policy_exists" in manifest["constraints"]
    assert "CREATE ROLE bazaruto" in (place.storage / f"{name}.roles.sql").read_text()
    listed = subprocess.run(
        [place.cluster.bin_directory / "pg_restore", "--list", path], capture_output=True, text=True, check=True
    )
    assert "TABLE DATA public claims" in listed.stdout


def test_the_find_of_the_guide_does_not_reach_our_backups(place: Place, backup: str) -> None:
    for path in place.storage.iterdir():
        os.utime(path, (0, 0))
    before = files(place)
    subprocess.run(["find", place.storage, "-name", "bazaruto_*.sql.gz", "-mtime", "+30", "-delete"], check=True)
    assert files(place) == before


def test_check_mode_sees_what_would_refuse_and_writes_nothing(place: Place) -> None:
    before = sorted(place.storage.rglob("*"))
    done = place.play("backup", "--check")
    assert done.returncode == 0, done.output
    assert sorted(place.storage.rglob("*")) == before
    place.storage.chmod(0o500)
    refused = place.play("backup", "--check")
    assert refused.returncode == 2
    assert "is read-only for this user" in refused.words


def test_rows_are_counted_in_the_dumps_own_snapshot_under_a_writer(place: Place, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with place.connect() as session:
            while not stop.is_set():
                session.execute("INSERT INTO users (email, name) VALUES (gen_random_uuid() || '@x.example', 'w')")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = dump.back_up(options(place), check_mode=False)["backup"]
    finally:
        stop.set()
        writer.join()
    script = subprocess.run(
        [place.cluster.bin_directory / "pg_restore", "--data-only", "--table=users", "-f-", made["path"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert script.count("@") == made["rows"]["users"]
    assert place.value("SELECT count(*) FROM users") > made["rows"]["users"] > 300


def test_without_make_up_it_says_so(place: Place) -> None:
    (place.home / "local.json").unlink()
    done = place.play("backup")
    assert done.returncode != 0
    assert "run `make up` first" in done.words
    assert "Traceback" not in done.output


def test_a_stopped_server_is_one_sentence(place: Place) -> None:
    with pytest.raises(Refused, match=r"does not let postgres into .* Start it"):
        dump.back_up(options(place, connection={**place.connection, "host": "/nowhere"}), check_mode=False)
    assert files(place) == set()


@pytest.mark.parametrize("program", ["psql", "pg_dump"])
def test_programs_older_than_the_server_are_refused_by_name(place: Place, tmp_path: Path, program: str) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("pg_dump", "pg_dumpall", "psql"):
        (binaries / name).symlink_to(place.cluster.bin_directory / name)
    (binaries / program).unlink()
    (binaries / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) 11.22'\n")
    (binaries / program).chmod(0o755)
    with pytest.raises(Refused, match=rf"{program} \(.*\) is version 11, older than the server's"):
        dump.back_up(options(place, connection={**place.connection, "bin_directory": str(binaries)}), check_mode=False)
    assert files(place) == set()


def test_a_second_backup_in_the_same_second_is_refused_and_the_first_is_kept(place: Place) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for second in range(10):
        stamp = (now + datetime.timedelta(seconds=second)).strftime("%Y%m%d_%H%M%S")
        (place.storage / f"bazaruto_{stamp}.dump").write_text("the first")
    before = files(place)
    with pytest.raises(Refused, match=r"bazaruto_.*\.dump exists already, made in this same second"):
        dump.back_up(options(place), check_mode=False)
    assert files(place) == before
    assert {path.read_text() for path in place.storage.glob("*.dump")} == {"the first"}


@dataclasses.dataclass
class Stuck:
    """A backup that goes on as soon as the blocker's session ends."""

    process: subprocess.Popen[str]
    blocker: psycopg.Connection[Any]


@pytest.fixture
def stuck(place: Place) -> Any:
    """A backup in a process of its own, whose pg_dump waits for a lock that the test holds."""
    with place.connect() as blocker:
        blocker.execute("CREATE TABLE parts (n int) PARTITION BY RANGE (n)")  # only pg_dump locks it: it holds no rows
        blocker.autocommit = False
        blocker.execute("LOCK TABLE parts IN ACCESS EXCLUSIVE MODE")
        process = module_process.start("database_backup", "database_dump", options(place))
        try:
            wait_for(lambda: waiting_sessions(place))
            yield Stuck(process, blocker)
        finally:
            process.kill()
            process.wait()
            blocker.close()


def waiting_sessions(place: Place) -> int:
    statement = """
        SELECT count(*) FROM pg_stat_activity
         WHERE datname = %s AND wait_event_type = 'Lock' AND application_name ~ '^bazaruto backup'
    """
    return int(place.value(statement, place.database, database="postgres"))


def sessions(place: Place) -> int:
    return int(
        place.value(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^bazaruto backup'", database="postgres"
        )
    )


def test_a_table_that_stays_locked_ends_the_backup_with_a_sentence(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "LOCK_WAIT_MILLISECONDS", 200)
    with place.connect() as blocker:
        blocker.autocommit = False
        blocker.execute("LOCK TABLE claims IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Refused, match="a table is locked for more than"):
            dump.back_up(options(place), check_mode=False)
    assert files(place) == set()


def test_two_hands_collide_naming_the_other(place: Place, stuck: Stuck, tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match=f"already writing into .*bazaruto backup 20261123-154142, process {stuck.process.pid}"
    ):
        dump.back_up(options(place), check_mode=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    with pytest.raises(Refused, match=r"is already at work .bazaruto backup 20261123-154142, server process"):
        dump.back_up(options(place, directory=str(elsewhere)), check_mode=False)


def test_a_killed_backup_leaves_only_a_partial_file_which_the_next_removes(place: Place, stuck: Stuck) -> None:
    stuck.process.send_signal(signal.SIGKILL)
    stuck.process.wait()
    left = files(place)
    assert left
    assert all(name.endswith(".partial") for name in left)
    stuck.blocker.close()  # the session of the dead pg_dump sees that nobody is there any more
    wait_for(lambda: sessions(place) == 0)
    made = dump.back_up(options(place), check_mode=False)
    assert {Path(path).name for path in made["removed"]} == left
    assert files(place) == {Path(made["backup"]["path"]).stem + ending for ending in (".dump", ".json", ".roles.sql")}


def test_a_backup_that_is_told_to_end_leaves_nothing(place: Place, stuck: Stuck) -> None:
    stuck.process.send_signal(signal.SIGTERM)
    stuck.process.wait(10)
    assert files(place) == set()


def test_a_disk_that_fills_under_the_dump_costs_only_this_dump(place: Place, backup: str) -> None:
    before = files(place)
    wait_for(lambda: f"{datetime.datetime.now(datetime.UTC):bazaruto_%Y%m%d_%H%M%S}" > backup)  # its name is taken
    process = module_process.start("database_backup", "database_dump", options(place), file_bytes=20_000)
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "failed and was removed" in said
    assert files(place) == before


@pytest.mark.root
def test_a_full_directory_is_refused_before_anything_is_written(place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    small = place.home / "small disk"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        place.write_local(backup_directory=str(small))
        done = place.play("backup")
        assert done.returncode == 2
        assert f"bytes in {small}" in done.words
        assert list(small.iterdir()) in ([], [small / ".bazaruto_backup.lock"])
    finally:
        subprocess.run(["umount", small], check=True)


def test_old_backups_go_after_a_success_but_for_the_last_verified(place: Place, backup: str) -> None:
    path = place.storage / f"{backup}.dump"
    old = {}
    for day, status in ((1, "unverified"), (2, "verified"), (3, "unverified")):
        name = f"bazaruto_2020010{day}_000000"
        shutil.copy2(path, place.storage / f"{name}.dump")
        manifest = json.loads((place.storage / f"{backup}.json").read_text())
        manifest |= {"name": name, "created_at": f"2020-01-0{day}T00:00:00.000000Z"}
        (place.storage / f"{name}.json").write_text(json.dumps(manifest))
        old[status] = name
    seen = (place.storage / f"{old['verified']}.dump").stat()
    (place.storage / "proofs").mkdir()
    proof = {
        "status": "verified",
        "size_bytes": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
        "sha256": manifest["sha256"],
    }
    (place.storage / "proofs" / f"{old['verified']}.json").write_text(json.dumps(proof))
    done = place.play("backup", database_backup_retention_keep=1)
    assert done.result is not None, done.output
    assert done.result["removed"] == ["bazaruto_20200103_000000", "bazaruto_20200101_000000"]
    assert done.result["kept_though_old"] == {"bazaruto_20200102_000000": "the newest verified one"}
    assert not list(place.storage.glob("bazaruto_2020010[13]*"))


def test_odd_names_of_tables_are_backed_up_too(place: Place) -> None:
    with place.connect() as session:
        session.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier("My Schema")))
        for table in (("My Schema", "a b"), ("public", 'quo"te'), ("public", "dotted.name")):
            session.execute(sql.SQL("CREATE TABLE {} AS SELECT 1 AS one").format(sql.Identifier(*table)))
    rows = dump.back_up(options(place), check_mode=False)["backup"]["rows"]
    assert (rows["My Schema.a b"], rows['quo"te'], rows["public.dotted.name"]) == (1, 1, 1)
