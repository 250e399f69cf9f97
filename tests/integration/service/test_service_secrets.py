"""Secrets planted wherever a client or a setting can put one are found in no log and in no answer."""

from __future__ import annotations

from collections.abc import Callable

from .conftest import PASSWORD, Installation, claim_on, new_policy

PLANTED = "PLANTED-hunter2-PLANTED"


def _written(site: Installation) -> str:
    """Everything the installation's processes wrote: logs and standard error."""
    files = [*(site.home / "log").iterdir(), *site.home.glob("*.stderr")]
    return "".join(file.read_text() for file in files)


def test_no_secret_of_a_client_is_logged_at_any_level(install: Callable[..., Installation]) -> None:
    site = install(BAZARUTO_LOG_LEVEL="debug")
    client = site.serve()
    admin = client.login(site.add_user("admin"))
    token = admin.token or ""
    answers = [
        client.post("/v1/auth/login", json={"email": "a@example.com", "password": PLANTED}),
        client.post("/v1/auth/login", json={"email": PLANTED, "password": "swapped fields"}),
        client.post("/v1/auth/login", json={"email": "a@example.com", "password": [PLANTED]}),
        client.post("/v1/auth/login", json={"email": "a@example.com", "password": "x", "extra": PLANTED}),
        client.post(
            "/v1/auth/login", content=f'{{"password": "{PLANTED}"', headers={"Content-Type": "application/json"}
        ),
        admin.post("/v1/users", json={"email": "b@example.com", "name": "B", "password": PLANTED}),
        admin.post("/v1/users", json={"email": "B@example.com", "name": "B", "password": PLANTED}),
        admin.post("/v1/users", json={"email": "c@example.com", "name": "", "password": PLANTED}),
        client.post("/v1/auth/login", json={"email": "b@example.com", "password": PLANTED}),
        client.get("/v1/users/me", headers={"Authorization": f"Bearer bz_{PLANTED}"}),
        client.get("/v1/users/me", headers={"Authorization": f"Basic {PLANTED}", "Cookie": f"s={PLANTED}"}),
        client.get(f"/v1/users?token={token}&password={PLANTED}"),
        client.get("/v1/users", headers={"X-Request-Id": token, "User-Agent": PLANTED, "Referer": token}),
    ]
    assert [answer.status_code for answer in answers] == [
        401,
        401,
        422,
        422,
        400,
        201,
        409,
        422,
        200,
        401,
        401,
        401,
        401,
    ]
    assert PLANTED not in "".join(answer.text for answer in answers)
    assert client.get(f"/v1/users/{token}").status_code == 401
    assert admin.get(f"/nothing/{token}").status_code == 404
    hook = admin.post("/v1/webhooks", json={"url": "https://x.invalid/", "events": ["claim.submitted"]}).json()
    admin.post("/v1/claims", json=claim_on(new_policy(admin, admin)))
    worker = site.worker()
    assert hook["secret"] not in admin.get("/v1/webhooks").text
    worker.terminate()
    assert worker.wait(20) == 0
    written = _written(site)
    assert "authentication failed" in written
    for secret in (PLANTED, PASSWORD, token, hook["secret"], "$argon2id$"):
        assert secret not in written, secret


def test_no_password_of_a_server_is_logged_or_answered(install: Callable[..., Installation]) -> None:
    site = install(
        BAZARUTO_LOG_LEVEL="debug",
        BAZARUTO_DATABASE_URL=f"postgresql://bazaruto:{PLANTED}@127.0.0.1:1/bazaruto",
        BAZARUTO_REDIS_URL=f"redis://:{PLANTED}@127.0.0.1:1/0",
        BAZARUTO_DB_ACQUIRE_TIMEOUT="1s",
    )
    client = site.serve()
    paths = (
        "/healthz",
        "/healthz/detailed",
        "/readyz",
        "/healthz/jobs",
        "/metrics",
        "/debug/pprof/heap",
        "/v1/users/me",
    )
    answers = [client.get(path, headers={"Authorization": "Bearer bz_" + "A" * 43}) for path in paths]
    answers.append(client.post("/v1/auth/login", json={"email": "a@example.com", "password": "x"}))
    assert [answer.status_code for answer in answers] == [503, 503, 503, 503, 200, 200, 503, 503]
    assert client.terminate() == 0
    command = site.bazarutod("migrate")
    assert command.returncode == 1
    assert PLANTED not in _written(site) + command.stderr + "".join(answer.text for answer in answers)
