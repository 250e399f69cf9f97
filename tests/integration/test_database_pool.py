"""The pool survives what happens to PostgreSQL, and its settings do what they say."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from bazaruto import database
from bazaruto.config import DatabaseSettings

from .conftest import RunningCluster
from .serving import wait_for


@contextlib.contextmanager
def pooled(url: str, **settings: Any) -> Iterator[database.Pool]:
    """A pool with these settings, filled."""
    pool = database.open_pool(url, DatabaseSettings(**{"min_connections": 2, **settings}), "test-pool")
    try:
        pool.wait(10)
        yield pool
    finally:
        pool.close()


def one(pool: database.Pool) -> object:
    """The simplest use."""
    with pool.connection() as connection:
        row = connection.execute("SELECT 1 AS one").fetchone()
    return row and row["one"]


def sessions(cluster: RunningCluster) -> int:
    """How many connections of the pool the server has."""
    with psycopg.connect(cluster.url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test-pool'"
        row = connection.execute(query).fetchone()
    return row[0] if row else 0


@pytest.mark.parametrize("first_signal", [signal.SIGINT, signal.SIGKILL], ids=["restart", "crash"])
def test_the_first_use_after_the_server_came_back_does_not_fail(
    postgres_cluster: RunningCluster, database_url: str, first_signal: signal.Signals
) -> None:
    with pooled(database_url, min_connections=4) as pool:
        assert one(pool) == 1
        postgres_cluster.restart(first_signal)
        assert [one(pool) for _ in range(8)] == [1] * 8


def test_a_use_costs_no_round_trip_to_check_the_connection(database_url: str) -> None:
    with pooled(database_url, min_connections=1, max_connections=1) as pool:
        checks = []
        real = database.ConnectionPool.check_connection
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                database.ConnectionPool, "check_connection", staticmethod(lambda c: (checks.append(c), real(c))[1])
            )
            assert [one(pool) for _ in range(20)] == [1] * 20
            assert checks == []
            patch.setattr(database, "UNTRUSTED_AFTER_SECONDS", -1.0)
            assert one(pool) == 1
            assert len(checks) == 1


def test_max_connections_is_the_pool_and_who_waits_too_long_is_told(
    postgres_cluster: RunningCluster, database_url: str
) -> None:
    with (
        pooled(database_url, max_connections=3, acquire_timeout=0.3) as pool,
        pool.connection(),
        pool.connection(),
        pool.connection(),
    ):
        assert pool.in_use == 3
        started = time.monotonic()
        with pytest.raises(PoolTimeout):
            one(pool)
        assert 0.2 < time.monotonic() - started < 2
        assert sessions(postgres_cluster) == 3
    assert pool.in_use == 0


def test_min_connections_are_open_before_anybody_asks(postgres_cluster: RunningCluster, database_url: str) -> None:
    with pooled(database_url, min_connections=4):
        assert sessions(postgres_cluster) == 4


def test_connections_above_the_minimum_are_closed_after_idle_timeout(
    postgres_cluster: RunningCluster, database_url: str
) -> None:
    with pooled(database_url, min_connections=1, max_connections=3, idle_timeout=0.5) as pool:
        with pool.connection(), pool.connection(), pool.connection():
            assert sessions(postgres_cluster) == 3
        wait_for(lambda: sessions(postgres_cluster) == 1, 8)


def test_connections_are_replaced_after_max_lifetime(database_url: str) -> None:
    def backend(pool: database.Pool) -> object:
        with pool.connection() as connection:
            return connection.info.backend_pid

    with pooled(database_url, min_connections=1, max_connections=1, max_lifetime=0.5) as pool:
        first = backend(pool)
        assert backend(pool) == first
        wait_for(lambda: backend(pool) != first, 5)


def test_statement_timeout_ends_a_statement_in_the_server(database_url: str) -> None:
    with pooled(database_url, statement_timeout=0.3) as pool:
        started = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled), pool.connection() as connection:
            connection.execute("SELECT pg_sleep(10)")
        assert time.monotonic() - started < 2
        assert one(pool) == 1


def test_a_frozen_server_is_given_up_and_the_pool_recovers(
    postgres_cluster: RunningCluster, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ANSWER_GRACE_SECONDS", 0.3)
    with pooled(database_url, statement_timeout=0.5) as pool:
        with postgres_cluster.frozen():
            started = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match="did not answer"):
                one(pool)
            assert time.monotonic() - started < 4
        wait_for(lambda: one(pool) == 1)


def test_a_pool_opens_without_a_server_and_serves_as_soon_as_there_is_one(
    postgres_cluster: RunningCluster, database_url: str
) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    postgres_cluster.drop_database(name)
    pool = database.open_pool(database_url, DatabaseSettings(min_connections=1, acquire_timeout=0.5), "test-pool")
    try:
        with pytest.raises(PoolTimeout):
            one(pool)
        with psycopg.connect(postgres_cluster.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" OWNER bazaruto'.encode())

        def served() -> bool:
            with contextlib.suppress(PoolTimeout):
                return one(pool) == 1
            return False

        wait_for(served, 10)
    finally:
        pool.close()


def test_rows_are_dicts_and_times_are_utc(database_url: str) -> None:
    with pooled(database_url) as pool, pool.connection() as connection:
        row = connection.execute("SELECT now() AS at, current_setting('TimeZone') AS zone").fetchone()
        assert row is not None
        assert (str(row["at"].tzinfo), row["zone"]) == ("UTC", "UTC")


def test_writes_are_refused_while_they_are_held_and_reads_are_not(database_url: str) -> None:
    with pooled(database_url) as pool, psycopg.connect(database_url, autocommit=True) as holder:
        with database.write(pool) as connection:
            connection.execute("CREATE TABLE things (name text)")
        holder.execute("SELECT pg_advisory_lock(%s)", [database.WRITE_HOLD_KEY])
        with pytest.raises(database.WritesHeld), database.write(pool) as connection:
            connection.execute("INSERT INTO things VALUES ('lost')")
        assert one(pool) == 1
        holder.execute("SELECT pg_advisory_unlock(%s)", [database.WRITE_HOLD_KEY])
        with database.write(pool) as connection:
            connection.execute("INSERT INTO things VALUES ('kept')")
            assert connection.execute("SELECT name FROM things").fetchall() == [{"name": "kept"}]


def test_a_failing_write_leaves_nothing(database_url: str) -> None:
    with pooled(database_url) as pool:
        with database.write(pool) as connection:
            connection.execute("CREATE TABLE things (name text)")
        with pytest.raises(psycopg.errors.DivisionByZero), database.write(pool) as connection:
            connection.execute("INSERT INTO things VALUES ('lost'), ((1 / 0)::text)")
        with pool.connection() as connection:
            assert connection.execute("SELECT * FROM things").fetchall() == []


def test_a_health_probe_needs_no_free_connection_of_the_pool(database_url: str) -> None:
    probe = database.probe(database_url, "test-health")
    with pooled(database_url, min_connections=1, max_connections=1) as pool, pool.connection():
        probe()


def test_a_health_probe_survives_a_restart(postgres_cluster: RunningCluster, database_url: str) -> None:
    probe = database.probe(database_url, "test-health")
    probe()
    postgres_cluster.restart()
    probe()


def test_migrations_are_applied_once_in_order_and_pending_says_what_is_missing(
    database_url: str, tmp_path: Path
) -> None:
    _write_migrations(tmp_path)
    assert database.pending(database_url, tmp_path) == ["0001_first", "0002_second"]
    assert database.migrate(database_url, tmp_path) == ["0001_first", "0002_second"]
    assert database.pending(database_url, tmp_path) == []
    assert database.migrate(database_url, tmp_path) == []
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT things_named(':x %s ''a''')").fetchone() == (1,)


def test_who_is_given_all_tables_by_default_can_ask_what_was_applied_and_not_touch_the_record(
    database_url: str, tmp_path: Path
) -> None:
    _write_migrations(tmp_path)
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
        database.migrate(database_url, tmp_path)
        rights = owner.execute(
            """
            SELECT has_table_privilege('pg_monitor', 'things', 'SELECT'),
                   has_table_privilege('pg_monitor', '_yoyo_migration', 'SELECT, INSERT, UPDATE, DELETE'),
                   has_table_privilege('pg_monitor', 'yoyo_lock', 'SELECT, INSERT, UPDATE, DELETE'),
                   has_function_privilege('pg_monitor', 'applied_migrations()', 'EXECUTE')
            """
        ).fetchone()
        assert rights == (True, False, False, True)
        assert owner.execute("SELECT applied_migrations()").fetchall() == [("0001_first",), ("0002_second",)]


def test_pending_changes_nothing(database_url: str, tmp_path: Path) -> None:
    _write_migrations(tmp_path)
    database.pending(database_url, tmp_path)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


def test_a_failing_migration_is_rolled_back_named_and_can_be_mended(database_url: str, tmp_path: Path) -> None:
    _write_migrations(tmp_path)
    second = tmp_path / "0002_second.sql"
    good = second.read_text()
    second.write_text("CREATE TABLE half (id int); SELECT no_such_function();")
    with pytest.raises(database.MigrationFailed, match="0002_second"):
        database.migrate(database_url, tmp_path)
    assert database.pending(database_url, tmp_path) == ["0002_second"]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)
    second.write_text(good)
    assert database.migrate(database_url, tmp_path) == ["0002_second"]


def test_processes_that_migrate_at_the_same_time_apply_each_migration_once(database_url: str, tmp_path: Path) -> None:
    _write_migrations(tmp_path)
    applied: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(database.migrate(database_url, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], [], [], ["0001_first", "0002_second"]]


def test_a_lock_row_that_a_killed_migration_left_stops_nobody(database_url: str, tmp_path: Path) -> None:
    _write_migrations(tmp_path)
    database.migrate(database_url, tmp_path)
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    (tmp_path / "0003_third.sql").write_text("CREATE TABLE third ();")
    assert database.migrate(database_url, tmp_path) == ["0003_third"]


def test_statements_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sqlpackage").mkdir()
    (tmp_path / "sqlpackage" / "__init__.py").touch()
    (tmp_path / "sqlpackage" / "things.sql").write_text(
        "-- name: find_thing: by its name\nSELECT *\nFROM things;\n\n"
        "-- name: count_things\nSELECT count(*) FROM things;\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = database.statements("sqlpackage", "things.sql")
    assert found.find_thing == "SELECT *\nFROM things"
    assert found.count_things == "SELECT count(*) FROM things"
    with pytest.raises(AttributeError, match="no statement named 'other'"):
        _ = found.other


def _write_migrations(directory: Path) -> None:
    (directory / "0001_first.sql").write_text("CREATE TABLE things (name text NOT NULL);\n")
    (directory / "0002_second.sql").write_text(
        """
INSERT INTO things VALUES (':x %s ''a''');  -- what a driver might take for a parameter; and a semicolon
CREATE FUNCTION things_named(wanted text) RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE found bigint;
BEGIN
    SELECT count(*)::bigint INTO found FROM things WHERE name = wanted;
    RETURN found;
END;
$body$;
"""
    )
