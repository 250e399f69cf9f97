"""The Redis pool has a minimum, a maximum, a lifetime, and connections that outlive the server's idle timeout."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from bazaruto import redis_pool
from bazaruto.config import RedisSettings

from .conftest import RunningRedis
from .serving import wait_for


@contextlib.contextmanager
def pooled(url: str, **settings: Any) -> Iterator[tuple[redis.Redis, redis_pool.Pool]]:
    """A client with these settings; its minimum is open."""
    values = RedisSettings(**settings)
    client, pool = redis_pool.open_redis(url, values, "test-pool")
    try:
        wait_for(lambda: pool.open_connections == values.min_connections and pool.in_use == 0)
        yield client, pool
    finally:
        pool.close()


def addresses(url: str) -> set[str]:
    """The ids of the pool's connections as the server knows them."""
    with contextlib.closing(redis.Redis.from_url(url)) as other:
        return {one["id"] for one in other.client_list() if one["name"] == "test-pool"}


def test_max_connections_is_the_maximum_and_who_waits_too_long_is_told(redis_url: str) -> None:
    with pooled(redis_url, max_connections=2, timeout=0.3) as (client, pool):
        taken = [pool.get_connection(), pool.get_connection()]
        assert pool.in_use == 2
        started = time.monotonic()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        assert 0.2 < time.monotonic() - started < 2
        for connection in taken:
            pool.release(connection)
        assert client.ping()
        assert len(addresses(redis_url)) == 2


def test_many_threads_share_few_connections(redis_url: str) -> None:
    with pooled(redis_url, max_connections=3) as (client, pool):
        threads = [threading.Thread(target=lambda: [client.incr("n") for _ in range(50)]) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.get("n") == "600"
        assert len(addresses(redis_url)) <= 3
        assert pool.in_use == 0


def test_min_connections_are_open_before_anybody_asks_and_opened_again_when_lost(redis_url: str) -> None:
    with pooled(redis_url, min_connections=4) as (_, pool):
        before = addresses(redis_url)
        assert len(before) == 4
        with contextlib.closing(redis.Redis.from_url(redis_url)) as other:
            for identity in before:
                other.client_kill_filter(_id=identity)
        pool.care()
        pool.care()
        after = addresses(redis_url)
        assert len(after) == 4
        assert not before & after


def test_no_connection_is_used_beyond_max_lifetime(redis_url: str) -> None:
    with pooled(redis_url, max_lifetime=2) as (client, _):
        used = str(client.client_id())
        before = addresses(redis_url)  # the caretaker may have opened another one besides
        assert used in before
        assert str(client.client_id()) in before
        time.sleep(2.05)
        assert str(client.client_id()) not in before


def test_idle_connections_are_renewed_by_the_caretaker_too(redis_url: str) -> None:
    with pooled(redis_url, min_connections=3, max_lifetime=0.2) as (_, pool):
        first = addresses(redis_url)
        time.sleep(0.25)
        pool.care()
        wait_for(lambda: len(now := addresses(redis_url)) == 3 and not now & first)


def test_idle_connections_survive_the_servers_timeout(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_pool, "CARE_SECONDS", 0.3)
    with contextlib.closing(redis.Redis.from_url(redis_url)) as server:
        before = server.config_get("timeout")["timeout"]
        server.config_set("timeout", 1)
        try:
            with pooled(redis_url, min_connections=3) as (client, _):
                first = addresses(redis_url)
                time.sleep(3.2)  # Redis looks for idle clients once a second
                assert addresses(redis_url) == first
                assert client.ping()
        finally:
            server.config_set("timeout", before)


def test_a_connection_the_server_closed_does_not_fail_the_next_use(redis_url: str) -> None:
    with pooled(redis_url, min_connections=2) as (client, _):
        client.ping()
        with contextlib.closing(redis.Redis.from_url(redis_url)) as other:
            for identity in addresses(redis_url):
                other.client_kill_filter(_id=identity)
        assert [client.ping() for _ in range(4)] == [True] * 4


def test_a_frozen_server_costs_one_timeout_and_not_more(redis_url: str, redis_server: RunningRedis) -> None:
    with pooled(redis_url, timeout=0.4) as (client, pool):
        client.ping()
        with redis_server.frozen():
            started = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                client.get("x")
            assert time.monotonic() - started < 1.0
        wait_for(lambda: pool.in_use == 0)
        client.set("x", "right")
        assert client.get("x") == "right"  # and not the late answer to the request that was given up


def test_a_missing_server_fails_only_who_uses_it() -> None:
    client, pool = redis_pool.open_redis("unix:///nonexistent/redis.sock", RedisSettings(), "test-pool")
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert pool.in_use == 0
    pool.close()
