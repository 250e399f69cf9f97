"""PostgreSQL as the service, its migrations and its watchers use it, and what it refuses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import errors

from bazaruto import database
from bazaruto.service import monitoring
from tests.lab.host import Host
from tests.lab.waiting import until

from .conftest import check_tells_the_truth, converge, files_with

Connect = Callable[..., psycopg.Connection[Any]]
PASSWORDS = {
    "bazaruto": "database_application_password",
    "bazaruto_owner": "database_owner_password",
    "bazaruto_backup": "database_backup_password",
    "bazaruto_monitoring": "database_monitoring_password",
}
SECRETS_OF_OTHERS = "SELECT rolpassword FROM pg_authid"


@pytest.fixture(scope="module")
def db(host: Callable[[str], Host]) -> Host:
    return host("db1")


@pytest.fixture(scope="module")
def connect(network: dict[str, Any], passwords: dict[str, str]) -> Connect:
    """As a role of the site, to the database of the service if no other is named."""

    def connected(role: str, **changes: Any) -> psycopg.Connection[Any]:
        normal = {"host": network["hosts"]["db1"]["address"], "dbname": "bazaruto", "sslmode": "require"}
        normal |= {"user": role, "password": passwords[PASSWORDS[role]], "channel_binding": "require"}
        return psycopg.connect(**{**normal, **changes}, autocommit=True, connect_timeout=5)

    return connected


@pytest.fixture(scope="module")
def migrated(connect: Connect) -> list[str]:
    """What the owner's migrations are; they were applied."""
    with connect("bazaruto_owner") as owner:
        url = owner.info.dsn + f" password={owner.info.password}"
    database.migrate(url, monitoring.MIGRATIONS)
    return sorted(path.stem for path in monitoring.MIGRATIONS.glob("*.sql"))


def sql(db: Host, statement: str) -> str:
    """What the superuser is answered."""
    return db.run(f'cd /; sudo -u postgres psql -XAtc "{statement}"').stdout.strip()


def refused(connection: psycopg.Connection[Any], statement: bytes) -> bool:
    """Whether the role lacks the right to it."""
    try:
        connection.execute(statement)
    except errors.InsufficientPrivilege:
        return True
    return False


def test_the_application_uses_what_the_owner_migrates_and_knows_that_it_is_ready(
    connect: Connect, migrated: list[str]
) -> None:
    with connect("bazaruto") as application:
        assert database.pending_on(application, monitoring.MIGRATIONS) == []
        with application.transaction(force_rollback=True):
            application.execute("INSERT INTO users (email, name) VALUES ('a@example.org', 'Ana')")
            application.execute("UPDATE users SET name = 'Ana B' WHERE email = 'a@example.org'")
            application.execute("SELECT nextval('policy_numbers')")
            application.execute("INSERT INTO procrastinate_jobs (queue_name, task_name) VALUES ('q', 't')")
            application.execute("DELETE FROM users WHERE email = 'a@example.org'")
    assert migrated


@pytest.mark.parametrize(
    "statement",
    [
        *(b"DROP TABLE users", b"TRUNCATE users CASCADE", b"ALTER TABLE users ADD planted int"),
        *(b"CREATE TABLE planted (a int)", b"CREATE SCHEMA planted", b"CREATE TEMPORARY TABLE planted (a int)"),
        *(b"SELECT FROM _yoyo_migration", b"DELETE FROM _yoyo_migration", b"SELECT FROM yoyo_lock"),
        *(SECRETS_OF_OTHERS.encode(), b"SET ROLE bazaruto_owner", b"ALTER ROLE bazaruto CREATEDB"),
        *(b"CREATE DATABASE planted", b"DROP DATABASE bazaruto", b"COPY (SELECT 1) TO PROGRAM 'true'"),
        *(b"SELECT pg_read_file('/etc/passwd')", b"DROP FUNCTION applied_migrations()", b"CREATE EXTENSION hstore"),
    ],
    ids=bytes.decode,
)
def test_the_application_may_do_no_more(connect: Connect, migrated: list[str], statement: bytes) -> None:
    assert migrated
    with connect("bazaruto") as application:
        assert refused(application, statement)


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("bazaruto", {"dbname": "postgres"}),
        ("bazaruto", {"dbname": "template1"}),
        ("bazaruto", {"dbname": "notes"}),
        ("bazaruto", {"sslmode": "disable", "channel_binding": "disable"}),
        ("bazaruto", {"user": "postgres"}),
        ("bazaruto", {"user": "debian", "dbname": "notes"}),
        ("bazaruto_monitoring", {}),
    ],
)
def test_who_was_not_named_so_does_not_come_in(connect: Connect, role: str, changes: dict[str, str]) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        connect(role, **changes)


def test_a_wrong_password_is_refused(connect: Connect) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect("bazaruto", password="wrong")


def test_no_role_can_connect_elsewhere_even_where_a_line_would_let_it(db: Host) -> None:
    can = "SELECT bool_or(has_database_privilege('bazaruto', datname, 'CONNECT')) FROM pg_database WHERE datallowconn"
    assert sql(db, f"{can} AND datname <> 'bazaruto'") == "f"
    assert sql(db, f"{can} AND datname = 'bazaruto'") == "t"


def test_backup_reads_everything_and_writes_nothing(connect: Connect, migrated: list[str]) -> None:
    assert migrated
    with connect("bazaruto_backup") as backup:
        backup.execute("SELECT count(*) FROM users")
        assert refused(backup, b"DELETE FROM users")


def test_monitoring_reads_figures_and_no_rows(connect: Connect) -> None:
    with connect("bazaruto_monitoring", dbname="postgres") as watcher:
        watcher.execute("SELECT count(*) FROM pg_stat_activity")
        watcher.execute("SELECT pg_database_size('bazaruto')")
        assert refused(watcher, SECRETS_OF_OTHERS.encode())
        assert refused(watcher, b"SELECT pg_reload_conf()")


def test_a_peer_comes_in_without_a_password_to_its_own_database_only(db: Host) -> None:
    assert db.run("sudo -u debian psql -XAtc 'SELECT current_user' notes").stdout.strip() == "debian"
    assert db.run("sudo -u debian psql -XAtc 'SELECT 1' bazaruto", check=False).returncode == 2
    assert db.run("sudo -u nobody psql -XAtc 'SELECT 1' notes", check=False).returncode == 2


def test_it_has_the_guides_settings_and_nothing_trusts(db: Host) -> None:
    wanted = {"max_connections": "100", "shared_buffers": "64MB", "effective_cache_size": "1GB", "work_mem": "4MB"}
    wanted |= {"maintenance_work_mem": "64MB", "client_connection_check_interval": "1s", "ssl": "on"}
    wanted |= {"password_encryption": "scram-sha-256", "data_checksums": "on", "server_encoding": "UTF8"}
    assert {name: sql(db, f"SHOW {name}") for name in wanted} == wanted
    assert sql(db, "SELECT DISTINCT auth_method FROM pg_hba_file_rules ORDER BY 1").split() == ["peer", "scram-sha-256"]
    assert sql(db, "SELECT count(*) > 0 FROM pg_stat_statements") == "t"


def test_no_password_is_kept_by_the_log_or_the_statistics(db: Host, passwords: dict[str, str]) -> None:
    for name in PASSWORDS.values():
        assert files_with(db, passwords[name]) == ""
        pattern = f"[{passwords[name][0]}]{passwords[name][1:]}"
        assert sql(db, f"SELECT count(*) FROM pg_stat_statements WHERE query ~ '{pattern}'") == "0"


def test_check_mode_tells_the_truth(db: Host) -> None:
    changed = check_tells_the_truth(
        "postgresql",
        db,
        [
            "echo 'host all all 0.0.0.0/0 trust' >> /etc/postgresql/15/main/pg_hba.conf",
            "echo 'work_mem = 1GB' >> /etc/postgresql/15/main/conf.d/50-site.conf",
            "sudo -u postgres psql -qc 'ALTER ROLE bazaruto CREATEDB'",
            "sudo -u postgres psql -qc 'GRANT CONNECT ON DATABASE bazaruto TO PUBLIC'",
            "sudo -u postgres psql -qc 'REVOKE pg_monitor FROM bazaruto_monitoring'",
            "sudo -u postgres psql -qc 'DROP EXTENSION pg_stat_statements' bazaruto",
            "sudo -u postgres psql -qc 'GRANT pg_read_all_data TO bazaruto_monitoring'",
            "sudo -u postgres psql -qc 'ALTER DEFAULT PRIVILEGES FOR ROLE bazaruto_owner IN SCHEMA public"
            " REVOKE ALL ON TABLES FROM bazaruto' bazaruto",
        ],
    )
    assert changed == {
        "Write the settings",
        "Write who may come in",
        "Reload it",
        "Make the roles",
        "Make members of predefined roles of those that need it",
        "Make their extensions",
        "Let nobody connect who was not named",
        "Let applications use what the owner will make, and no more",
    }


def test_check_mode_predicts_that_a_stopped_server_is_started(db: Host) -> None:
    assert check_tells_the_truth("postgresql", db, ["systemctl stop postgresql@15-main"]) == {"Start the cluster"}


def test_a_setting_that_takes_a_restart_waits_until_one_is_allowed(db: Host) -> None:
    started = sql(db, "SELECT pg_postmaster_start_time()")
    waits = converge("postgresql", "-e", "postgresql_shared_buffers_mb=48")
    assert waits.rc == 0, waits
    assert "shared_buffers on db1 waits for a restart" in waits.said
    assert (sql(db, "SHOW shared_buffers"), sql(db, "SELECT pg_postmaster_start_time()")) == ("64MB", started)
    done = converge("postgresql", "-e", "postgresql_shared_buffers_mb=48", "-e", '{"postgresql_restart_allowed": true}')
    assert done.rc == 0, done
    assert sql(db, "SHOW shared_buffers") == "48MB"
    assert converge("postgresql", "-e", '{"postgresql_restart_allowed": true}').rc == 0
    assert sql(db, "SHOW shared_buffers") == "64MB"


def test_settings_that_postgresql_would_not_take_never_reach_it(db: Host) -> None:
    before = db.run("sha256sum /etc/postgresql/15/main/conf.d/50-site.conf").stdout
    wrong = converge("postgresql", "-e", '{"postgresql_settings": {"wal_level": "nonsense"}}')
    assert wrong.rc == 2
    assert "wal_level" in wrong.failed["db1"]
    assert db.run("sha256sum /etc/postgresql/15/main/conf.d/50-site.conf").stdout == before
    db.run("sudo -u postgres psql -qc \"ALTER SYSTEM SET work_mem = '1GB'\"")
    beaten = converge("postgresql")
    assert "ALTER SYSTEM RESET work_mem" in beaten.failed["db1"]
    db.run("sudo -u postgres psql -qc 'ALTER SYSTEM RESET work_mem'")


def test_variables_that_contradict_each_other_are_refused_by_name_before_anything_is_touched() -> None:
    access = '{"postgresql_access": [{"database": "bazaruto", "role": "nobody", "from": ["10.0.0.1"]}]}'
    wrong = converge("postgresql", "-e", access)
    assert (wrong.rc, wrong.changed) == (2, frozenset())
    assert "nobody is used in postgresql_databases or postgresql_access" in wrong.failed["db1"]


def test_it_comes_back_after_a_reboot(db: Host) -> None:
    db.stop()
    db.start()
    up = "systemctl is-active postgresql@15-main"
    until(lambda: db.run(up, check=False).returncode == 0, 30, "PostgreSQL did not come back")
