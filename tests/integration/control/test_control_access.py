"""Tokens: made once, held to their role, limits and time, revoked at once; logins; who guesses is kept out."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pty
import re
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

from bazaruto.control.throttle import Throttle

if TYPE_CHECKING:
    from .conftest import ControlPlane

pytestmark = pytest.mark.embedded
RUNS, TOKENS, WHOAMI = "/api/v1/runs", "/api/v1/tokens", "/api/v1/whoami"


def made(plane: ControlPlane, name: str, role: str, **wanted: Any) -> dict[str, Any]:
    answer = plane.http.post(TOKENS, json={"name": name, "role": role, **wanted})
    assert answer.status_code == 201, answer.text
    token: dict[str, Any] = answer.json()
    return token


def asking(plane: ControlPlane, token: str, address: str = "127.0.0.1") -> httpx.Client:
    """A client with this token; at another address guesses are counted apart."""
    return httpx.Client(
        base_url=f"http://127.0.0.1:{plane.port}",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        transport=httpx.HTTPTransport(local_address=address),
    )


def sql(plane: ControlPlane, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(plane.database_url) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def with_another_end(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


def fields(answer: httpx.Response) -> set[str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["field"] for error in answer.json()["errors"]}


def test_a_token_is_shown_once_and_kept_nowhere(control_plane: ControlPlane) -> None:
    token = made(control_plane, "once", "viewer", environments=["local"], expires="30d")
    secret = token["token"].split("_", 2)[2]
    assert (token["status"], token["created_by"], token["environments"]) == ("working", "admin", ["local"])
    listed = control_plane.http.get(TOKENS, params={"limit": 500}).json()["items"]
    mine = next(each for each in listed if each["id"] == token["id"])
    assert mine == {name: value for name, value in token.items() if name != "token"}
    everything = sql(control_plane, "SELECT access_tokens::text FROM access_tokens")
    assert everything
    assert secret not in str(everything)
    for log in (control_plane.home / "log").iterdir():
        assert secret not in log.read_text(encoding="utf-8"), log


def test_a_token_says_when_it_was_used_last(control_plane: ControlPlane) -> None:
    token = made(control_plane, "used", "viewer")

    def last_used() -> Any:
        return sql(control_plane, "SELECT last_used_at FROM access_tokens WHERE id = %s", token["id"])[0][0]

    assert last_used() is None
    with asking(control_plane, token["token"]) as http:
        assert http.get(WHOAMI).json()["name"] == "used"
        first = last_used()
        assert first is not None
        assert http.get(WHOAMI).status_code == 200
        assert last_used() == first, "written once a minute, so that reads cost nothing"
        earlier = "UPDATE access_tokens SET last_used_at = last_used_at - interval '61 s' WHERE id = %s"
        sql(control_plane, earlier, token["id"])
        assert http.get(WHOAMI).status_code == 200
        assert last_used() > first


@pytest.mark.parametrize(
    ("wanted", "wrong"),
    [
        ({}, {"name", "role"}),
        ({"name": "Not A Name", "role": "king"}, {"name", "role"}),
        ({"name": "", "role": "viewer"}, {"name"}),
        ({"name": "x" * 64, "role": "viewer"}, {"name"}),
        ({"name": "a", "role": "viewer", "environments": []}, {"environments"}),
        ({"name": "a", "role": "viewer", "operations": []}, {"operations"}),
        (
            {"name": "a", "role": "viewer", "environments": ["mars"], "operations": ["fly"]},
            {"environments", "operations"},
        ),
        ({"name": "a", "role": "viewer", "environments": "local"}, {"environments"}),
        ({"name": "a", "role": "viewer", "expires": "59s"}, {"expires"}),
        ({"name": "a", "role": "viewer", "expires": "3651d"}, {"expires"}),
        ({"name": "a", "role": "viewer", "expires": "soon"}, {"expires"}),
        ({"name": "a", "role": "viewer", "expires": "-1d"}, {"expires"}),
        ({"name": "a", "role": "viewer", "token": "mine"}, {"token"}),
    ],
)
def test_a_wrong_token_is_refused_by_field(
    control_plane: ControlPlane, wanted: dict[str, Any], wrong: set[str]
) -> None:
    before = sql(control_plane, "SELECT count(*) FROM access_tokens")
    answer = control_plane.http.post(TOKENS, json=wanted)
    assert answer.status_code == 422, answer.text
    assert fields(answer) == wrong
    assert sql(control_plane, "SELECT count(*) FROM access_tokens") == before


def test_expiry_is_judged_by_the_databases_clock(control_plane: ControlPlane) -> None:
    token = made(control_plane, "brief", "viewer", expires="1m")
    with asking(control_plane, token["token"]) as http:
        assert http.get(WHOAMI).status_code == 200
        sql(control_plane, "UPDATE access_tokens SET expires_at = clock_timestamp() WHERE id = %s", token["id"])
        expired = http.get(WHOAMI)
    assert expired.status_code == 401
    assert "expired" in expired.json()["detail"]
    listed = control_plane.http.get(TOKENS).json()["items"]
    assert {each["id"]: each["status"] for each in listed}[token["id"]] == "expired"


def test_a_revoked_token_is_refused_at_once_and_its_open_stream_ends(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    token = made(control_plane, "leaving", "viewer")
    run = control_plane.launch("slow", parameters={"file": str(tmp_path / "go")})["id"]
    control_plane.with_status(run, "running")
    as_stream = {"Accept": "text/event-stream"}
    with (
        asking(control_plane, token["token"]) as http,
        http.stream("GET", f"{RUNS}/{run}/events", headers=as_stream) as stream,
    ):
        parts = stream.iter_bytes()
        assert stream.status_code == 200
        assert next(parts)
        revoked = control_plane.http.post(f"{TOKENS}/{token['id']}/revoke", json={"reason": "left"})
        since = time.monotonic()
        assert revoked.json()["status"] == "revoked"
        assert (revoked.json()["revoked_by"], revoked.json()["revoke_reason"]) == ("admin", "left")
        refused = http.get(WHOAMI)
        assert refused.status_code == 401
        assert "revoked" in refused.json()["detail"]
        assert b"event: end" not in b"".join(parts)
        assert time.monotonic() - since < 5
    assert control_plane.run(run)["status"] == "running", "the stream did not end because the run did"
    (tmp_path / "go").touch()
    assert control_plane.finished(run)["status"] == "succeeded"
    again = control_plane.http.post(f"{TOKENS}/{token['id']}/revoke", json={})
    assert again.status_code == 409
    assert control_plane.http.post(f"{TOKENS}/000000000000/revoke", json={}).status_code == 404


def test_the_last_unlimited_admin_token_that_works_cannot_be_revoked(control_plane: ControlPlane) -> None:
    last = control_plane.token.split("_")[1]
    others = "role = 'admin' AND environments = '{}' AND operations = '{}' AND revoked_at IS NULL"
    assert sql(control_plane, f"SELECT id FROM access_tokens WHERE {others}") == [(last,)]
    made(control_plane, "local-admin", "admin", environments=["local"])
    expired = made(control_plane, "gone-admin", "admin", expires="1m")["id"]
    sql(control_plane, "UPDATE access_tokens SET expires_at = clock_timestamp() WHERE id = %s", expired)
    refused = control_plane.http.post(f"{TOKENS}/{last}/revoke", json={})
    assert refused.status_code == 409
    assert "bazaruto token create" in refused.json()["detail"]
    # Two that revoke each other at the same moment: one of them stays.
    first, second = (made(control_plane, f"admin-{number}", "admin") for number in (1, 2))
    sql(control_plane, "UPDATE access_tokens SET expires_at = clock_timestamp() WHERE id = %s", last)
    try:
        with asking(control_plane, first["token"]) as one, asking(control_plane, second["token"]) as two:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                answers = [
                    pool.submit(http.post, f"{TOKENS}/{other['id']}/revoke", json={})
                    for http, other in ((one, second), (two, first))
                ]
            assert 200 in [answer.result().status_code for answer in answers]
        left = sql(control_plane, f"SELECT id FROM access_tokens WHERE {others} AND expires_at IS NULL")
        assert len(left) == 1
    finally:
        sql(control_plane, "UPDATE access_tokens SET expires_at = NULL WHERE id = %s", last)


def test_an_admin_gives_nothing_beyond_its_own_limits(control_plane: ControlPlane) -> None:
    limited = made(control_plane, "local-admin", "admin", environments=["local"], operations=["say"], expires="1h")
    stranger = made(control_plane, "stranger", "viewer", environments=["mixed"], operations=["say"])
    with asking(control_plane, limited["token"]) as http:
        within = {"name": "below", "role": "admin", "environments": ["local"], "operations": ["say"], "expires": "30m"}
        assert http.post(TOKENS, json=within).status_code == 201
        for beyond in (
            {"environments": None},
            {"environments": ["local", "mixed"]},
            {"operations": None},
            {"operations": ["say", "raze"]},
            {"expires": None},
            {"expires": "2h"},
        ):
            refused = http.post(TOKENS, json={**within, **beyond})
            assert refused.status_code == 403, beyond
            assert refused.headers["content-type"] == "application/problem+json"
        assert http.post(f"{TOKENS}/{stranger['id']}/revoke", json={}).status_code == 403
        assert http.post(f"{TOKENS}/{control_plane.token.split('_')[1]}/revoke", json={}).status_code == 403
        seen = {each["name"] for each in http.get(TOKENS, params={"limit": 500}).json()["items"]}
        assert seen >= {"local-admin", "below"}
        assert not seen & {"admin", "stranger"}


def test_what_is_done_with_tokens_is_in_the_audit_without_their_secrets(control_plane: ControlPlane) -> None:
    token = made(control_plane, "audited", "admin", environments=["local"])
    with asking(control_plane, token["token"]) as http:
        assert http.post(TOKENS, json={"name": "beyond", "role": "viewer"}).status_code == 403
    control_plane.http.post(f"{TOKENS}/{token['id']}/revoke", json={"reason": "audited"})
    entries = control_plane.http.get("/api/v1/audit", params={"limit": 50}).json()["items"]
    mine = [(each["action"], each["actor"], each["target"], each["outcome"]) for each in entries][:3][::-1]
    assert mine == [
        ("token.create", "admin", token["id"], "accepted"),
        ("token.create", "audited", "beyond", "refused"),
        ("token.revoke", "admin", token["id"], "accepted"),
    ]
    assert token["token"].split("_", 2)[2] not in str(entries)


def test_tokens_are_listed_newest_first_in_pages(control_plane: ControlPlane) -> None:
    ids = [made(control_plane, f"page-{number}", "viewer")["id"] for number in range(3)]
    listed: list[str] = []
    cursor = None
    while cursor is not None or not listed:
        page = control_plane.http.get(TOKENS, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        listed += [each["id"] for each in page["items"]]
        cursor = page["next"]
    assert listed[:3] == ids[::-1]
    assert len(listed) == len(set(listed)) == sql(control_plane, "SELECT count(*) FROM access_tokens")[0][0]
    assert control_plane.http.get(TOKENS, params={"cursor": "nonsense"}).status_code == 422


def test_the_version_before_takes_no_token_that_has_a_role(control_plane: ControlPlane) -> None:
    """It knows no roles: a viewer would be an admin there, while it still runs beside this one."""
    import hashlib

    token = made(control_plane, "late", "viewer")
    as_before = hashlib.sha256(token["token"].split("_", 2)[2].encode()).digest()
    assert bytes(sql(control_plane, "SELECT hash FROM access_tokens WHERE id = %s", token["id"])[0][0]) != as_before
    sql(control_plane, "UPDATE access_tokens SET hash = %s WHERE id = %s", as_before, token["id"])
    with asking(control_plane, token["token"]) as http:
        assert http.get(WHOAMI).status_code == 200, "one that the version before made goes on working"


def test_who_guesses_the_secret_of_a_token_is_kept_out_and_nobody_else(control_plane: ControlPlane) -> None:
    token, other = (made(control_plane, name, "viewer")["token"] for name in ("guessed", "neighbour"))
    address = "127.0.2.1"
    with asking(control_plane, with_another_end(token), address) as http:
        assert [http.get(WHOAMI).status_code for _ in range(10)] == [401] * 10
        refused = http.get(WHOAMI)
    assert refused.status_code == 429
    assert 800 < int(refused.headers["retry-after"]) <= 900
    assert refused.headers["content-type"] == "application/problem+json"
    with asking(control_plane, token, address) as http:
        assert http.get(WHOAMI).status_code == 429, "a right guess must look like a wrong one"
    with asking(control_plane, other, address) as http:
        assert http.get(WHOAMI).status_code == 200, "somebody else's token at the same address"
    with asking(control_plane, token, "127.0.2.2") as http:
        assert http.get(WHOAMI).status_code == 200, "the same token at another address"


def test_who_tries_tokens_that_there_are_not_is_kept_out_and_nobody_else(control_plane: ControlPlane) -> None:
    token = made(control_plane, "bystander", "viewer")["token"]
    for number, guess in enumerate(["bzr_000000000000_" + "a" * 43, "nonsense"]):
        address = f"127.0.3.{number + 1}"
        with asking(control_plane, guess, address) as http:
            assert {http.get(WHOAMI).status_code for _ in range(60)} == {401}
            refused = http.get(WHOAMI)
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 60
        with asking(control_plane, token, address) as http:
            assert http.get(WHOAMI).status_code == 200


def test_a_throttle_counts_each_key_apart_and_forgets_in_time() -> None:
    throttle = Throttle(2, 0.2)
    assert (throttle.take("a"), throttle.take("a")) == (0.0, 0.0)
    assert 0 < throttle.take("a") <= 0.2
    assert throttle.take("b") == 0.0
    deadline = time.monotonic() + 5
    while throttle.wait("a"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert throttle.take("a") == 0.0


def test_a_token_that_asks_too_often_waits_and_the_command_line_goes_on(
    control_plane_of_ones_own: ControlPlane,
) -> None:
    plane = control_plane_of_ones_own
    busy, calm = (made(plane, name, "viewer")["token"] for name in ("busy", "calm"))
    plane.stop("serve")
    plane.extra_environment["BAZARUTO_CONTROL_REQUESTS_PER_SECOND"] = "1"
    plane.start("serve")
    with asking(plane, busy) as http, asking(plane, calm) as other:
        assert {http.get(WHOAMI).status_code for _ in range(10)} == {200}
        refused = http.get(WHOAMI)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 10
        assert other.get(WHOAMI).status_code == 200
    login = logged_in(plane, busy, {})
    assert login.returncode == 0, login.stderr
    assert "busy (viewer)" in login.stdout


def test_the_command_line_prints_a_token_alone_and_once(control_plane: ControlPlane) -> None:
    done = control_plane.cli(
        "token", "create", "printed", "--role", "operator", "--environment", "local", "--operation", "say",
        "--expires", "12h",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"bzr_[a-z0-9]{12}_[A-Za-z0-9_-]{43}\n", done.stdout)
    with asking(control_plane, done.stdout.strip()) as http:
        assert http.get(WHOAMI).json() == {
            "name": "printed",
            "role": "operator",
            "token": done.stdout.split("_")[1],
            "environments": ["local"],
            "operations": ["say"],
        }
    one = json.loads(control_plane.cli("token", "create", "printed", "--role", "viewer", "-o", "json").stdout)
    assert one["token"].startswith(f"bzr_{one['id']}_")
    listed = control_plane.cli("token", "list")
    assert one["id"] in listed.stdout
    assert one["token"] not in listed.stdout
    assert json.loads(control_plane.cli("token", "list", "-o", "json").stdout)["items"][0]["id"] == one["id"]
    assert control_plane.cli("token", "revoke", one["id"], "--reason", "done").returncode == 0
    again = control_plane.cli("token", "revoke", one["id"])
    assert (again.returncode, again.stdout) == (2, "")
    wrong = control_plane.cli("token", "create", "x", "--role", "king")
    assert wrong.returncode == 2
    assert "role" in wrong.stderr


def test_file_permission_makes_an_admin_also_when_no_token_works_any_more(
    control_plane_of_ones_own: ControlPlane,
) -> None:
    plane = control_plane_of_ones_own
    lost = plane.token
    sql(plane, "UPDATE access_tokens SET expires_at = clock_timestamp()")
    assert plane.cli("whoami").returncode == 2
    done = plane.cli("token", "admin", "-o", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["revoked"] == lost.split("_")[1]
    assert plane.token != lost
    assert stat.S_IMODE((plane.home / "control" / "admin.token").stat().st_mode) == 0o600
    whoami = json.loads(plane.cli("whoami", "-o", "json").stdout)
    assert (whoami["name"], whoami["role"], whoami["token"]) == ("admin", "admin", said["id"])
    sql(plane, "UPDATE access_tokens SET expires_at = NULL")
    with asking(plane, lost) as http:
        assert http.get(WHOAMI).status_code == 401, "the one it replaced is revoked"
    (plane.home / "control" / "admin.token").unlink()
    plane.stop("serve")
    assert plane.cli("token", "admin").returncode == 0, "no API is needed, nor the token that was lost"
    plane.start("serve")
    assert plane.cli("whoami").returncode == 0


@pytest.fixture
def configuration(tmp_path: Path) -> dict[str, str]:
    """Where one user's login lies."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "configuration")}


def logged_in(
    plane: ControlPlane, token: str, configuration: dict[str, str], *words: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bazaruto", "login", *words],
        input=f"{token}\n",
        env={**plane.environment, **configuration},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_login_is_a_private_file_that_commands_use_until_logout(
    control_plane: ControlPlane, configuration: dict[str, str]
) -> None:
    token = made(control_plane, "ana", "viewer")["token"]
    done = logged_in(control_plane, token, configuration)
    assert done.returncode == 0, done.stderr
    file = Path(configuration["XDG_CONFIG_HOME"], "bazaruto", "login.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    whoami = json.loads(control_plane.cli("whoami", "-o", "json", **configuration).stdout)
    assert (whoami["name"], whoami["role"], whoami["from"]) == ("ana", "viewer", str(file))
    launch = control_plane.cli("run", "say", **configuration)
    assert launch.returncode == 2
    assert "operator" in launch.stderr
    file.chmod(0o640)
    exposed = control_plane.cli("whoami", **configuration)
    assert exposed.returncode == 2
    assert str(file) in exposed.stderr
    assert exposed.stderr.count("\n") == 1
    assert control_plane.cli("logout", **configuration).returncode == 0
    assert not file.exists()
    assert json.loads(control_plane.cli("whoami", "-o", "json", **configuration).stdout)["name"] == "admin"
    assert control_plane.cli("logout", **configuration).returncode == 0


def test_login_asks_at_a_terminal_without_echo(control_plane: ControlPlane, configuration: dict[str, str]) -> None:
    token = made(control_plane, "bea", "viewer")["token"]
    here, there = pty.openpty()
    process = subprocess.Popen(
        ["bazaruto", "login"],
        stdin=there, stdout=subprocess.PIPE, stderr=there,
        env={**control_plane.environment, **configuration}, start_new_session=True,
    )  # fmt: skip
    shown = b""
    while not shown.endswith(b"Token: "):  # what is typed before that is thrown away
        shown += os.read(here, 1000)
    os.write(here, f"{token}\n".encode())
    out, _ = process.communicate(timeout=90)
    os.close(there)
    shown += os.read(here, 10_000)
    os.close(here)
    assert process.returncode == 0, shown
    assert b"as bea (viewer)" in out
    assert token.encode() not in shown + out


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        ((), "bzr_000000000000_" + "a" * 43, "valid token"),
        ((), "bzr_0000", "no token"),
        ((), "", "no token"),
        (("--url", "http://192.0.2.1:8081"), "", "not encrypted"),
        (("--url", "http://localhost.example.org:8081"), "", "not encrypted"),
        (("--url", "https://user:word@example.org"), "", "not the URL"),
        (("--url", "ftp://127.0.0.1"), "", "not the URL"),
        (("--url", "https://[::1"), "", "no URL"),
    ],
)
def test_a_login_that_cannot_work_is_refused_and_leaves_nothing(
    control_plane: ControlPlane, configuration: dict[str, str], words: tuple[str, ...], token: str, said: str
) -> None:
    done = logged_in(control_plane, token, configuration, *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path(configuration["XDG_CONFIG_HOME"]).exists()
