"""Logins, tokens and their limits."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import redis

from bazaruto.service.passwords import Passwords

from .conftest import PASSWORD, Client, Installation


def _try(client: Client, email: str, password: str = "wrong wrong wrong") -> httpx.Response:
    return client.post("/v1/auth/login", json={"email": email, "password": password})


def test_a_login_works_whatever_the_case_of_the_e_mail(shared: Installation, nobody: Client) -> None:
    email = shared.add_user("customer")
    answer = _try(nobody, email.upper(), PASSWORD)
    assert answer.status_code == 200
    assert answer.json()["user"]["email"] == email
    assert answer.json()["expires_at"].endswith("Z")


def test_tokens_are_stored_as_hashes_only(shared: Installation, customer: Client) -> None:
    token = customer.token or ""
    digest = hashlib.sha256(token.encode()).digest()
    assert shared.rows("SELECT 1 AS one FROM tokens WHERE token_sha256 = %s", digest)
    assert not shared.rows("SELECT 1 AS one FROM tokens WHERE tokens::text LIKE %s", f"%{token}%")
    for log in (shared.home / "log").glob("*.log"):
        assert token not in log.read_text()


def test_unknown_e_mail_and_wrong_password_get_the_same_answer_in_the_same_time(
    shared: Installation, nobody: Client
) -> None:
    email = shared.add_user("customer", Passwords(1).hash(PASSWORD))
    without = shared.add_user("customer")
    shared.rows("UPDATE users SET password_hash = NULL WHERE email = %s", without)
    seconds: dict[str, list[float]] = {}
    answers = set()
    for number in range(5):
        for kind, who in (("wrong", email), ("unknown", f"nobody{number}@example.com"), ("none", without)):
            started = time.perf_counter()
            answer = _try(nobody, who)
            seconds.setdefault(kind, []).append(time.perf_counter() - started)
            body = answer.json()
            answers.add((answer.status_code, body["title"], body["detail"]))
    assert len(answers) == 1
    typical = [statistics.median(taken) for taken in seconds.values()]
    assert max(typical) < 2 * min(typical), seconds


def test_forged_expired_and_revoked_tokens_open_nothing(shared: Installation, nobody: Client, admin: Client) -> None:
    for header in ("", "Bearer", "Bearer x", "Bearer bz_" + "A" * 43, "Basic YTpi", "bz_x", "Bearer bz_é"):
        answer = nobody.get("/v1/users/me", headers={b"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401, header
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    email = shared.add_user("customer")
    expired, left, revoked = (nobody.login(email) for _ in range(3))
    digest = hashlib.sha256((expired.token or "").encode()).digest()
    shared.rows(
        "UPDATE tokens SET created_at = now() - interval '2 s', expires_at = now() - interval '1 s'"
        " WHERE token_sha256 = %s",
        digest,
    )
    assert expired.get("/v1/users/me").status_code == 401
    assert left.post("/v1/auth/logout").status_code == 204
    assert left.get("/v1/users/me").status_code == 401
    me = revoked.get("/v1/users/me").json()["id"]
    assert admin.delete(f"/v1/users/{me}/tokens").json() == {"revoked": 2}
    assert revoked.get("/v1/users/me").status_code == 401


def test_a_customer_revokes_own_tokens_only(nobody: Client, shared: Installation, stranger: Client) -> None:
    own = nobody.login(shared.add_user("customer"))
    me, other = own.get("/v1/users/me").json()["id"], stranger.get("/v1/users/me").json()["id"]
    assert own.delete(f"/v1/users/{other}/tokens").status_code == 403
    assert own.delete(f"/v1/users/{me}/tokens").status_code == 200


def test_the_eleventh_failure_is_refused_even_with_the_right_password(shared: Installation, nobody: Client) -> None:
    email = shared.add_user("customer")
    assert [_try(nobody, email).status_code for _ in range(10)] == [401] * 10
    for who, password in ((email, "wrong wrong wrong"), (email.upper(), PASSWORD)):
        refused = _try(nobody, who, password)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 900


def test_a_success_clears_the_failures_before_it(shared: Installation, nobody: Client) -> None:
    email = shared.add_user("customer")
    for _ in range(2):
        assert [_try(nobody, email).status_code for _ in range(9)] == [401] * 9
        assert _try(nobody, email, PASSWORD).status_code == 200


def test_the_limit_is_shared_by_instances_and_redis_learns_no_e_mail(
    shared: Installation, nobody: Client, redis_server: Any
) -> None:
    email = shared.add_user("customer")
    other = shared.serve()
    for number in range(10):
        _try((nobody, other)[number % 2], email)
    assert _try(nobody, email, PASSWORD).status_code == 429
    assert _try(other, email, PASSWORD).status_code == 429
    keys = redis.Redis.from_url(redis_server.url, decode_responses=True).keys("*")
    assert keys
    assert not any("example" in key or "127.0.0.1" in key for key in keys)


def test_without_redis_logins_work_and_are_limited_still(install: Callable[..., Installation], tmp_path: Path) -> None:
    alone = install(BAZARUTO_REDIS_URL=f"unix://{tmp_path}/nowhere.sock", BAZARUTO_AUTH_ATTEMPTS="3")
    client = alone.serve()
    email = alone.add_user("customer")
    assert _try(client, email, PASSWORD).status_code == 200
    assert [_try(client, email).status_code for _ in range(4)] == [401, 401, 401, 429]


def test_a_frozen_redis_costs_one_login_one_timeout_and_the_others_nothing(
    shared: Installation, nobody: Client, redis_server: Any
) -> None:
    email = shared.add_user("customer")
    seconds = []
    with redis_server.frozen():
        for _ in range(3):
            started = time.perf_counter()
            assert _try(nobody, email, PASSWORD).status_code == 200
            seconds.append(time.perf_counter() - started)
    assert seconds[0] < 2.5
    assert max(seconds[1:]) < 0.9, seconds  # less than one timeout of redis.timeout


def test_attempts_from_one_address_are_limited_whatever_the_e_mail(install: Callable[..., Installation]) -> None:
    limited = install(BAZARUTO_AUTH_ATTEMPTS_PER_ADDRESS="4", BAZARUTO_REDIS_URL="")
    client = limited.serve()
    statuses = [_try(client, f"guess{number}@example.com").status_code for number in range(5)]
    assert statuses == [401, 401, 401, 401, 429]


def test_the_address_that_is_limited_is_the_one_the_trusted_proxy_names(install: Callable[..., Installation]) -> None:
    limited = install(BAZARUTO_AUTH_ATTEMPTS_PER_ADDRESS="2", BAZARUTO_REDIS_URL="")

    def statuses(client: Client, *clients: str) -> list[int]:
        body = {"email": "guess@example.com", "password": "wrong wrong wrong"}
        sent = ({"X-Forwarded-For": forwarded} for forwarded in clients)
        return [client.post("/v1/auth/login", json=body, headers=headers).status_code for headers in sent]

    proxied = limited.serve(BAZARUTO_SERVER_TRUSTED_PROXY="127.0.0.1")
    assert statuses(proxied, "192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2", "192.0.2.3") == [401] * 5
    assert statuses(proxied, "192.0.2.1", "203.0.113.5, 192.0.2.2", "192.0.2.4") == [429, 429, 401]
    direct = limited.serve()  # trusts nobody: what a client says of itself counts for nothing
    assert statuses(direct, "192.0.2.7", "192.0.2.8", "192.0.2.9") == [401, 401, 429]


def test_a_burst_of_logins_is_bounded_and_nothing_else_waits_for_it(nobody: Client, customer: Client) -> None:
    def attempt(number: int) -> int:
        with httpx.Client(base_url=nobody.url, trust_env=False, timeout=30) as client:
            body = {"email": f"burst{number}@example.com", "password": "wrong wrong wrong"}
            answer = client.post("/v1/auth/login", json=body)
            assert answer.status_code == 401 or answer.headers["Retry-After"]
            return answer.status_code

    with ThreadPoolExecutor(40) as pool:
        statuses = [pool.submit(attempt, number) for number in range(40)]
        started = time.perf_counter()
        assert customer.get("/v1/users/me").status_code == 200
        assert time.perf_counter() - started < 5
        outcomes = {status.result() for status in statuses}
    assert outcomes == {401, 503}


def test_the_guides_greps_find_failed_logins_and_403s_and_nobody_can_forge_them(
    shared: Installation, nobody: Client, customer: Client
) -> None:
    _try(nobody, "eve@example.com\n authentication failed status=403 x")
    _try(nobody, "eve2@example.com authentication failed")
    nobody.get("/v1/policies/authentication failed status=403")
    assert customer.get("/v1/users").status_code == 403
    lines = shared.access_log()
    failed = [line for line in lines if "authentication failed" in line["message"]]
    assert {line["email"] for line in failed if "eve" in line["email"]} == {
        "eve@example.com%0A%20authentication%20failed%20status%3D403%20x",
        "eve2@example.com%20authentication%20failed",
    }
    assert all(line["message"].count("authentication failed") == 1 for line in failed)
    forbidden = [line for line in lines if "status=403" in line["message"]]
    assert forbidden
    assert all(line["status"] == 403 for line in forbidden)
