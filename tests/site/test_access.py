"""Who may reach and do what: the world, one host of the site another, the service its database."""

from __future__ import annotations

import json
import shlex
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import plan

from .conftest import Site

SECONDS = 1.0  # for a connection on this machine; what is dropped never answers
# On a host: which of HOST:PORT … take a connection.
REACHABLE = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def takes(place):
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
places = sys.argv[1:]
with ThreadPoolExecutor(64) as pool:
    print(*(place for place, took in zip(places, pool.map(takes, places)) if took))
"""
# On an application host, with the service's own settings: what its database answers to each statement.
ASK = """
import json, sys
import psycopg
from bazaruto import config
changes, statements = json.loads(sys.argv[1])
answers = []
for statement in statements:
    try:
        with psycopg.connect(config.load(local=False).database_url, connect_timeout=5, **changes) as connection:
            connection.execute(statement)
            connection.rollback()
        answers.append("ok")
    except psycopg.Error as error:
        answers.append(error.sqlstate or str(error))
print(json.dumps(answers))
"""


def listening(site: Site, name: str) -> list[int]:
    """The ports on which anything listens there, on whatever address."""
    said = site.run(name, "ss -Hltn")
    return sorted({int(line.split()[3].rpartition(":")[2]) for line in said.splitlines()})


@pytest.fixture(scope="module")
def ports(site: Site) -> dict[str, list[int]]:
    return {name: listening(site, name) for name in plan.HOSTS}


def test_the_world_reaches_http_and_https_of_the_edge_and_nothing_else(site: Site, ports: dict[str, list[int]]) -> None:
    def takes(place: tuple[str, int]) -> bool:
        try:
            address = (site.host(place[0]).address, place[1])
            socket.create_connection(address, SECONDS, source_address=(site.outside, 0)).close()
        except OSError:
            return False
        return True

    places = [(name, port) for name in plan.HOSTS for port in ports[name]]
    with ThreadPoolExecutor(64) as pool:
        open_places = [place for place, took in zip(places, pool.map(takes, places), strict=True) if took]
    assert open_places == [("edge1", 80), ("edge1", 443)]


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("app1", {"db1:5432", "cache1:6379"}),
        ("cache1", set()),
        ("edge1", {"app1:8080", "app2:8080", "app3:8080"}),
    ],
)
def test_a_host_reaches_of_the_others_only_what_it_needs(
    site: Site, ports: dict[str, list[int]], name: str, needed: set[str]
) -> None:
    others = {
        f"{site.host(other).address}:{port}": f"{other}:{port}"
        for other in plan.HOSTS
        for port in ports[other]
        if other != name
    }
    said = site.host(name).run(f"python3 -c '{REACHABLE}' {' '.join(others)}").stdout.split()
    anybody = {"edge1:80", "edge1:443"}
    assert {others[place] for place in said} - anybody == needed


def test_ssh_takes_keys_only_and_no_root(site: Site) -> None:
    for name in plan.HOSTS:
        said = site.run(name, "sshd -T").splitlines()
        assert {"passwordauthentication no", "permitrootlogin no"} <= set(said), name


def ask(site: Site, *statements: str, **changes: str) -> list[str]:
    """What PostgreSQL answers to the service's own role, connecting as it does but for the changes."""
    words = shlex.join(["/opt/bazaruto/current/bin/python", "-c", ASK, json.dumps([changes, statements])])
    said = site.run("app1", f"BAZARUTO_CONFIG=/etc/bazaruto/bazarutod.yml {words}")
    answers: list[str] = json.loads(said)
    return answers


def test_the_service_works_with_its_rows_and_can_neither_drop_nor_read_what_is_not_its_own(site: Site) -> None:
    assert ask(site, "SELECT count(*) FROM users", "DELETE FROM users WHERE false") == ["ok", "ok"]
    denied = [
        "DROP TABLE users",
        "TRUNCATE users CASCADE",
        "ALTER TABLE users ADD COLUMN planted text",
        "CREATE TABLE planted (a int)",
        "CREATE SCHEMA planted",
        "SELECT * FROM _yoyo_migration",
        "SELECT * FROM pg_authid",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SET ROLE bazaruto_owner",
        "SET ROLE postgres",
        "CREATE ROLE planted",
    ]
    answers = dict(zip(denied, ask(site, *denied), strict=True))
    assert {statement: answer for statement, answer in answers.items() if answer != "42501"} == {}


def test_the_service_reaches_no_other_database_and_none_without_tls(site: Site) -> None:
    for database in ("postgres", "template1"):
        assert "no pg_hba.conf entry" in ask(site, "SELECT 1", dbname=database)[0], database
    assert "no pg_hba.conf entry" in ask(site, "SELECT 1", sslmode="disable")[0]


def test_nobody_is_trusted_by_postgresql_without_a_password_or_a_system_account(site: Site) -> None:
    methods = site.sql("SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE error IS NULL").split()
    assert set(methods) <= {"peer", "scram-sha-256", "cert", "reject"}
    assert site.sql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"


def test_redis_takes_no_stranger_and_no_dangerous_command(site: Site) -> None:
    said = site.run("cache1", "redis-cli -h 127.0.0.1 PING", check=False)
    assert "NOAUTH" in said, said
