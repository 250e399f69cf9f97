"""A home of its own for each test of the roles: a seeded database, a storage directory, and playbooks run for real."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from bazaruto import embedded, server_user
from tests import role_modules
from tests.integration.conftest import RunningCluster

SEED = (Path(__file__).parent / "seed.sql").read_bytes()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a playbook ended."""

    returncode: int
    output: str
    result: dict[str, Any] | None  # what set_stats returned
    changed: int

    @property
    def words(self) -> str:
        """The output as one line, so that a sentence is found wherever it was broken."""
        return " ".join(self.output.replace("\\n", " ").split())


@dataclasses.dataclass
class Place:
    """One installation as the inventory `local` sees it."""

    home: Path
    cluster: RunningCluster
    database: str

    @property
    def storage(self) -> Path:
        return self.home / "backups"

    @property
    def connection(self) -> dict[str, Any]:
        """What modules take as `connection`."""
        cluster = self.cluster.cluster
        return {
            "host": str(cluster.socket_directory),
            "port": 5432,
            "user": "postgres",
            "passfile": str(cluster.passfile),
            "bin_directory": str(self.cluster.bin_directory),
        }

    @property
    def server_user(self) -> server_user.ServerUser:
        """Who a server with its data in this home runs as; decided as `bazaruto up` does."""
        return server_user.server_user([embedded.postgresql_bin() / "postgres", self.home])

    def connect(self, database: str = "") -> psycopg.Connection[Any]:
        """A session of the superuser in its database, or in another."""
        return psycopg.connect(self.cluster.url_of(database or self.database, "postgres"), autocommit=True)

    def value(self, statement: str, *values: object, database: str = "") -> Any:
        """The one value a statement returns."""
        with self.connect(database) as session:
            row = session.execute(statement.encode(), values or None).fetchone()
        assert row is not None
        return row[0]

    def databases(self) -> set[str]:
        """Its database and all that restores made of it."""
        with self.connect("postgres") as session:
            found = session.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [self.database])
            names = {str(name) for (name,) in found}
        return {name for name in names if name == self.database or name.startswith(f"{self.database}_")}

    def write_local(self, **changes: Any) -> None:
        """Write local.json as `bazaruto up` does."""
        cluster = self.cluster.cluster
        server = {
            "host": str(cluster.socket_directory),
            "port": 5432,
            "superuser": "postgres",
            "passfile": str(cluster.passfile),
            "bin_directory": str(self.cluster.bin_directory),
            "server_command_prefix": list(self.server_user.prefix),
            "server_user": self.server_user.name,
        }
        url = self.cluster.url_of(self.database)
        service = {"url": "http://127.0.0.1:9", "database_url": url, "database": self.database, "user": "bazaruto"}
        values = {
            "service": service,
            "postgresql": server,
            "backup_directory": str(self.storage),
            "config_backup_directory": str(self.storage / "config"),
            "rules_file": str(self.home / "config" / "business_rules.json"),
            "bin_directory": str(Path(sys.executable).parent),
        }
        (self.home / "local.json").write_text(json.dumps({**values, **changes}))

    def play(self, playbook: str, *words: str, **variables: Any) -> Outcome:
        """Run a playbook as a person would, from the repository's root."""
        binaries = Path(sys.executable).parent
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("BAZARUTO_", "PG"))}
        environment |= {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "BAZARUTO_HOME": str(self.home),
            "ANSIBLE_SHOW_CUSTOM_STATS": "true",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "true",
        }
        argv = [binaries / "ansible-playbook", "-i", "inventories/local", f"playbooks/{playbook}.yml", *words]
        if variables:
            argv += ["-e", json.dumps(variables)]
        done = subprocess.run(
            argv, cwd=role_modules.ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        stats = [line for line in done.stdout.splitlines() if line.startswith("\tRUN: ")]
        result = json.loads(stats[0].removeprefix("\tRUN: "))["result"] if stats else None
        changed = [int(part.removeprefix("changed=")) for part in done.stdout.split() if part.startswith("changed=")]
        return Outcome(done.returncode, done.stdout + done.stderr, result, changed[0] if changed else 0)


@pytest.fixture(scope="session")
def seeded_template(postgres_cluster: RunningCluster, service_template: str) -> str:
    """The name of a database with the service's tables and some data in them."""
    name = postgres_cluster.create_database(service_template)
    with psycopg.connect(postgres_cluster.url_of(name), autocommit=True) as session:
        session.execute(SEED)
    return name


@pytest.fixture
def place(tmp_path: Path, postgres_cluster: RunningCluster, seeded_template: str) -> Iterator[Place]:
    """A home with spaces in its path, and a database of its own."""
    home = tmp_path / "a home with spaces"
    for part in ("", "config", "backups", "backups/config"):
        (home / part).mkdir(mode=0o700)
    made = Place(home, postgres_cluster, postgres_cluster.create_database(seeded_template))
    made.write_local()
    yield made
    for name in made.databases():
        postgres_cluster.drop_database(name)


@pytest.fixture(scope="session")
def sealed_backup(
    tmp_path_factory: pytest.TempPathFactory, postgres_cluster: RunningCluster, seeded_template: str
) -> Path:
    """A storage directory with one backup of the seeded data, to be copied, never changed."""
    directory = tmp_path_factory.mktemp("sealed")
    directory.chmod(0o700)
    origin = Place(directory, postgres_cluster, seeded_template)
    dump = role_modules.load("database_backup", "database_dump")
    options = {"connection": origin.connection, "database": seeded_template, "directory": str(directory)}
    dump.back_up({**options, "compression_level": 1, "run": "20261123-154142"}, check_mode=False)
    return directory


@pytest.fixture
def backup(place: Place, sealed_backup: Path) -> str:
    """The name of that backup, in the place's storage."""
    for path in sealed_backup.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, place.storage / path.name)
    return next(place.storage.glob("*.dump")).stem


def grant_and_set(place: Place) -> None:
    """Give the database everything that belongs to a database and not into its dump."""
    name = sql.Identifier(place.database)
    with place.connect("postgres") as session:
        for statement in (
            "REVOKE ALL ON DATABASE {} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {} TO pg_monitor WITH GRANT OPTION",
            "ALTER DATABASE {} SET search_path TO public, \"Odd, Schema\", '$user'",
            "ALTER DATABASE {} SET statement_timeout TO '7s'",
            "ALTER ROLE bazaruto IN DATABASE {} SET work_mem TO '5MB'",
            "ALTER DATABASE {} CONNECTION LIMIT 77",
            "COMMENT ON DATABASE {} IS 'It''s the live one'",
        ):
            session.execute(sql.SQL(statement).format(name))
