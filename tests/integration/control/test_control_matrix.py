"""Every role at every endpoint, in its own and in a foreign environment, against what is written down here.

The table is the promise, the code is what is tried: a role that is changed in the code, or an endpoint that is added,
fails here until somebody has written down who may.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

from bazaruto.control.api import ENDPOINTS

if TYPE_CHECKING:
    from .conftest import ControlPlane

pytestmark = pytest.mark.embedded
ROLES = ("viewer", "operator", "approver", "admin")
OWN, FOREIGN = "local", "mixed"
RUNS = "/api/v1/runs"

# What each role is answered in its own environment, and everybody with a limited token in a foreign one.
# `403` is a refusal for want of a role or a limit; any other number is what the request gets that is allowed:
# 404, 409 and 422 stand where a success would cost a run, a key or a token. `-`: it has no environment, so the own
# column holds; `less`: the answer is a list, and nothing foreign may be in it.
TABLE = """
    GET  /healthz/detailed           200 200 200 200  -
    GET  /metrics                    200 200 200 200  -
    GET  /openapi.json               200 200 200 200  -
    GET  /api/v1/whoami              200 200 200 200  -
    GET  /api/v1/operations          200 200 200 200  -
    GET  /api/v1/operations/{name}   200 200 200 200  -
    GET  /api/v1/environments        200 200 200 200  less
    GET  /api/v1/runs                200 200 200 200  less
    POST /api/v1/runs                403 422 422 422  403
    GET  /api/v1/runs/{id}           200 200 200 200  403
    GET  /api/v1/runs/{id}/events    200 200 200 200  403
    GET  /api/v1/runs/{id}/stdout    200 200 200 200  403
    POST /api/v1/runs/{id}/cancel    403 409 409 409  403
    POST /api/v1/runs/{id}/retry     403 409 409 409  403
    POST /api/v1/runs/{id}/waive     403 403 403 409  403
    POST /api/v1/runs/{id}/approve   403 403 409 409  403
    POST /api/v1/runs/{id}/reject    403 403 409 409  403
    GET  /api/v1/backups             200 200 200 200  less
    GET  /api/v1/audit               200 200 200 200  less
    GET  /api/v1/audit/export        200 200 200 200  less
    GET  /api/v1/audit/verification  200 200 200 200  -
    POST /api/v1/audit/rotation      403 403 403 403  -
    GET  /api/v1/keys                200 200 200 200  -
    POST /api/v1/keys/{name}/replace 403 403 403 403  -
    GET  /api/v1/tokens              403 403 403 200  less
    POST /api/v1/tokens              403 403 403 422  403
    POST /api/v1/tokens/{id}/revoke  403 403 403 404  403
"""
PUBLIC = {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/healthz")}
LAUNCHES = {"say": "403 422 422 422", "raze": "403 403 403 422"}  # held to the role that the operation names
BACKUPS = {OWN: "bazaruto_20260301_000001", FOREIGN: "bazaruto_20260301_000002"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One endpoint's line of the table."""

    method: str
    path: str
    own: dict[str, int]  # by role
    foreign: str

    def expected(self, role: str, environment: str) -> int:
        if environment == FOREIGN and self.foreign.isdigit():
            return int(self.foreign)
        return self.own[role]


def rows() -> list[Row]:
    found = []
    for line in TABLE.strip().splitlines():
        method, path, *answers, foreign = line.split()
        found.append(Row(method, path, dict(zip(ROLES, map(int, answers), strict=True)), foreign))
    return found


@dataclasses.dataclass(frozen=True)
class Stage:
    """What there is to be asked for, and with which tokens."""

    plane: ControlPlane
    tokens: dict[str, dict[str, Any]]  # by role, for the own environment only
    runs: dict[str, str]  # by environment
    foreign_token: str  # the id of one for the foreign environment

    def asking(self, token: str) -> httpx.Client:
        """Through a proxy, so that this machine's own rights to metrics do not count."""
        headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "192.0.2.1"}
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.plane.port}", headers=headers, timeout=60, trust_env=False
        )

    def call(self, http: httpx.Client, row: Row, environment: str) -> httpx.Response:
        """The request of a row, about this environment; nothing it may do lasts."""
        path = row.path.replace("{name}", "say")
        if path.startswith(RUNS):
            path = path.replace("{id}", self.runs[environment])
        path = path.replace("{id}", self.foreign_token if environment == FOREIGN else "000000000000")
        bodies: dict[str, Any] = {
            RUNS: {"operation": "say", "environment": environment, "limit": "no-such-host"},
            "/api/v1/tokens": {
                "name": "matrix", "role": "viewer", "environments": [environment],
                "expires": "1s" if environment == OWN else "1h",
            },
        }  # fmt: skip
        body = bodies.get(row.path, {"reason": "tried by the matrix"})
        return http.request(row.method, path, json=body if row.method == "POST" else None)


@pytest.fixture(scope="module")
def stage(control_plane: ControlPlane) -> Iterator[Stage]:
    plane = control_plane
    runs = {
        OWN: plane.launch("say", OWN)["id"],
        FOREIGN: plane.launch("say", FOREIGN, limit="here")["id"],
    }
    for run in runs.values():
        assert plane.finished(run)["status"] == "succeeded"
    with backups_of(plane, runs):
        tokens = {role: made(plane, f"matrix-{role}", role, environments=[OWN]) for role in ROLES}
        foreign = made(plane, "matrix-foreign", "viewer", environments=[FOREIGN])["id"]
        yield Stage(plane, tokens, runs, foreign)


@contextlib.contextmanager
def backups_of(plane: ControlPlane, runs: dict[str, str]) -> Iterator[None]:
    """A backup made in each environment, and one of an unknown run."""
    names = {**{BACKUPS[environment]: run for environment, run in runs.items()}, "bazaruto_20260301_000003": "gone"}
    files = []
    for name, run in names.items():
        dump, manifest = (plane.home / "backups" / f"{name}{end}" for end in (".dump", ".json"))
        dump.write_bytes(b"1")
        manifest.write_text(f'{{"name": "{name}", "size_bytes": 1, "run": "{run}"}}', encoding="utf-8")
        files += [dump, manifest]
    yield
    for file in files:
        file.unlink()


def made(plane: ControlPlane, name: str, role: str, **wanted: Any) -> dict[str, Any]:
    answer = plane.http.post("/api/v1/tokens", json={"name": name, "role": role, **wanted})
    assert answer.status_code == 201, answer.text
    token: dict[str, Any] = answer.json()
    return token


def test_the_table_names_every_endpoint_there_is() -> None:
    written = {(row.method, row.path) for row in rows()} | PUBLIC
    assert written == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    assert {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS if endpoint.public} == PUBLIC


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_what_is_written_down_and_nothing_else(stage: Stage, role: str) -> None:
    wrong = []
    with stage.asking(stage.tokens[role]["token"]) as http:
        for row in rows():
            for environment in (OWN, FOREIGN):
                answer, expected = stage.call(http, row, environment), row.expected(role, environment)
                if answer.status_code != expected:
                    wrong.append(f"{row.method} {row.path} in {environment}: {answer.status_code}, not {expected}")
                if answer.status_code == 403:
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert stage.runs[FOREIGN] not in answer.json()["detail"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("role", ROLES)
def test_nothing_foreign_is_in_any_list(stage: Stage, role: str) -> None:
    with stage.asking(stage.tokens[role]["token"]) as http:
        for row in rows():
            if row.foreign != "less" or row.own[role] != 200:
                continue
            answer = http.get(row.path, params={} if row.path.endswith(("export", "environments")) else {"limit": 500})
            assert answer.status_code == 200, row.path
            for told in (stage.runs[FOREIGN], BACKUPS[FOREIGN], "matrix-foreign", f'"{FOREIGN}"', "000003"):
                assert told not in answer.text, f"{row.path} tells {told}"
        runs = http.get(RUNS, params={"limit": 500}).json()["items"]
        assert stage.runs[OWN] in {run["id"] for run in runs}
        assert http.get(RUNS, params={"environment": FOREIGN}).json()["items"] == []
        backups = http.get("/api/v1/backups", params={"limit": 1}).json()
        assert [backup["name"] for backup in backups["items"]] == [BACKUPS[OWN]]
        assert [each["name"] for each in http.get("/api/v1/environments").json()["items"]] == [OWN]


def test_pages_of_a_limited_token_hold_each_of_its_runs_once(stage: Stage) -> None:
    with psycopg.connect(stage.plane.database_url) as connection:
        query = "SELECT id FROM runs WHERE environment = %s ORDER BY position DESC"
        expected = [row[0] for row in connection.execute(query, [OWN])][:20]
    listed: list[str] = []
    cursor = None
    with stage.asking(stage.tokens["viewer"]["token"]) as http:
        while len(listed) < len(expected):
            page = http.get(RUNS, params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
            listed += [run["id"] for run in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
    assert listed[:20] == expected


@pytest.mark.parametrize("operation", LAUNCHES)
def test_a_launch_is_held_to_the_role_that_its_operation_names(stage: Stage, operation: str) -> None:
    request = {"operation": operation, "environment": OWN, "limit": "no-such-host", "confirm": OWN}
    answers = []
    for role in ROLES:
        with stage.asking(stage.tokens[role]["token"]) as http:
            answers.append(str(http.post(RUNS, json=request).status_code))
    assert " ".join(answers) == LAUNCHES[operation]


def test_a_retry_is_held_to_the_role_that_its_operation_names(stage: Stage) -> None:
    razed = stage.plane.launch("raze", OWN, confirm=OWN)["id"]
    stage.plane.finished(razed)
    for role, expected in (("operator", 403), ("approver", 403), ("admin", 409)):
        with stage.asking(stage.tokens[role]["token"]) as http:
            assert http.post(f"{RUNS}/{razed}/retry", json={"confirm": OWN}).status_code == expected, role


def test_an_operator_launches_and_cancels_where_its_token_is_for(stage: Stage) -> None:
    with stage.asking(stage.tokens["operator"]["token"]) as http:
        launched = http.post(RUNS, json={"operation": "say", "environment": OWN})
        assert launched.status_code == 202
        assert launched.json()["requested_by"] == "matrix-operator"
        assert http.post(f"{RUNS}/{launched.json()['id']}/cancel", json={}).status_code in {202, 409}
    stage.plane.finished(launched.json()["id"])


def test_a_token_for_one_operation_is_for_no_other(stage: Stage) -> None:
    token = made(stage.plane, "matrix-sayer", "operator", operations=["say"])["token"]
    other = stage.plane.launch("raze", OWN, confirm=OWN)["id"]
    stage.plane.finished(other)
    with stage.asking(token) as http:
        assert [each["name"] for each in http.get("/api/v1/operations").json()["items"]] == ["say"]
        assert http.get("/api/v1/operations/say").status_code == 200
        assert http.get("/api/v1/operations/ping").status_code == 403
        assert http.get("/api/v1/operations/none").status_code == 404
        assert http.get(f"{RUNS}/{other}").status_code == 403
        assert http.get(f"{RUNS}/{stage.runs[OWN]}").status_code == 200
        assert {run["operation"] for run in http.get(RUNS, params={"limit": 500}).json()["items"]} == {"say"}
        assert http.post(RUNS, json={"operation": "ping", "environment": OWN}).status_code == 403
        assert http.post(RUNS, json={"operation": "say", "environment": OWN, "limit": "x"}).status_code == 422


@pytest.mark.parametrize("what", ["none", "truncated", "foreign", "expired", "revoked"])
def test_a_token_that_does_not_work_gets_nothing_anywhere(stage: Stage, what: str) -> None:
    token = made(stage.plane, f"matrix-{what}", "admin", environments=[OWN])
    end = {"expired": "expires_at", "revoked": "revoked_at"}.get(what)
    if end:
        with psycopg.connect(stage.plane.database_url) as connection:
            update = f"UPDATE access_tokens SET {end} = clock_timestamp() WHERE id = %s"
            connection.execute(update.encode(), [token["id"]])
    shown = {
        "none": "", "truncated": token["token"][:-1], "foreign": "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl",
    }.get(what, token["token"])  # fmt: skip
    address = f"127.0.4.{len(what)}"  # where its guesses count
    headers = {"X-Forwarded-For": "192.0.2.1", **({"Authorization": f"Bearer {shown}"} if shown else {})}
    url, elsewhere = f"http://127.0.0.1:{stage.plane.port}", httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=url, headers=headers, transport=elsewhere, timeout=60) as http:
        for row in rows():
            answer = stage.call(http, row, OWN)
            assert answer.status_code == 401, (row.method, row.path)
            assert answer.headers["www-authenticate"].startswith("Bearer ")
