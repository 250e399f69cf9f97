"""`bazarutod` on the command line: demo data, users, settings, and what goes wrong said in one sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Client, Installation

TABLES = ("users", "policies", "claims", "claim_history")


def _fingerprint(site: Installation) -> dict[str, str]:
    found = {}
    for table in TABLES:
        order = "number" if table in {"policies", "claims"} else "id"
        hidden = " - 'password_hash'" if table == "users" else " - 'id'" if table == "claim_history" else ""
        if table == "claim_history":
            order = "claim_id, created_at"
        rows = site.rows(f"SELECT (to_jsonb({table}){hidden})::text AS row FROM {table} ORDER BY {order}")
        found[table] = f"{len(rows)} {hashlib.sha256(repr(rows).encode()).hexdigest()}"
    return found


def test_demo_data_is_enough_the_same_each_time_and_made_once(install: Callable[..., Installation]) -> None:
    one, other = install(), install()
    for site in (one, other):
        done = site.bazarutod("demo")
        assert done.returncode == 0, done.stderr
    assert _fingerprint(one) == _fingerprint(other)
    counted = {table: one.one(f"SELECT count(*) AS n FROM {table}")["n"] for table in TABLES}
    assert counted["users"] >= 1000
    assert counted["policies"] >= 2000
    assert counted["claims"] >= 3000
    assert counted["claim_history"] > counted["claims"]
    assert one.one("SELECT count(*) AS n FROM users WHERE password_hash IS NOT NULL")["n"] == 3
    statuses = one.rows("SELECT status, count(*) AS n, min(ends_on)::text AS ends FROM policies GROUP BY status")
    assert {row["status"] for row in statuses if row["n"] > 50} == {"draft", "active", "lapsed", "canceled"}
    assert next(row["ends"] for row in statuses if row["status"] == "active") > "2035"  # or a worker lapses them
    assert one.one("SELECT count(*) AS n FROM claims WHERE status = 'submitted'")["n"] == 0
    password_file = one.home / "secrets" / "demo-password"
    assert password_file.stat().st_mode & 0o777 == 0o600
    before = _fingerprint(one), password_file.read_text()
    again = one.bazarutod("demo")
    assert "nothing was changed" in again.stdout
    assert (_fingerprint(one), password_file.read_text()) == before
    client = one.serve()
    for role in ("admin", "agent", "customer"):
        logged_in = client.login(f"{role}@bazaruto.example", password_file.read_text().strip())
        assert logged_in.get("/v1/users/me").json()["role"] == role
    assert logged_in.get("/v1/policies").json()["items"]
    one.rows(
        "INSERT INTO policies (user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on)"
        " SELECT id, 'home', 2, 1, 'EUR', '2025-01-01', '2025-12-31' FROM users LIMIT 1"
    )
    assert one.one("SELECT max(number) AS number FROM policies")["number"] == "POL-0000002401"


def test_demo_data_never_joins_other_data(install: Callable[..., Installation]) -> None:
    site = install()
    site.add_user("customer")
    done = site.bazarutod("demo")
    assert done.returncode == 1
    assert "use an empty database" in done.stderr
    assert site.one("SELECT count(*) AS n FROM users")["n"] == 1


@pytest.mark.parametrize("command", [["serve"], ["worker"], ["jobs", "release"]])
def test_wrong_settings_are_refused_all_at_once_each_by_name(shared: Installation, command: list[str]) -> None:
    done = shared.bazarutod(
        *command, BAZARUTO_SERVER_READ_TIMEOUT="soon", BAZARUTO_DB_MAX_CONNECTIONS="0", BAZARUTO_COLOUR="red"
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 3
    for name in ("read_timeout", "max_connections", "BAZARUTO_COLOUR"):
        assert name in done.stderr


def test_a_missing_database_is_one_sentence(shared: Installation, tmp_path: Path) -> None:
    nowhere = {
        "BAZARUTO_DATABASE_URL": f"postgresql://bazaruto@/x?host={tmp_path}",
        "BAZARUTO_DB_ACQUIRE_TIMEOUT": "1s",
    }
    for command in (["migrate"], ["migrate", "--check"], ["demo"]):
        done = shared.bazarutod(*command, **nowhere)
        assert done.returncode == 1, command
        assert "the database cannot be used" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    unset = shared.bazarutod("migrate", BAZARUTO_DATABASE_URL="")
    assert (unset.returncode, "database_url" in unset.stderr) == (2, True)


def test_a_taken_port_is_one_sentence(shared: Installation, nobody: Client) -> None:
    port = nobody.url.rpartition(":")[2]
    done = shared.bazarutod("serve", BAZARUTO_SERVICE_PORT=port)
    assert done.returncode == 1
    assert f"port {port} cannot be listened on" in done.stderr


def test_users_are_added_with_the_password_from_standard_input(shared: Installation, nobody: Client) -> None:
    email = "by.hand@example.com"
    done = shared.bazarutod(
        "users", "add", email, "--name", "By hand", "--role", "agent", stdin="another good password\n"
    )
    assert done.returncode == 0, done.stderr
    assert nobody.login(email, "another good password").get("/v1/users/me").json()["role"] == "agent"
    again = shared.bazarutod("users", "add", email.upper(), "--name", "x", stdin="another good password\n")
    assert (again.returncode, "Another user has this e-mail" in again.stderr) == (1, True)
    wrong = shared.bazarutod("users", "add", "nothing", "--name", "x", stdin="short\n")
    assert wrong.returncode == 1
    assert "email" in wrong.stderr
    assert "password" in wrong.stderr
    assert "short" not in wrong.stderr


def test_the_version_is_told(shared: Installation) -> None:
    from bazaruto import __version__

    done: Any = shared.bazarutod("version")
    assert done.stdout == f"{__version__}\n"


def test_a_settings_file_is_checked_without_what_this_machine_has(shared: Installation, tmp_path: Path) -> None:
    file = tmp_path / "bazarutod.yml"
    file.write_text("database_url: postgresql://bazaruto@db1/bazaruto\nserver:\n  read_timeout: 20s\n")
    assert shared.bazarutod("settings", "check", str(file)).returncode == 0
    file.write_text("server:\n  read_timeout: soon\n  colour: red\n")
    done = shared.bazarutod("settings", "check", str(file))
    assert done.returncode == 2
    assert "server.read_timeout" in done.stderr
    assert "server.colour" in done.stderr
    file.write_text("service_port: 8080\n")
    assert "database_url is not set" in shared.bazarutod("settings", "check", str(file)).stderr
