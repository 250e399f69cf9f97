"""Real servers for the integration tests: one PostgreSQL and one Redis a test process, fresh databases from templates.

No URL holds a password: it stands in a passfile that the URL names. Each pytest-xdist worker has servers of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from psycopg import sql

from bazaruto import embedded, processes, server_user

OWNER = "bazaruto"  # the role of the service; no superuser
# Tests need no durability, and many small databases.
SETTINGS = {
    **embedded.POSTGRESQL_SETTINGS,
    "shared_buffers": "64MB",
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
}
_numbers = itertools.count(1)


@dataclasses.dataclass
class RunningCluster:
    """The session's PostgreSQL, with what tests do to servers."""

    cluster: embedded.Cluster
    identity: processes.ProcessIdentity

    @property
    def url(self) -> str:
        """As superuser, to the database `postgres`."""
        return self.cluster.url()

    @property
    def bin_directory(self) -> Path:
        """Where psql, pg_dump and their company are."""
        return embedded.postgresql_bin()

    @property
    def pid(self) -> int:
        """The server's first process."""
        return self.identity.pid

    def url_of(self, database: str, user: str = OWNER) -> str:
        """To one of its databases."""
        return self.cluster.url(user, database)

    def create_database(self, template: str = "template0") -> str:
        """A fresh database of the role bazaruto; returns its name."""
        name = f"test_{next(_numbers)}"
        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.format(*map(sql.Identifier, (name, OWNER, template))))
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database with whoever is connected to it."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server stopped, as if its machine hung."""
        family = [self.identity, *processes.descendants(self.pid)]
        with frozen(family):
            yield

    def restart(self, first_signal: signal.Signals = signal.SIGINT) -> None:
        """End the server (SIGKILL: as a crash would) and start it again."""
        processes.end(self.identity, embedded.STOP_SECONDS, first_signal=first_signal)
        self.identity = embedded.start_cluster(self.cluster)


@dataclasses.dataclass
class RunningRedis:
    """The session's Redis."""

    server: embedded.RedisServer
    identity: processes.ProcessIdentity

    @property
    def url(self) -> str:
        """What redis-py takes."""
        return self.server.url

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The server stopped, as if its machine hung."""
        with frozen([self.identity]):
            yield


@contextlib.contextmanager
def frozen(family: list[processes.ProcessIdentity]) -> Iterator[None]:
    """SIGSTOP these processes, and let them go on afterwards whatever happens."""
    try:
        for member in family:
            processes.send(member, signal.SIGSTOP)
        yield
    finally:
        for member in family:
            processes.send(member, signal.SIGCONT)


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A short directory of this test process, for its servers."""
    with tempfile.TemporaryDirectory(prefix="bazaruto-test-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # the servers' user passes through it
        yield directory


@pytest.fixture(scope="session")
def servers_run_as(server_directory: Path) -> server_user.ServerUser:
    """Who the session's servers run as."""
    return server_user.server_user([embedded.postgresql_bin() / "postgres", server_directory])


@pytest.fixture(scope="session")
def postgres_cluster(server_directory: Path, servers_run_as: server_user.ServerUser) -> Iterator[RunningCluster]:
    """A PostgreSQL with the role `bazaruto`, for the whole session."""
    cluster = embedded.Cluster(
        directory=server_directory / "postgresql",
        socket_directory=server_directory / "socket",
        passfile=server_directory / "pgpass",
        log_path=server_directory / "postgresql.out",
        user=servers_run_as,
        settings=SETTINGS,
    )
    embedded.create_cluster(cluster)
    running = RunningCluster(cluster, embedded.start_cluster(cluster))
    try:
        embedded.ensure_role(cluster, OWNER, OWNER)
        yield running
    finally:  # at once, without the checkpoint of hundreds of databases that are thrown away
        processes.end(running.identity, embedded.STOP_SECONDS, first_signal=signal.SIGQUIT)


@pytest.fixture
def database_url(postgres_cluster: RunningCluster) -> Iterator[str]:
    """A fresh, empty database, owned by the role that the URL names."""
    name = postgres_cluster.create_database()
    yield postgres_cluster.url_of(name)
    postgres_cluster.drop_database(name)


@pytest.fixture(scope="session")
def service_template(postgres_cluster: RunningCluster) -> str:
    """The name of a database that holds what the service's migrations make, and nothing else."""
    from bazaruto import database, service

    name = postgres_cluster.create_database()
    database.migrate(postgres_cluster.url_of(name), Path(service.__path__[0]) / "migrations")
    return name


@pytest.fixture
def service_database_url(postgres_cluster: RunningCluster, service_template: str) -> Iterator[str]:
    """A fresh database with the service's tables."""
    name = postgres_cluster.create_database(service_template)
    yield postgres_cluster.url_of(name)
    postgres_cluster.drop_database(name)


@pytest.fixture(scope="session")
def redis_server(server_directory: Path, servers_run_as: server_user.ServerUser) -> Iterator[RunningRedis]:
    """A Redis with the guide's settings, for the whole session."""
    server = embedded.RedisServer(
        directory=server_directory / "redis",
        socket_directory=server_directory / "redis-socket",
        log_path=server_directory / "redis.out",
        user=servers_run_as,
    )
    running = RunningRedis(server, embedded.start_redis(server, None))
    yield running
    processes.end(running.identity, 5.0)


@pytest.fixture
def redis_url(redis_server: RunningRedis) -> str:
    """The session's Redis, emptied."""
    redis.Redis.from_url(redis_server.url).flushall()
    return redis_server.url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty BAZARUTO_HOME; no other setting comes from the machine that runs the tests."""
    for name in [name for name in os.environ if name.startswith("BAZARUTO_")]:
        monkeypatch.delenv(name)
    directory = tmp_path / "home"
    for part in ("", "log", "run", "config", "control", "backups", "secrets"):
        (directory / part).mkdir(mode=0o700)
    monkeypatch.setenv("BAZARUTO_HOME", str(directory))
    return directory
