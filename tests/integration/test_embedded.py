"""The embedded servers, as `bazaruto up` uses them: mended after every kind of death, and touching nothing else."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from bazaruto import embedded, processes, server_user
from bazaruto.server_user import EmbeddedError

from .conftest import RunningCluster, RunningRedis

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to try what other local users can do")
SETTINGS = {**embedded.POSTGRESQL_SETTINGS, "shared_buffers": "32MB"}  # durable: these servers are killed
LONG = "a home with spaces and " + "x" * 127  # 150 characters


@pytest.fixture(scope="module")
def pristine(server_directory: Path, servers_run_as: server_user.ServerUser) -> embedded.Cluster:
    """A cluster that is only made, for tests to copy: initdb takes most of a second."""
    here = server_directory / "pristine"
    here.mkdir(mode=0o711)
    made = embedded.Cluster(here / "postgresql", here / "s", here / "pass", here / "out", servers_run_as, SETTINGS)
    embedded.create_cluster(made)
    return made


@pytest.fixture
def cluster(tmp_path: Path, pristine: embedded.Cluster) -> Iterator[embedded.Cluster]:
    """A cluster of the test's own, made and not started, in a long directory that nobody else may enter."""
    home = tmp_path / LONG
    home.mkdir(mode=0o700)
    user = server_user.server_user([embedded.postgresql_bin() / "postgres", home])
    sockets = server_user.own_directory(server_user.socket_base(home), user)
    made = embedded.Cluster(
        home / "postgresql", sockets / "service", home / "a pass:file", home / "out", user, SETTINGS
    )
    subprocess.run(["cp", "-a", pristine.directory, made.directory], check=True)
    subprocess.run(["cp", "-a", pristine.passfile, made.passfile], check=True)
    embedded.password_of(made, embedded.SUPERUSER)  # the passfile names the socket directory
    yield made
    embedded.stop_cluster(made)
    for left in sorted(sockets.rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() else left.unlink()
    sockets.rmdir()


def rows(cluster: embedded.Cluster) -> int:
    with psycopg.connect(cluster.url()) as connection:
        row = connection.execute("SELECT count(*) FROM things").fetchone()
    assert row is not None
    return int(row[0])


def with_things(cluster: embedded.Cluster) -> processes.ProcessIdentity:
    identity = embedded.start_cluster(cluster)
    with psycopg.connect(cluster.url()) as connection:
        connection.execute("CREATE TABLE things AS SELECT generate_series(1, 100) AS id")
    return identity


def test_the_service_role_owns_its_database_and_is_no_superuser(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        connection.execute("CREATE TABLE things (id int)")
    assert row == ("bazaruto", False, False, False)


def test_no_password_stands_in_a_url(database_url: str) -> None:
    passfile = Path(psycopg.conninfo.conninfo_to_dict(database_url)["passfile"])
    passwords = {line.rsplit(":", 1)[1] for line in passfile.read_text().splitlines()}
    assert len(passwords) == 2
    assert not [password for password in passwords if password in database_url]
    assert passfile.stat().st_mode & 0o777 == 0o600


def test_nobody_gets_in_without_the_password(postgres_cluster: RunningCluster, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(f"*:*:*:*:{'0' * 48}\n")
    wrong.chmod(0o600)
    for passfile in (tmp_path / "missing", wrong):
        stranger = dataclasses.replace(postgres_cluster.cluster, passfile=passfile)
        for user, database in (("postgres", "postgres"), ("bazaruto", "bazaruto")):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(stranger.url(user, database))


@needs_root
@pytest.mark.root
def test_a_foreign_local_user_reaches_neither_server(
    postgres_cluster: RunningCluster, redis_server: RunningRedis, server_directory: Path
) -> None:
    assert server_directory.stat().st_mode & 0o001  # the refusal is not that of a closed parent
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for path in (postgres_cluster.cluster.socket_directory / ".s.PGSQL.5432", redis_server.server.socket_path):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", code, path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "PermissionError" in done.stderr, done


def test_the_servers_listen_on_no_port(postgres_cluster: RunningCluster, redis_server: RunningRedis) -> None:
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            inodes.add(line.split()[9])
    for pid in (postgres_cluster.pid, redis_server.identity.pid):
        held = [str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [name for name in held if name.removeprefix("socket:[").rstrip("]") in inodes]


@needs_root
@pytest.mark.root
def test_as_root_the_servers_run_as_a_user_who_can_change_nothing_else(cluster: embedded.Cluster) -> None:
    identity = embedded.start_cluster(cluster)
    status = Path(f"/proc/{identity.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert "0" not in fields["Uid"].split()
    assert fields["Groups"].split() == []
    assert fields["NoNewPrivs"].strip() == "1"
    # The directory is closed to that user: it may search and read (bit 2), and nothing else of root's.
    assert {fields[name].strip() for name in ("CapEff", "CapPrm", "CapBnd")} == {f"{1 << 2:016x}"}


def test_no_mode_of_a_parent_directory_changes(tmp_path: Path, servers_run_as: server_user.ServerUser) -> None:
    home = tmp_path / "closed" / "home"
    home.mkdir(parents=True, mode=0o700)
    home.parent.chmod(0o700)
    before = {path: (path.stat().st_mode, path.stat().st_uid) for path in home.parents}
    user = server_user.server_user([embedded.postgresql_bin() / "postgres", home])
    cluster = embedded.Cluster(home / "pg", home / "s", home / "pass", home / "out", user, SETTINGS)
    embedded.create_cluster(cluster)
    assert {path: (path.stat().st_mode, path.stat().st_uid) for path in home.parents} == before
    assert (home / "pg").stat().st_mode & 0o777 == 0o700


def test_a_second_start_leaves_the_running_server_alone(cluster: embedded.Cluster) -> None:
    first = with_things(cluster)
    assert embedded.start_cluster(cluster) == first
    assert rows(cluster) == 100


def crash(identity: processes.ProcessIdentity) -> None:
    processes.send(identity, signal.SIGKILL)


def crash_and_freeze_a_session(identity: processes.ProcessIdentity) -> None:
    session = processes.descendants(identity.pid)[-1]
    processes.send(session, signal.SIGSTOP)
    processes.send(identity, signal.SIGKILL)


def freeze(identity: processes.ProcessIdentity) -> None:
    processes.send(identity, signal.SIGSTOP)


@pytest.mark.parametrize("harm", [crash, crash_and_freeze_a_session, freeze])
def test_a_harmed_server_is_mended_by_the_next_start(
    cluster: embedded.Cluster, harm: Callable[[processes.ProcessIdentity], None]
) -> None:
    harm(with_things(cluster))
    embedded.start_cluster(cluster)
    assert rows(cluster) == 100


def test_a_server_whose_socket_was_swept_away_is_started_again(cluster: embedded.Cluster) -> None:
    first = with_things(cluster)
    for left in cluster.socket_directory.iterdir():
        left.unlink()
    cluster.socket_directory.rmdir()
    assert embedded.start_cluster(cluster) != first
    assert rows(cluster) == 100


def test_a_lock_whose_number_another_process_got_does_not_stop_the_start(cluster: embedded.Cluster) -> None:
    crash(identity := with_things(cluster))
    processes.wait_all([identity], time.monotonic() + 10)
    lock = cluster.data / "postmaster.pid"
    prefix = [word for word in cluster.user.prefix if "caps" not in word and "securebits" not in word]
    with subprocess.Popen([*prefix, "sleep", "60"]) as foreign:  # the same user: PostgreSQL itself would refuse
        lines = lock.read_text().splitlines(keepends=True)
        lock.write_text("".join([f"{foreign.pid}\n", *lines[1:]]))
        try:
            embedded.start_cluster(cluster)
            assert foreign.poll() is None
        finally:
            foreign.kill()
    assert rows(cluster) == 100


def test_a_stop_leaves_no_process_and_no_lock(cluster: embedded.Cluster) -> None:
    identity = with_things(cluster)
    family = [identity, *processes.descendants(identity.pid)]
    with psycopg.connect(cluster.url()):
        assert embedded.stop_cluster(cluster)
    assert [member for member in family if processes.is_alive(member)] == []
    assert not (cluster.data / "postmaster.pid").exists()
    assert not embedded.stop_cluster(cluster)


def test_a_half_made_cluster_is_made_anew(cluster: embedded.Cluster) -> None:
    cluster.data.rename(cluster.directory / "data.partial")
    assert embedded.create_cluster(cluster)
    embedded.start_cluster(cluster)
    assert not (cluster.directory / "data.partial").exists()


def test_data_of_another_postgresql_version_is_refused_and_kept(cluster: embedded.Cluster) -> None:
    version = cluster.data / "PG_VERSION"
    version.write_text("15\n")
    with pytest.raises(EmbeddedError, match=r"written by PostgreSQL 15, the installed one is \d+: install .*15"):
        embedded.create_cluster(cluster)
    assert version.read_text() == "15\n"
    assert (cluster.data / "base").is_dir()


def test_a_server_that_dies_at_its_start_says_why(cluster: embedded.Cluster) -> None:
    (cluster.data / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        embedded.start_cluster(cluster)


def test_a_lost_password_is_said_in_one_sentence(cluster: embedded.Cluster) -> None:
    embedded.start_cluster(cluster)
    cluster.passfile.unlink()
    embedded.password_of(cluster, "postgres")
    with pytest.raises(EmbeddedError, match=r"does not know the password in .*: bring the old file back"):
        embedded.start_cluster(cluster)


def test_a_socket_directory_that_somebody_else_made_is_refused(
    tmp_path: Path, servers_run_as: server_user.ServerUser
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(EmbeddedError, match="somebody else made it"):
        server_user.own_directory(tmp_path / "link", servers_run_as)
    if os.geteuid() == 0:
        os.chown(tmp_path / "real", 65534, 65534)
        with pytest.raises(EmbeddedError, match="somebody else made it"):
            server_user.own_directory(tmp_path / "real", servers_run_as)


@pytest.mark.parametrize("runtime", ["", "relative", "/missing", "/tmp/with space", "/" + "x" * 80])
def test_sockets_fit_under_every_home(tmp_path: Path, runtime: str) -> None:
    base = server_user.socket_base(tmp_path / LONG, {"XDG_RUNTIME_DIR": runtime})
    for name in ("service/.s.PGSQL.5432.lock", "control/.s.PGSQL.5432.lock", "redis/redis.sock"):
        assert len(os.fsencode(base / name)) <= embedded.SOCKET_PATH_BYTES
    assert not any(map(str.isspace, str(base)))  # the guide's commands do not quote $DB_HOST


def test_two_homes_have_different_sockets(tmp_path: Path) -> None:
    assert server_user.socket_base(tmp_path / "a") != server_user.socket_base(tmp_path / "b")


def test_redis_runs_with_the_values_of_the_guide(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    wanted = {"maxmemory": str(2 * 2**30), "maxmemory-policy": "allkeys-lru", "tcp-keepalive": "60", "timeout": "300"}
    assert {name: client.config_get(name)[name] for name in wanted} == wanted
    assert client.config_rewrite()  # tuning can last: the file belongs to the server's user


def test_a_frozen_redis_is_replaced(tmp_path: Path, server_directory: Path) -> None:
    user = server_user.server_user([embedded.redis_bin() / "redis-server", tmp_path])
    server = embedded.RedisServer(tmp_path / "a redis", server_directory / "frozen", tmp_path / "out", user)
    first = embedded.start_redis(server, None)
    assert embedded.find_redis(server) == first
    processes.send(first, signal.SIGSTOP)
    second = embedded.start_redis(server, first)
    try:
        assert second != first
        assert not processes.is_alive(first)
        assert redis.Redis.from_url(server.url).ping()
    finally:
        processes.end(second, 5.0)


def test_servers_know_nothing_of_their_starters_environment(
    cluster: embedded.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "a secret of somebody")
    monkeypatch.setenv("PGPORT", "1")
    identity = embedded.start_cluster(cluster)
    assert "a secret of somebody" not in processes.environment_of(identity.pid).values()
    assert "PGPORT" not in processes.environment_of(identity.pid)
