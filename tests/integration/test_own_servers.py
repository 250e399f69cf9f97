"""Servers of one's own: the settings name them, `up` says what they lack and keeps their passwords out of sight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from bazaruto import config
from bazaruto.control.local import servers
from bazaruto.control.local.home import Home, make_directories
from bazaruto.control.local.servers import OwnServerError

from .conftest import RunningCluster, RunningRedis

PASSWORD = "pass:word\\with@everything"


@pytest.fixture
def own_database(postgres_cluster: RunningCluster) -> Iterator[dict[str, str]]:
    """A database whose owner may create others, as the parts of a URL."""
    with psycopg.connect(postgres_cluster.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE own LOGIN CREATEDB PASSWORD {}").format(sql.Literal(PASSWORD)))
        connection.execute("CREATE DATABASE own OWNER own")
        host = quote(str(postgres_cluster.cluster.socket_directory), safe="")
        yield {"user": "own", "password": quote(PASSWORD, safe=""), "host": host, "database": "own"}
        connection.execute("DROP DATABASE own")
        connection.execute("DROP ROLE own")


def url(parts: dict[str, str]) -> str:
    return "postgresql://{user}:{password}@{host}:5432/{database}".format(**parts)


def coordinates(home: Path, **settings: str) -> dict[str, object]:
    """What `up` would write to local.json; nothing embedded is started."""
    environment = {
        "BAZARUTO_HOME": str(home),
        **{f"BAZARUTO_{name.upper()}": value for name, value in settings.items()},
    }
    loaded = config.load(environment, local=False)
    make_directories(Home(loaded.home))
    return servers.coordinates(servers.choose(loaded, Home(loaded.home)), loaded)


def test_named_servers_are_used_and_not_embedded(
    own_database: dict[str, str], redis_server: RunningRedis, home: Path
) -> None:
    own = url(own_database)
    found = coordinates(home, database_url=own, control_database_url=own, redis_url=redis_server.url)
    assert found["redis_url"] == redis_server.url
    assert not (home / "postgresql" / "service").exists()
    service = found["service"]
    assert isinstance(service, dict)
    assert (service["user"], service["database"], service["port"]) == ("own", "own", 5432)
    with psycopg.connect(service["database_url"]) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("own",)


def test_their_passwords_go_into_closed_files_only(
    own_database: dict[str, str], redis_server: RunningRedis, home: Path
) -> None:
    own = url(own_database)
    found = coordinates(home, database_url=own, control_database_url=own, redis_url=redis_server.url)
    assert PASSWORD not in str(found)
    assert own_database["password"] not in str(found)
    for name in ("postgres.pgpass", "control.pgpass"):
        passfile = home / "secrets" / name
        assert passfile.stat().st_mode & 0o777 == 0o600
        assert "pass\\:word\\\\with@everything" in passfile.read_text()


@pytest.mark.parametrize("setting", ["database_url", "control_database_url"])
@pytest.mark.parametrize(
    "change", [{"password": "wrong"}, {"database": "missing"}, {"host": "%2Fno%2Fsuch%2Fdirectory"}]
)
def test_a_server_that_cannot_be_reached_is_named_by_its_setting(
    own_database: dict[str, str], redis_server: RunningRedis, home: Path, setting: str, change: dict[str, str]
) -> None:
    own = url(own_database)
    settings = {"database_url": own, "control_database_url": own, "redis_url": redis_server.url}
    settings[setting] = url({**own_database, **change})
    with pytest.raises(OwnServerError, match=f"^BAZARUTO_{setting.upper()} cannot be used: ") as refused:
        coordinates(home, **settings)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("statement", "lacks"),
    [
        ("ALTER ROLE own NOCREATEDB", "ALTER ROLE own CREATEDB"),
        ("ALTER SCHEMA public OWNER TO postgres", "GRANT CREATE ON SCHEMA public TO own"),
    ],
)
def test_what_the_role_may_not_is_said_with_the_statement_that_grants_it(
    postgres_cluster: RunningCluster, own_database: dict[str, str], home: Path, statement: str, lacks: str
) -> None:
    with psycopg.connect(postgres_cluster.url_of("own", "postgres"), autocommit=True) as connection:
        connection.execute(statement.encode())
    own = url(own_database)
    with pytest.raises(OwnServerError, match=lacks):
        coordinates(home, database_url=own, control_database_url=own, redis_url="unix:///never/reached.sock")


@pytest.mark.parametrize("wrong", ["unix:///no/such.sock", "redis://127.0.0.1:1"])
def test_a_redis_that_cannot_be_reached_is_named_by_its_setting(
    own_database: dict[str, str], home: Path, wrong: str
) -> None:
    own = url(own_database)
    with pytest.raises(OwnServerError, match=r"^BAZARUTO_REDIS_URL cannot be used: "):
        coordinates(home, database_url=own, control_database_url=own, redis_url=wrong)
