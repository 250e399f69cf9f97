"""The role database_restore: new database, proof, one swap; its hold on writes, its undo, and what it refuses."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bazaruto import embedded
from tests import role_modules
from tests.integration.conftest import SETTINGS, RunningCluster
from tests.integration.roles import module_process
from tests.integration.roles.conftest import Place, grant_and_set
from tests.integration.roles.test_roles_backup import wait_for

restore = role_modules.load("database_restore", "database_restore")
from ansible.module_utils.bazaruto_backup import contents  # noqa: E402 - found after role_modules was imported
from ansible.module_utils.bazaruto_backup.connection import Server  # noqa: E402
from ansible.module_utils.bazaruto_backup.refusal import Refused  # noqa: E402
from ansible.module_utils.bazaruto_restore import replacing, swap  # noqa: E402

RUN = "20261123-154142-3f9a1c"
INVARIANTS = (role_modules.ROOT / "roles/database_restore/files/invariants.sql").read_text()
SLOW = "-- name: this_takes_long\nSELECT 1 FROM pg_sleep(600)"
ADD_USER = "INSERT INTO users (email, name) VALUES ('late@bazaruto.example', 'Late') RETURNING name"
LATE_USERS = "SELECT count(*) FROM users WHERE name = 'Late'"
EXPECTED = ("terminating connection", "just been dropped or renamed", "closed the connection")
TRY_TO_WRITE = f"SELECT pg_try_advisory_xact_lock_shared({swap.WRITE_HOLD_KEY})"


def options(place: Place, path: Path, **changes: Any) -> dict[str, Any]:
    basic = {"connection": place.connection, "database": place.database, "run": RUN, "path": str(path)}
    more = {"jobs": 2, "keep_writes": False, "hold_timeout": 5, "hold_jobs": True, "keep_previous": 1}
    return {**basic, **more, "invariants": INVARIANTS, **changes}


def dump_of(place: Place, backup: str) -> Path:
    return place.storage / f"{backup}.dump"


def test_without_confirm_it_says_what_would_be_lost_and_touches_nothing(place: Place, backup: str) -> None:
    place.value(ADD_USER)
    done = place.play("restore", database_restore_backup=backup)
    assert done.returncode == 2
    assert f"{backup} is " in done.words
    assert "1 of users" in done.words
    assert "with: -e confirm=local" in done.words
    assert place.databases() == {place.database}
    assert place.value(LATE_USERS) == 1
    assert place.play("restore", database_restore_backup=backup, confirm="production").returncode == 2


def test_check_mode_predicts_the_restore_and_touches_nothing(place: Place, backup: str) -> None:
    done = place.play("restore", "--check", "--diff", database_restore_backup=backup)
    assert done.returncode == 0, done.output
    assert done.result is not None
    assert (done.result["check"], done.result["rows"]["users"], done.result["level"]) == (True, 300, "list")
    assert place.databases() == {place.database}
    place.storage.joinpath(f"{backup}.dump").write_bytes(b"PGDMP")
    assert place.play("restore", "--check", database_restore_backup=backup).returncode == 2


def test_a_restore_swaps_keeps_holds_and_can_be_undone(place: Place, backup: str) -> None:
    grant_and_set(place)
    place.value(ADD_USER)
    with place.connect("postgres") as session:
        before = contents.database_properties(session, place.database)
    done = place.play("restore", database_restore_backup=backup, confirm="local", bazaruto_run_id=RUN)
    assert done.returncode == 0, done.output
    kept = f"{place.database}_before_20261123_154142_3f9a1c"
    assert done.result is not None
    assert (done.result["name"], done.result["kept"], done.result["level"]) == (backup, kept, "invariants")
    assert done.result["newer_rows"] == {"users": 1}
    assert done.result["rows"]["users"] == 300
    assert place.databases() == {place.database, kept}
    assert place.value(LATE_USERS) == 0
    assert place.value(LATE_USERS, database=kept) == 1
    with place.connect("postgres") as session:
        assert contents.database_properties(session, place.database) == before
    assert done.result["held_jobs"] == 1
    assert place.value("SELECT queue_name FROM procrastinate_jobs") == "held:default"

    undone = place.play("restore_undo", confirm="local", bazaruto_run_id="20261123-160000-aaaaaa")
    assert undone.returncode == 0, undone.output
    assert undone.result is not None
    assert undone.result["restored"] == kept
    assert place.value(LATE_USERS) == 1
    assert place.databases() == {place.database, f"{place.database}_before_20261123_160000_aaaaaa"}


def test_an_undo_without_a_restore_is_refused(place: Place) -> None:
    done = place.play("restore_undo", confirm="local")
    assert done.returncode == 2
    assert "There is nothing to undo" in done.words


def test_twenty_reconnecting_clients_see_old_or_new_data_and_never_neither(
    place: Place, postgres_cluster: RunningCluster
) -> None:
    live, other = place.database, f"{place.database}_restore_20261123_154142"
    with place.connect("postgres") as session:
        session.execute(f'CREATE DATABASE "{other}" TEMPLATE template0'.encode())
    for name in (live, other):
        with place.connect(name) as session:
            session.execute("CREATE TABLE marker AS SELECT current_database() AS made_as")
    stop, seen, surprises = threading.Event(), set(), []
    pauses: list[float] = []

    def client() -> None:
        answered = time.monotonic()
        while not stop.is_set():
            try:
                with psycopg.connect(place.cluster.url_of(live, "postgres"), autocommit=True) as connection:
                    while not stop.is_set():
                        row = connection.execute("SELECT made_as FROM marker").fetchone()
                        seen.add(row[0] if row else None)
                        pauses.append(time.monotonic() - answered)
                        answered = time.monotonic()
            except psycopg.OperationalError as error:
                # Ended by the swap, or at the door when the names changed; the next try must succeed.
                if not any(words in str(error) for words in EXPECTED):
                    surprises.append(str(error))

    clients = [threading.Thread(target=client) for _ in range(20)]
    for each in clients:
        each.start()
    server = Server(place.connection, "test")
    seconds = []
    try:
        wait_for(lambda: len(pauses) > 200)
        kept = f"{place.database}_before_20261123_154142"
        for _ in range(3):
            hold = swap.WriteHold(server, live, 5)
            seconds.append(swap.swap(server, live, other, kept, hold))
            seconds.append(swap.swap(server, live, kept, other, None))
    finally:
        stop.set()
        for each in clients:
            each.join()
    assert surprises == []
    assert seen == {live, other}
    assert max(seconds) < 3
    assert max(pauses) < 5


@pytest.fixture
def slow_restore(place: Place, backup: str, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A restore in a process of its own, at work between the copy and the swap."""
    changes = {"invariants": SLOW, "keep_writes": getattr(request, "param", False)}
    process = module_process.start(
        "database_restore", "database_restore", options(place, dump_of(place, backup), **changes)
    )
    new = f"{place.database}_restore_20261123_154142_3f9a1c"
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event = 'PgSleep'"
    try:
        wait_for(lambda: process.poll() is not None or place.value(statement, new, database="postgres"))
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.wait()


def test_writes_are_held_until_a_killed_restore_is_gone_and_the_next_one_removes_what_it_left(
    place: Place, backup: str, slow_restore: subprocess.Popen[str]
) -> None:
    assert place.value(TRY_TO_WRITE) is False
    with pytest.raises(Refused, match=r"another restore is already at work .bazaruto restore 20261123-154142-3f9a1c"):
        restore.replace(options(place, dump_of(place, backup)), check_mode=False)
    slow_restore.send_signal(signal.SIGKILL)
    slow_restore.wait()
    wait_for(lambda: place.value(TRY_TO_WRITE))
    left = f"{place.database}_restore_20261123_154142_3f9a1c"
    assert left in place.databases()
    again = options(place, dump_of(place, backup), run="20261123-170000")
    wait_for(lambda: restore_lock_is_free(place))
    done = restore.replace(again, check_mode=False)
    assert done["leftovers_removed"] == [left]
    assert place.databases() == {place.database, f"{place.database}_before_20261123_170000"}


def restore_lock_is_free(place: Place) -> bool:
    return bool(place.value(f"SELECT pg_try_advisory_xact_lock({swap.RESTORE_KEY})", database="postgres"))


def test_a_restore_that_is_told_to_end_removes_its_copy_and_lets_writes_go_on(
    place: Place, slow_restore: subprocess.Popen[str]
) -> None:
    slow_restore.send_signal(signal.SIGTERM)
    slow_restore.wait(20)
    assert place.databases() == {place.database}
    assert place.value(TRY_TO_WRITE) is True


@pytest.mark.parametrize("slow_restore", [True], indirect=True)
def test_with_keep_writes_the_service_may_write_meanwhile(place: Place, slow_restore: subprocess.Popen[str]) -> None:
    assert place.value(TRY_TO_WRITE) is True


def test_keep_writes_says_what_it_loses(place: Place, backup: str) -> None:
    done = place.play("restore", "--check", database_restore_backup=backup, database_restore_keep_writes=True)
    assert "what is written while the restore runs is taken, and then lost" in done.words


def test_a_writer_that_does_not_end_is_waited_for_and_then_named(place: Place, backup: str) -> None:
    with place.connect() as writer:
        writer.autocommit = False
        writer.execute(TRY_TO_WRITE.encode())
        with pytest.raises(Refused, match="goes on writing for more than 1 s"):
            restore.replace(options(place, dump_of(place, backup), hold_timeout=1), check_mode=False)
    assert place.databases() == {place.database}


@pytest.mark.parametrize("spoil", [lambda content: content[:-100], lambda content: b"", lambda content: b"hello " * 9])
def test_a_spoiled_backup_is_not_put_in_place(place: Place, backup: str, spoil: Any) -> None:
    path = dump_of(place, backup)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(Refused, match=f"{backup}.dump is not restored: .* bytes, its manifest says"):
        restore.replace(options(place, path), check_mode=False)
    assert place.databases() == {place.database}


def test_data_that_breaks_an_invariant_is_not_put_in_place(place: Place, backup: str) -> None:
    wrong = "-- name: nobody_is_called_user\nSELECT name FROM users"
    with pytest.raises(Refused, match="nobody is called user: 300 break it, such as User 1, User 10, User 100"):
        restore.replace(options(place, dump_of(place, backup), invariants=wrong), check_mode=False)
    assert place.databases() == {place.database}
    assert place.value(TRY_TO_WRITE) is True


def test_a_lost_live_database_is_made_anew(place: Place, backup: str) -> None:
    place.cluster.drop_database(place.database)
    done = place.play("restore", database_restore_backup=backup, confirm="local")
    assert done.returncode == 0, done.output
    assert done.result is not None
    assert done.result["kept"] is None
    assert place.value("SELECT count(*) FROM users") == 300
    assert (
        place.value("SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = current_database()")
        == "bazaruto"
    )


def test_replaced_databases_are_let_go_only_beyond_those_to_keep(place: Place, backup: str) -> None:
    for hour in (1, 2, 3):
        done = replacing_restore(place, backup, f"20261123-0{hour}0000", keep_previous=1)
    assert done["dropped"] == [f"{place.database}_before_20261123_010000"]
    assert done["previous"] == [f"{place.database}_before_20261123_0{hour}0000" for hour in (3, 2)]
    undone = replacing.undo({**options(place, dump_of(place, backup)), "run": "20261123-040000"}, check_mode=False)
    assert undone["restored"] == f"{place.database}_before_20261123_030000"


def replacing_restore(place: Place, backup: str, run: str, **changes: Any) -> dict[str, Any]:
    done: dict[str, Any] = restore.replace(options(place, dump_of(place, backup), run=run, **changes), check_mode=False)
    return done


def test_functions_of_the_restored_database_are_not_called_with_a_superusers_rights(place: Place) -> None:
    with place.connect() as session:
        session.execute(
            "CREATE OR REPLACE FUNCTION hold_jobs() RETURNS bigint LANGUAGE plpgsql AS "
            "$$ BEGIN CREATE ROLE intruder; RETURN 0; END $$"
        )
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        replacing.hold_jobs(Server(place.connection, "test"), place.database)


def test_missing_roles_are_named_with_what_to_type(place: Place, backup: str) -> None:
    manifest = json.loads((place.storage / f"{backup}.json").read_text())
    manifest["roles"] = ["bazaruto", "nobody_here"]
    (place.storage / f"{backup}.json").write_text(json.dumps(manifest))
    with pytest.raises(Refused, match=r"roles that this cluster lacks \(nobody_here\).*roles\.sql"):
        restore.replace(options(place, dump_of(place, backup)), check_mode=False)


@pytest.fixture
def archive(place: Place) -> Path:
    """What the guide's script makes of the database."""
    server = place.connection
    argv = [place.cluster.bin_directory / "pg_dump", "-h", server["host"], "-U", "postgres", "-d", place.database]
    done = subprocess.run(argv, env={"PGPASSFILE": server["passfile"]}, capture_output=True, check=True)
    path = place.storage / "bazaruto_20240115_103000.sql.gz"
    path.write_bytes(gzip.compress(done.stdout))
    return path


def test_an_archive_of_the_guide_is_imported_into_an_empty_database(place: Place, archive: Path) -> None:
    place.value(ADD_USER)
    done = place.play("restore", database_restore_backup=archive.name, confirm="local")
    assert done.returncode == 0, done.output
    assert done.result is not None
    assert (done.result["level"], done.result["rows"]["users"]) == ("restored", 300)
    assert place.value(LATE_USERS) == 0
    assert place.value("SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname = 'users'") == "bazaruto"


def test_an_archive_that_fails_half_way_changes_nothing(place: Place, archive: Path) -> None:
    script = gzip.decompress(archive.read_bytes()).replace(b"\n\\unrestrict", b"\nSELECT 1/0;\n\\unrestrict")
    archive.write_bytes(gzip.compress(script))
    with pytest.raises(Refused, match=r"could not be restored: psql ended with 3: .*division by zero"):
        restore.replace(options(place, archive), check_mode=False)
    assert place.databases() == {place.database}


def test_prepared_transactions_are_refused_beforehand(
    place: Place, backup: str, tmp_path_factory: pytest.TempPathFactory, postgres_cluster: RunningCluster
) -> None:
    directory = postgres_cluster.cluster.directory.parent / "prepared"
    cluster = embedded.Cluster(
        directory=directory,
        socket_directory=directory.parent / "prepared-socket",
        passfile=directory.parent / "prepared-pgpass",
        log_path=directory.parent / "prepared.out",
        user=postgres_cluster.cluster.user,
        settings={**SETTINGS, "max_prepared_transactions": "1", "max_connections": "20"},
    )
    embedded.create_cluster(cluster)
    embedded.start_cluster(cluster)
    try:
        embedded.ensure_role(cluster, "bazaruto", place.database)
        with psycopg.connect(cluster.url(database=place.database), autocommit=True) as session:
            session.execute("BEGIN")
            session.execute("CREATE TABLE waits ()")
            session.execute("PREPARE TRANSACTION 'two phases'")
        connection = {**place.connection, "host": str(cluster.socket_directory), "passfile": str(cluster.passfile)}
        with pytest.raises(Refused, match=r"has prepared transactions \(two phases\): COMMIT PREPARED or"):
            restore.replace(options(place, dump_of(place, backup), connection=connection), check_mode=False)
    finally:
        embedded.stop_cluster(cluster)
