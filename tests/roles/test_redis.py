"""Redis as the service uses it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from bazaruto import redis_pool
from bazaruto.config import RedisSettings
from bazaruto.service.attempts import LoginAttempts
from tests.lab.host import Host
from tests.lab.waiting import until

from .conftest import check_tells_the_truth, converge, files_with

REFUSED = (
    *("FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "ACL LIST", "SHUTDOWN", "GET bazaruto:a"),
    *("SCAN 0", "EVAL return(1) 0", "MONITOR", "SET other 1", "CLIENT LIST", "INFO", "REPLICAOF NO ONE"),
)


@pytest.fixture(scope="module")
def address(network: dict[str, Any]) -> str:
    return str(network["hosts"]["cache1"]["address"])


def client(address: str, user: str | None = None, password: str | None = None) -> redis.Redis:
    return redis.Redis(host=address, username=user, password=password, socket_timeout=5, decode_responses=True)


def say(client: Any, words: str) -> None:  # redis-py's is untyped
    """A command as redis-cli would send it."""
    client.execute_command(*words.split())


@pytest.fixture
def application(address: str, passwords: dict[str, str]) -> redis.Redis:
    return client(address, "bazaruto", passwords["redis_application_password"])


@pytest.fixture
def admin(address: str, passwords: dict[str, str]) -> redis.Redis:
    return client(address, "admin", passwords["redis_admin_password"])


def test_the_service_counts_logins_and_is_told_that_redis_is_there(address: str, passwords: dict[str, str]) -> None:
    url = f"redis://bazaruto:{passwords['redis_application_password']}@{address}:6379/0"
    failures: list[Exception] = []
    used, pool = redis_pool.open_redis(url, RedisSettings(), "test")
    try:
        attempts = LoginAttempts(used, 2, 100, 60.0, failures.append)
        waits = [attempts.begin("ana@example.org", "192.0.2.1") for _ in range(3)]
        attempts.succeeded("ana@example.org", "192.0.2.1")
        assert waits[:2] == [None, None]
        assert waits[2] is not None
        assert 0 < waits[2] <= 60
        assert attempts.begin("ana@example.org", "192.0.2.1") is None
    finally:
        pool.close()
    redis_pool.probe(url, RedisSettings(), "test")()
    assert failures == []


@pytest.mark.parametrize("words", REFUSED)
def test_the_service_may_do_nothing_else(application: redis.Redis, words: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        say(application, words)


def test_dangerous_commands_are_off_for_everybody(admin: redis.Redis) -> None:
    for words in ("FLUSHALL", "KEYS *", "SHUTDOWN", "REPLICAOF NO ONE", "MODULE LIST"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            say(admin, words)


def test_nobody_comes_in_without_a_name_or_with_a_wrong_password(address: str) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        client(address).ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        client(address, "bazaruto", "wrong-wrong-wrong-wrong").ping()
    with pytest.raises(redis.exceptions.AuthenticationError):
        client(address, "default", "").ping()


def test_it_has_the_guides_settings_and_keeps_nothing_on_disk(
    admin: redis.Redis, host: Callable[[str], Host], network: dict[str, Any]
) -> None:
    wanted = {"maxmemory": str(64 * 1024**2), "maxmemory-policy": "allkeys-lru", "tcp-keepalive": "60"}
    wanted |= {"timeout": "300", "save": "", "appendonly": "no", "protected-mode": "yes"}
    assert admin.config_get(*wanted) == wanted
    listening = host("cache1").run("ss -Hltn sport = 6379").stdout
    addresses = {line.split()[3].rpartition(":")[0] for line in listening.splitlines()}
    assert addresses == {"127.0.0.1", "[::1]", network["hosts"]["cache1"]["address"]}
    assert host("cache1").run("cat /etc/redis/users.acl | grep -c '#'").stdout.strip() == "3"


def test_no_password_is_left_on_the_host(host: Callable[[str], Host], passwords: dict[str, str]) -> None:
    for name in ("redis_application_password", "redis_admin_password"):
        assert files_with(host("cache1"), passwords[name]) == ""


def test_check_mode_tells_the_truth_and_changes_are_given_to_the_running_server(
    host: Callable[[str], Host], admin: redis.Redis
) -> None:
    started = admin.info("server")["run_id"]
    admin.config_set("maxmemory", "1mb")
    admin.config_set("timeout", "1")
    admin.acl_setuser("planted", enabled=True, nopass=True, categories=["+@all"])
    changed = check_tells_the_truth(
        "redis",
        host("cache1"),
        [
            "echo '# planted' >> /etc/redis/redis.conf",
            "echo 'user planted on nopass +@all' >> /etc/redis/users.acl",
        ],
    )
    assert changed == {
        "Write its users",
        "Write its settings",
        "Give it its settings while it runs",
        "Give it its users while it runs",
    }
    assert admin.info("server")["run_id"] == started  # it was not restarted
    assert "planted" not in admin.acl_users()


def test_check_mode_predicts_that_a_stopped_server_is_started(host: Callable[[str], Host]) -> None:
    changed = check_tells_the_truth("redis", host("cache1"), ["systemctl stop redis-server"])
    assert changed == {"Start it"}


def test_variables_that_cannot_work_are_refused_by_name_before_anything_is_touched() -> None:
    short = converge("redis", "-e", '{"redis_maxmemory_mb": 0}')
    assert (short.rc, short.changed) == (2, frozenset())
    assert "redis_maxmemory_mb" in short.failed["cache1"]


def test_it_comes_back_after_a_reboot(host: Callable[[str], Host], address: str, passwords: dict[str, str]) -> None:
    cache = host("cache1")
    cache.stop()
    cache.start()
    application = client(address, "bazaruto", passwords["redis_application_password"])

    def answers() -> bool:
        try:
            return bool(application.ping())
        except redis.exceptions.RedisError:
            return False

    until(answers, 30, "Redis did not come back")
