"""The embedded servers, as `bazaruto up` uses them."""

from __future__ import annotations

import psycopg
import redis


def test_the_service_role_owns_its_database_and_is_no_superuser(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        connection.execute("CREATE TABLE things (id int)")
    assert row == ("bazaruto", False, False, False)


def test_redis_runs_with_the_values_of_the_guide(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    wanted = {"maxmemory": str(2 * 2**30), "maxmemory-policy": "allkeys-lru", "tcp-keepalive": "60", "timeout": "300"}
    assert {name: client.config_get(name)[name] for name in wanted} == wanted
