"""Bad input ends in a clear refusal, never in 500; every error is a problem."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import bottle
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, ConfigDict, Field

from bazaruto import database, web

from .serving import Serving, json_lines, serving


class Address(BaseModel):
    """A nested object."""

    city: str


class Thing(BaseModel):
    """What /things takes."""

    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(min_length=1, max_length=50)]
    amount: Annotated[int, Field(ge=1, le=2**53)]
    on: dt.date | None = None
    address: Address | None = None


class Filter(BaseModel):
    """What GET /things takes."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    status: Literal["open", "closed"] | None = None


def add_routes(app: web.App) -> None:
    """Routes that use every convention."""

    @app.post("/things")
    def create() -> bottle.HTTPResponse:
        return bottle.HTTPResponse(web.json_body(Thing), 201, {"Location": "/things/1"})

    @app.get("/things")
    def find() -> dict[str, Any]:
        return web.query(Filter).model_dump()

    @app.get("/things/<name>")
    def show(name: str) -> dict[str, Any]:
        return {"name": name, "at": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "id": uuid.UUID(int=1)}

    @app.get("/cursor")
    def cursor() -> dict[str, Any]:
        at, identity = web.decode_cursor(bottle.request.query.cursor, dt.datetime, uuid.UUID)
        return {"at": at, "id": identity}

    @app.get("/raise/<what>")
    def fail(what: str) -> None:
        web.set_user("user-1")
        raise FAILURES[what]


FAILURES: dict[str, Exception] = {
    "problem": web.Problem(409, "Clash", "It exists.", [("name", "is taken")], {"X-Extra": "1"}),
    "bug": ZeroDivisionError("password=hunter2"),
    "held": database.WritesHeld(),
    "pool": PoolTimeout("no connection"),
    "lost": psycopg.OperationalError("server closed the connection"),
    "shutdown": psycopg.errors.AdminShutdown("shut down"),
    "read_only": psycopg.errors.ReadOnlySqlTransaction("read-only"),
    "slow": psycopg.errors.QueryCanceled("statement timeout"),
    "deadlock": psycopg.errors.DeadlockDetected("deadlock"),
    "syntax": psycopg.errors.SyntaxError("bug"),
    "forbidden": web.Problem(403, detail="Not yours."),
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for all these tests."""
    with serving(tmp_path_factory.mktemp("home"), add_routes=add_routes) as running:
        yield running


def post(api: Serving, body: bytes, content_type: str | None = "application/json") -> tuple[int, dict[str, Any]]:
    """Status and document of a POST to /things."""
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    connection.request("POST", "/things", body, {} if content_type is None else {"Content-Type": content_type})
    response = connection.getresponse()
    document = json.loads(response.read())
    connection.close()
    if response.status >= 400:
        assert response.getheader("Content-Type") == "application/problem+json"
        assert document["request_id"] == response.getheader("X-Request-Id")
    assert isinstance(document, dict)
    return response.status, document


def test_a_good_body_is_taken(api: Serving) -> None:
    status, document = post(api, b'{"name": "caf\\u00e9", "amount": 5, "on": "2026-02-28"}')
    assert (status, document["name"], document["on"]) == (201, "café", "2026-02-28")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"name": "x", "amount": NaN}',
        b'{"name": "x", "amount": -Infinity}',
        b'{"name": "x", "amount": 1e999}',
        b'{"name": "x", "name": "y", "amount": 1}',
        b'{"name": "x\\u0000", "amount": 1}',
        b'{"na\\u0000me": "x", "amount": 1}',
        b'{"name": "\\ud800", "amount": 1}',
        b'{"name": "x\x00", "amount": 1}',
        b'{"name": "\xff\xfe", "amount": 1}',
        b'\xef\xbb\xbf{"name": "x", "amount": 1}',
        '{"name": "x", "amount": 1}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"name": "x", "amount": ' + b"9" * 10_000 + b"}",
        b'{"name": "x", "amount": 1} trailing',
        b"{'name': 'x'}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_broken_json_is_400(api: Serving, body: bytes) -> None:
    status, document = post(api, body)
    assert status == 400
    assert document["detail"].startswith("The body ")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["name", "amount"]),
        ({"name": 5, "amount": "5", "extra": 1}, ["name", "amount", "extra"]),
        ({"name": "", "amount": -1}, ["name", "amount"]),
        ({"name": "x", "amount": 10**30}, ["amount"]),
        ({"name": "x", "amount": 1.5}, ["amount"]),
        ({"name": "x", "amount": True}, ["amount"]),
        ({"name": "x" * 51, "amount": 1, "on": "2026-02-30"}, ["name", "on"]),
        ({"name": "x", "amount": 1, "address": {"city": None, "more": 1}}, ["address.city", "address.more"]),
        ([], ["body"]),
        ("text", ["body"]),
        (None, ["body"]),
    ],
)
def test_wrong_missing_and_extra_fields_are_422_each_by_name(api: Serving, body: object, fields: list[str]) -> None:
    status, document = post(api, json.dumps(body).encode())
    assert status == 422
    assert [error["field"] for error in document["errors"]] == fields
    assert all(error["message"] for error in document["errors"])


def test_a_refusal_does_not_repeat_the_value_which_may_be_a_secret(api: Serving) -> None:
    _, document = post(api, b'{"name": 5, "amount": "hunter2"}')
    assert "hunter2" not in json.dumps(document)


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_other_content_types_are_415(api: Serving, content_type: str | None) -> None:
    assert post(api, b'{"name": "x", "amount": 1}', content_type)[0] == 415


@pytest.mark.parametrize("content_type", ["application/json; charset=UTF-8", "APPLICATION/JSON", "application/x+json"])
def test_json_content_types_are_taken(api: Serving, content_type: str) -> None:
    assert post(api, b'{"name": "x", "amount": 1}', content_type)[0] == 201


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_whatever_is_a_500(api: Serving, body: bytes) -> None:
    assert post(api, body)[0] in (201, 400, 422)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=60).map(lambda raw: "".join(f"%{byte:02X}" for byte in raw)), st.booleans())
def test_no_path_and_no_query_whatever_is_a_500(api: Serving, escaped: str, in_query: bool) -> None:
    answer = api.get(f"/things?{escaped}" if in_query else f"/things/{escaped}")
    assert answer.status in (200, 400, 404, 422)
    if answer.status != 200:
        answer.assert_problem(answer.status)


@pytest.mark.parametrize("path", ["/things/%00", "/things/%FF", "/%c3%28", "/things?status=%00", "/things?status=%ff"])
def test_nul_and_non_utf_8_in_paths_and_queries_are_400(api: Serving, path: str) -> None:
    api.get(path).assert_problem(400)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=x", "limit"),
        ("limit=0", "limit"),
        ("status=other", "status"),
        ("more=1", "more"),
        ("limit=1&limit=2", "limit"),
    ],
)
def test_wrong_queries_are_422_by_name(api: Serving, query: str, field: str) -> None:
    assert [error["field"] for error in api.get(f"/things?{query}").assert_problem(422)["errors"]] == [field]


def test_a_good_query_is_taken(api: Serving) -> None:
    assert api.get("/things?limit=5&status=open").json == {"limit": 5, "status": "open"}


def test_answers_carry_times_in_utc_and_the_security_headers(api: Serving) -> None:
    answer = api.get("/things/caf%C3%A9")
    assert answer.json == {"name": "café", "at": "2026-01-02T03:04:05Z", "id": str(uuid.UUID(int=1))}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


def test_cursors_round_trip_and_foreign_ones_are_422(api: Serving) -> None:
    at, identity = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC), uuid.uuid4()
    good = web.encode_cursor(at, identity)
    assert api.get(f"/cursor?cursor={good}").json == {"at": "2026-01-02T03:04:05.678901Z", "id": str(identity)}
    for bad in ("", "x", "!!!", good[:-4], web.encode_cursor(at), web.encode_cursor("\x00", identity), "W10="):
        assert api.get(f"/cursor?cursor={bad}").assert_problem(422)["errors"][0]["field"] == "cursor"


@pytest.mark.parametrize(
    ("what", "status", "retry_after"),
    [
        ("problem", 409, None),
        ("bug", 500, None),
        ("held", 503, "5"),
        ("pool", 503, "1"),
        ("lost", 503, "1"),
        ("shutdown", 503, "1"),
        ("read_only", 503, "1"),
        ("slow", 503, "1"),
        ("deadlock", 503, "1"),
        ("syntax", 500, None),
    ],
)
def test_failures_become_their_status(api: Serving, what: str, status: int, retry_after: str | None) -> None:
    answer = api.get(f"/raise/{what}")
    document = answer.assert_problem(status)
    assert answer.headers.get("retry-after") == retry_after
    assert "hunter2" not in answer.body.decode()
    if what == "problem":
        assert (document["title"], document["errors"]) == ("Clash", [{"field": "name", "message": "is taken"}])
        assert answer.headers["x-extra"] == "1"


def test_a_bug_is_in_the_log_under_the_request_id_it_was_answered_with(api: Serving) -> None:
    identity = api.get("/raise/bug").assert_problem(500)["request_id"]
    found = [line for line in json_lines(api.log_directory / "test.log") if line.get("request_id") == identity]
    assert "ZeroDivisionError" in found[0]["exception"]
    assert "hunter2" not in json.dumps(found)


def test_404_and_405_are_problems_and_405_says_what_is_allowed(api: Serving) -> None:
    api.get("/no/such").assert_problem(404)
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    connection.request("DELETE", "/things")
    response = connection.getresponse()
    assert response.status == 405
    assert set(response.getheader("Allow", "").split(",")) == {"GET", "POST", "HEAD"} - {"HEAD"}
    assert json.loads(response.read())["status"] == 405


def test_a_proxys_request_id_is_taken_over_and_any_other_is_not(api: Serving) -> None:
    for given_id, kept in [("req_0123456789abcdef", True), ('req_"},{"status=403', False), ("x" * 500, False)]:
        answer = api.get("/hello", f"X-Request-Id: {given_id}\r\n")
        assert (answer.headers["x-request-id"] == given_id) is kept


def test_the_access_log_names_route_user_and_status_so_that_the_guides_grep_works(api: Serving) -> None:
    identity = api.get("/raise/forbidden?x=status=200").headers["x-request-id"]
    text = (api.log_directory / "access.log").read_text()
    (line,) = [json.loads(one) for one in text.splitlines() if "status=403" in one and identity in one]
    assert line["message"].startswith("request served method=GET path=/raise/forbidden status=403")
    assert (line["route"], line["user_id"], line["status"]) == ("/raise/{what}", "user-1", 403)


def test_head_is_answered_without_a_body(api: Serving) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    for path, status in [("/hello", 200), ("/none", 404), ("/%00", 400), ("/hello", 200)]:
        connection.request("HEAD", path)
        response = connection.getresponse()
        assert (response.status, response.read()) == (status, b"")


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("127.0.0.1", "6.6.6.6, 192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "nonsense status=403", "127.0.0.1"),
        ("127.0.0.1", 'fe80::1%" status=403', "fe80::1"),
        ("192.0.2.1", "6.6.6.6", "127.0.0.1"),
        ("", "6.6.6.6", "127.0.0.1"),
    ],
)
def test_only_the_trusted_proxys_own_word_names_the_client(
    tmp_path: Path, trusted: str, forwarded: str, client: str
) -> None:
    def routes(app: web.App) -> None:
        app.get("/me", callback=lambda: {"client": bottle.request.environ["REMOTE_ADDR"]})

    with serving(tmp_path, add_routes=routes, trusted_proxy=trusted) as running:
        assert running.get("/me", f"X-Forwarded-For: {forwarded}\r\n").json == {"client": client}
        assert running.access_lines()[0]["client"] == client
