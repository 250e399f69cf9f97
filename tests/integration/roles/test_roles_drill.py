"""The role restore_drill: proves without the live database, catches every corruption, leaves nothing."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import role_modules
from tests.integration.conftest import RunningCluster
from tests.integration.roles import module_process
from tests.integration.roles.conftest import Place
from tests.integration.roles.test_roles_backup import dump, wait_for
from tests.integration.roles.test_roles_restore import INVARIANTS, SLOW

drill = role_modules.load("restore_drill", "restore_drill")
from ansible.module_utils.bazaruto_backup import storage  # noqa: E402 - found after role_modules was imported
from ansible.module_utils.bazaruto_backup.refusal import Refused  # noqa: E402


def options(place: Place, name: str, **changes: Any) -> dict[str, Any]:
    user = place.server_user
    basic = {
        "directory": str(place.storage),
        "name": name,
        "invariants": INVARIANTS,
        "jobs": 2,
        "run": "20261123-154142",
    }
    server = {"server_command_prefix": list(user.prefix), "server_user": user.name or ""}
    where = {"scratch_directory": str(place.home / "scratch"), "bin_directory": str(place.cluster.bin_directory)}
    return {**basic, **server, **where, **changes}


def reseal(place: Place, name: str, **changes: Any) -> None:
    """Recompute size and checksum in the manifest, as somebody would who wants a changed file to pass."""
    path = place.storage / f"{name}.dump"
    manifest = json.loads((place.storage / f"{name}.json").read_text())
    manifest |= {"size_bytes": path.stat().st_size, "sha256": storage.sha256(path), **changes}
    (place.storage / f"{name}.json").write_text(json.dumps(manifest))


def processes_in(directory: Path) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if directory in (process / "cwd").readlink().parents:
                    found.append(process.name)
            except OSError:
                continue  # it has ended meanwhile
    return found


def assert_nothing_is_left(place: Place) -> None:
    assert [path.name for path in (place.home / "scratch").iterdir()] == [".drill.lock"]
    assert processes_in(place.home / "scratch") == []


def test_a_drill_verifies_a_backup_with_the_live_cluster_out_of_reach(place: Place, backup: str) -> None:
    local = json.loads((place.home / "local.json").read_text())
    place.write_local(postgresql=local["postgresql"] | {"host": "/nowhere", "passfile": "/nowhere/pgpass"})
    done = place.play("restore_drill", bazaruto_run_id="20261123-154142-3f9a1c")
    assert done.returncode == 0, done.output
    assert done.result is not None
    assert (done.result["name"], done.result["status"], done.result["level"]) == (backup, "verified", "invariants")
    proof = json.loads((place.storage / "proofs" / f"{backup}.json").read_text())
    seen = (place.storage / f"{backup}.dump").stat()
    assert (proof["size_bytes"], proof["mtime_ns"]) == (seen.st_size, seen.st_mtime_ns)
    assert proof["rows"]["claims"] == 600
    assert proof["error"] is None
    assert {check["name"] for check in proof["checks"]} >= {"checksum", "list", "restored", "every_claim_has_a_policy"}
    assert storage.read(place.storage, backup).status == "verified"
    assert_nothing_is_left(place)


def test_check_mode_starts_nothing_and_writes_nothing(place: Place, backup: str) -> None:
    before = sorted(place.home.rglob("*"))
    done = place.play("restore_drill", "--check")
    assert done.returncode == 0, done.output
    assert sorted(place.home.rglob("*")) == before


def newer_format(content: bytes) -> bytes:
    """The archive's header with a version no pg_restore knows."""
    assert content[:5] == b"PGDMP"
    return content[:6] + b"\x63" + content[7:]


def flip(content: bytes) -> bytes:
    """Some bytes inverted where the data of a table lies."""
    place = len(content) - 3000
    return content[:place] + bytes(byte ^ 0xFF for byte in content[place : place + 64]) + content[place + 64 :]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda content: content[: len(content) // 2], "it was cut or changed"),
        (flip, "has the checksum .* its manifest says"),
        (lambda content: b"", "it was cut or changed"),
    ],
)
def test_a_changed_file_is_failed_by_its_manifest(
    place: Place, backup: str, spoil: Callable[[bytes], bytes], sentence: str
) -> None:
    path = place.storage / f"{backup}.dump"
    path.write_bytes(spoil(path.read_bytes()))
    found, _before = drill.prove(options(place, backup), check_mode=False)
    assert found["status"] == "failed"
    assert re.search(sentence, found["error"])
    assert storage.read(place.storage, backup).status == "failed"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda content: content[:-2000], "could not be restored"),
        (lambda content: content[:40], "is empty or cut off"),
        (flip, "could not be restored|rows restored differ"),
        (lambda content: b"", "is empty or cut off"),
        (lambda content: b"Dear operator, this is a text.\n" * 50, "is no archive of pg_dump"),
        (lambda content: b"MYSQLDUMP\0\1\2" * 99, "is no archive of pg_dump"),
        (gzip.compress, "is no archive of pg_dump"),
        (newer_format, "was written by a newer pg_dump"),
    ],
)
def test_a_changed_file_with_a_recomputed_manifest_is_failed_too(
    place: Place, backup: str, spoil: Callable[[bytes], bytes], sentence: str
) -> None:
    path = place.storage / f"{backup}.dump"
    path.write_bytes(spoil(path.read_bytes()))
    reseal(place, backup)
    found, _before = drill.prove(options(place, backup), check_mode=False)
    assert found["status"] == "failed"
    assert re.search(sentence, found["error"]), found["error"]
    assert storage.read(place.storage, backup).status == "failed"
    assert_nothing_is_left(place)


def dump_again(place: Place, name: str, database: str) -> dict[str, Any]:
    """Put a whole new dump of `database`, well sealed, in the place of the backup `name`; returns its manifest."""
    directory = place.home / "forged"
    directory.mkdir(mode=0o700)
    base = {"connection": place.connection, "database": database, "directory": str(directory)}
    made = dump.back_up({**base, "compression_level": 1, "run": "20261123-154142"}, check_mode=False)["backup"]
    manifest = json.loads((directory / f"{made['name']}.json").read_text())
    shutil.move(made["path"], place.storage / f"{name}.dump")
    return manifest | {"name": name}


def test_the_dump_of_another_database_is_failed(place: Place, backup: str) -> None:
    with place.connect("postgres") as session:
        session.execute(f'CREATE DATABASE "{place.database}_other"'.encode())
    with place.connect(f"{place.database}_other") as session:
        session.execute("CREATE TABLE films AS SELECT 1 AS id")
    manifest = dump_again(place, backup, f"{place.database}_other")
    reseal(place, backup)  # its own manifest, the foreign file
    found, _before = drill.prove(options(place, backup), check_mode=False)
    assert re.search("holds no data of .*, of which its manifest counts rows", found["error"])
    (place.storage / f"{backup}.json").write_text(json.dumps(manifest))  # the foreign file's manifest as well
    reseal(place, backup)
    found, _before = drill.prove(options(place, backup), check_mode=False)
    assert (found["status"], found["level"]) == ("failed", "constraints")
    assert "it cannot even be asked" in found["error"]


def test_a_claim_whose_policy_was_removed_is_caught_by_the_invariants_alone(place: Place, backup: str) -> None:
    with place.connect() as session:
        session.execute("ALTER TABLE claims DROP CONSTRAINT claims_policy_exists")
        removed = session.execute("DELETE FROM policies WHERE id = (SELECT policy_id FROM claims LIMIT 1) RETURNING id")
        assert len(removed.fetchall()) == 1
    (place.storage / f"{backup}.json").write_text(json.dumps(dump_again(place, backup, place.database)))
    done = place.play("restore_drill", restore_drill_backup=backup)
    assert done.returncode == 2
    assert done.result is not None
    assert (done.result["status"], done.result["level"]) == ("failed", "constraints")
    failed = [check["name"] for check in done.result["checks"] if not check["ok"]]
    assert failed == ["every_claim_has_a_policy"]
    assert f"The backup {backup} is failed" in done.words
    assert storage.read(place.storage, backup).status == "failed"
    with pytest.raises(Refused, match="is failed"):
        role_modules.load("database_backup", "backup_find").choose(str(place.storage), backup, "restore")


def test_a_broken_manifest_is_failed(place: Place, backup: str) -> None:
    (place.storage / f"{backup}.json").write_text("{")
    found, _before = drill.prove(options(place, backup), check_mode=False)
    assert (found["status"], found["error"]) == ("failed", f"its manifest {backup}.json is not readable")


def test_a_killed_drill_is_cleaned_up_by_the_next(place: Place, backup: str) -> None:
    slow = options(place, backup, invariants=SLOW, run="20261123-111111")
    process = module_process.start("restore_drill", "restore_drill", slow)
    scratch = place.home / "scratch"
    try:
        passfile = scratch / "drill_20261123-111111" / "passfile"
        note = scratch / "drill_20261123-111111" / "socket_directory"
        wait_for(lambda: note.exists() and asleep(note.read_text(), passfile))
        with pytest.raises(Refused, match=f"another drill is at work .* .process {process.pid}"):
            drill.prove(options(place, backup), check_mode=False)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    sockets = Path(note.read_text())
    assert sockets.is_dir()
    found, _before = drill.prove(options(place, backup), check_mode=False)
    assert found["leftovers_removed"] == ["drill_20261123-111111"]
    assert found["status"] == "verified"
    assert not sockets.exists()
    assert_nothing_is_left(place)


def asleep(sockets: str, passfile: Path) -> bool:
    """Whether the drill's cluster has come to the invariant that takes long."""
    try:
        with psycopg.connect(host=sockets, user="postgres", dbname="postgres", passfile=str(passfile)) as session:
            row = session.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchone()
    except psycopg.OperationalError:
        return False  # not there yet
    return row is not None and row[0] > 0


def test_a_drill_that_is_told_to_end_leaves_nothing_and_says_nothing_about_the_backup(
    place: Place, backup: str
) -> None:
    process = module_process.start("restore_drill", "restore_drill", options(place, backup, invariants=SLOW))
    note = place.home / "scratch" / "drill_20261123-154142" / "socket_directory"
    wait_for(lambda: note.exists() and asleep(note.read_text(), note.with_name("passfile")))
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert_nothing_is_left(place)
    assert storage.read(place.storage, backup).status == "unverified"


def test_a_fault_of_the_machine_is_not_held_against_the_backup(place: Place, backup: str) -> None:
    reseal(place, backup, database_bytes=2**60)
    with pytest.raises(Refused, match="the drill's throw-away cluster needs"):
        drill.prove(options(place, backup), check_mode=False)
    reseal(place, backup, database_bytes=1, server_version="99.1")
    with pytest.raises(Refused, match="the backup is from PostgreSQL 99"):
        drill.prove(options(place, backup), check_mode=False)
    assert storage.read(place.storage, backup).status == "unverified"


def test_a_drill_opens_no_directory_to_others(place: Place, backup: str, postgres_cluster: RunningCluster) -> None:
    modes = {path: path.stat().st_mode for path in (place.home, place.home.parent, place.storage)}
    umask = os.umask(0o022)
    try:
        drill.prove(options(place, backup), check_mode=False)
    finally:
        os.umask(umask)
    assert {path: path.stat().st_mode for path in modes} == modes
    proofs = place.storage / "proofs"
    assert proofs.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in proofs.iterdir()} == {0o600}


@pytest.mark.skipif(not Path("/usr/lib/postgresql/15/bin/initdb").exists(), reason="no PostgreSQL 15 on this machine")
def test_a_backup_from_a_newer_server_is_no_fault_of_the_file(place: Place, backup: str) -> None:
    old = subprocess.run(
        ["/usr/lib/postgresql/15/bin/pg_restore", "--version"], capture_output=True, text=True, check=True
    )
    assert "15" in old.stdout
    found, _before = drill.prove(options(place, backup, bin_directory="/usr/lib/postgresql/15/bin"), check_mode=False)
    assert found["status"] == "failed"
    assert "was written by a newer pg_dump than this pg_restore can read" in found["error"]
