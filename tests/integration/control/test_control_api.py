"""The API's edges: who may ask, what is refused and how, lists, health, metrics, the OpenAPI document."""

from __future__ import annotations

import concurrent.futures
import json
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema
import pytest

from bazaruto import probes
from bazaruto.control.api import ENDPOINTS

if TYPE_CHECKING:
    from .conftest import ControlPlane

pytestmark = pytest.mark.embedded
RUNS = "/api/v1/runs"
NEW: dict[str, dict[str, Any]] = {  # what is posted to make something
    RUNS: {"operation": "say", "environment": "local"},
    "/api/v1/tokens": {"name": "document", "role": "viewer"},
}


def fields(answer: httpx.Response) -> set[str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["field"] for error in answer.json().get("errors", [])}


def test_the_first_admin_token_is_private_and_stored_only_hashed(control_plane: ControlPlane) -> None:
    path = control_plane.home / "control" / "admin.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    import psycopg

    with psycopg.connect(control_plane.database_url) as connection:
        stored = str(connection.execute("SELECT * FROM access_tokens").fetchall())
    assert control_plane.token.split("_", 2)[2] not in stored  # which may have a _ itself
    before = control_plane.token
    assert control_plane.cli("migrate").stdout == ""
    assert control_plane.token == before, "a second migrate makes no second token"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer wrong", "Bearer bzr_000000000000_" + "a" * 43, "Basic YTpi", "Bearer \u00e9"],
)
def test_without_a_valid_token_nothing_is_answered(control_plane: ControlPlane, header: str) -> None:
    url = f"http://127.0.0.1:{control_plane.port}"
    guarded = [each for each in ENDPOINTS if not each.public and each.path not in probes.PATHS]
    assert len(guarded) > 7
    from_elsewhere = httpx.HTTPTransport(local_address=f"127.0.1.{len(header)}")  # guesses count for their address
    with httpx.Client(headers={"Authorization": header.encode()}, transport=from_elsewhere) as http:
        for endpoint in guarded:
            path = re.sub(r"\{\w+\}", "x", endpoint.path)
            answer = http.request(endpoint.method, url + path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
    forged = control_plane.token[:-1] + ("A" if control_plane.token[-1] != "A" else "B")
    answer = httpx.post(url + RUNS, json={}, headers={"Authorization": f"Bearer {forged}"}, trust_env=False)
    assert answer.status_code == 401


def test_every_wrong_field_of_a_launch_is_named_at_once_and_nothing_starts(control_plane: ControlPlane) -> None:
    before = control_plane.http.get(RUNS, params={"limit": 1}).json()["items"]
    answer = control_plane.http.post(
        RUNS,
        json={
            "operation": "say",
            "environment": "mars",
            "parameters": {"word": "Not Lower", "count": 10, "mood": "sad", "loud": "yes", "names": [1], "x": 1},
            "check": "true",
            "limit": "@/etc/passwd",
            "surprise": 1,
        },
    )
    assert answer.status_code == 422
    assert fields(answer) == {
        "environment",
        "parameters.word",
        "parameters.count",
        "parameters.mood",
        "parameters.loud",
        "parameters.names",
        "parameters.x",
        "check",
        "limit",
        "surprise",
    }
    assert control_plane.http.get(RUNS, params={"limit": 1}).json()["items"] == before


@pytest.mark.parametrize(
    ("request_", "wrong"),
    [
        ({}, {"operation", "environment"}),
        ({"operation": "nothing", "environment": "local"}, {"operation"}),
        ({"operation": "../../etc/passwd", "environment": "../local"}, {"operation", "environment"}),
        ({"operation": ["say"], "environment": 1}, {"operation", "environment"}),
        ({"operation": "say", "environment": "local", "parameters": []}, {"parameters"}),
        ({"operation": "slow", "environment": "local"}, {"parameters.file"}),
        ({"operation": "slow", "environment": "local", "parameters": {"file": 1}}, {"parameters.file"}),
        ({"operation": "say", "environment": "local", "parameters": {"count": True}}, {"parameters.count"}),
        ({"operation": "say", "environment": "local", "parameters": {"count": 1.0}}, {"parameters.count"}),
        ({"operation": "say", "environment": "local", "parameters": {"count": 10**30}}, {"parameters.count"}),
        ({"operation": "say", "environment": "local", "parameters": {"count": -(10**30)}}, {"parameters.count"}),
        ({"operation": "say", "environment": "local", "parameters": {"ratio": 1.01}}, {"parameters.ratio"}),
        ({"operation": "say", "environment": "local", "parameters": {"word": "a\n"}}, {"parameters.word"}),
        ({"operation": "say", "environment": "local", "parameters": {"word": "x" * 5000}}, {"parameters.word"}),
        ({"operation": "say", "environment": "local", "parameters": {"sample_word": "x"}}, {"parameters.sample_word"}),
        ({"operation": "say", "environment": "local", "limit": "--list-hosts"}, {"limit"}),
        ({"operation": "raze", "environment": "local"}, {"confirm"}),
        ({"operation": "raze", "environment": "local", "confirm": "production"}, {"confirm"}),
    ],
)
def test_a_wrong_launch_is_refused_by_name(
    control_plane: ControlPlane, request_: dict[str, Any], wrong: set[str]
) -> None:
    answer = control_plane.http.post(RUNS, json=request_)
    assert answer.status_code == 422, answer.text
    assert fields(answer) == wrong


def test_what_may_destroy_data_runs_when_confirmed(control_plane: ControlPlane) -> None:
    ended = control_plane.finished(control_plane.launch("raze", confirm="local")["id"])
    assert ended["status"] == "succeeded"
    assert "confirm=local" in ended["command"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"operation": "say\\u0000", "environment": "local"}', 400),
        (b'{"operation": "\xff"}', 400),
        (b'{"operation": "say", "operation": "raze"}', 400),
        (b'{"a": NaN}', 400),
        (b"[" * 100_000, 400),
        (b'"say"', 422),
        (b"[]", 422),
        (b'{"operation": "' + b"x" * 2_000_000 + b'"}', 413),
    ],
)
def test_broken_and_huge_bodies_are_refused(control_plane: ControlPlane, body: bytes, status: int) -> None:
    answer = control_plane.http.post(RUNS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_what_is_not_there_is_404(control_plane: ControlPlane) -> None:
    for path in (f"{RUNS}/20200101-000000-abcdef", f"{RUNS}/x'--/events", "/api/v1/operations/nothing", "/nothing"):
        answer = control_plane.http.get(path)
        assert answer.status_code == 404
        assert answer.json()["request_id"].startswith("req_")


def test_runs_are_listed_newest_first_in_pages_and_by_filter(control_plane: ControlPlane) -> None:
    launched = [control_plane.launch("say")["id"] for _ in range(3)]
    for run in launched:
        control_plane.finished(run)
    listed: list[str] = []
    cursor = None
    while True:
        page = control_plane.http.get(
            RUNS,
            params={"limit": 2, "operation": "say", "status": "succeeded", **({"cursor": cursor} if cursor else {})},
        ).json()
        assert len(page["items"]) <= 2
        listed += [run["id"] for run in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert listed[:3] == launched[::-1]
    assert len(listed) == len(set(listed))
    assert control_plane.http.get(RUNS, params={"environment": "unreachable", "operation": "say"}).json()["items"] == []
    answer = control_plane.http.get(RUNS, params={"limit": "0", "status": "lost", "cursor": "x", "page": "2"})
    assert answer.status_code == 422
    assert fields(answer) >= {"limit", "status", "page"}
    for cursor in ("nonsense", "WzEwMDAwMDAwMDAwMDAwMDAwMDAwMDBd", "Wy0xXQ", "WyJ4Il0"):  # far, before all, and a text
        assert control_plane.http.get(RUNS, params={"cursor": cursor}).status_code == 422
    assert control_plane.http.get(f"{RUNS}/{launched[0]}/events", params={"after": "-1"}).status_code == 422


def test_an_operations_parameters_are_a_json_schema(control_plane: ControlPlane) -> None:
    operation = control_plane.http.get("/api/v1/operations/say").json()
    assert operation["effect"] == "read"
    schema = operation["parameters"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["count"] == {
        "type": "integer", "default": 1, "description": "How often.", "minimum": 1, "maximum": 9,
    }  # fmt: skip
    assert schema["properties"]["mood"]["enum"] == ["calm", "merry"]
    assert schema["properties"]["mood"]["description"] == "How it is said. Two sentences of it."
    assert schema["properties"]["names"]["items"] == {"type": "string"}
    secret = control_plane.http.get("/api/v1/operations/secret").json()["parameters"]
    assert secret["properties"]["password"]["writeOnly"] is True
    assert secret["required"] == ["password"]
    names = {operation["name"] for operation in control_plane.http.get("/api/v1/operations").json()["items"]}
    assert {"say", "slow", "raze"} <= names
    environments = control_plane.http.get("/api/v1/environments").json()["items"]
    assert {environment["name"] for environment in environments} >= {"local", "mixed", "unreachable"}


def test_the_openapi_document_describes_every_route_and_every_answer(control_plane: ControlPlane) -> None:
    document = control_plane.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    run = control_plane.finished(control_plane.launch("say")["id"])
    assert set(document["components"]["schemas"]["RunDetails"]["properties"]) == set(run)
    for path, methods in document["paths"].items():
        assert set(methods) <= {"get", "post"}
        answer = control_plane.http.request("DELETE", re.sub(r"\{\w+\}", "x", path))
        assert answer.status_code == 405, path


def test_every_answer_is_what_the_openapi_document_says_of_it(control_plane: ControlPlane) -> None:
    document = control_plane.http.get("/openapi.json").json()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    run = control_plane.launch("say", parameters={"word": "salut"})["id"]
    control_plane.finished(run)
    name, directory = "bazaruto_20260201_000000", control_plane.home / "backups"
    lay_down(directory, name, proof="verified")
    for path, methods in document["paths"].items():
        url = path.replace("{id}", run).replace("{name}", "say")
        calls = {"get": lambda url=url: control_plane.http.get(url)}
        body = NEW.get(path) or {"reason": "to see what it says"}
        calls["post"] = lambda url=url, body=body: control_plane.http.post(url, json=body)
        for method, operation in methods.items():
            answer = calls[method]()
            expected = operation["responses"][str(answer.status_code)]["content"]
            decided = method == "post" and path not in NEW  # a run that succeeded is; and no token has a run's id
            assert answer.is_success or (decided and answer.status_code in {404, 409}), answer.text
            media = answer.headers["content-type"].partition(";")[0]
            assert media in expected, path
            if media == "application/json":
                schema = {**expected[media]["schema"], "components": document["components"]}
                jsonschema.validate(answer.json(), schema, cls=jsonschema.Draft202012Validator)
            refused = control_plane.http.request(method, url, params={"surprise": "1"}, json={"surprise": 1})
            said = operation["responses"].get(str(refused.status_code), operation["responses"]["default"])
            assert refused.is_success or set(said["content"]) == {"application/problem+json"}, path
    for path in (f"{name}.dump", f"{name}.json", f"proofs/{name}.json"):
        (directory / path).unlink()


def test_who_comes_through_a_proxy_on_this_machine_needs_a_token(control_plane: ControlPlane) -> None:
    url = f"http://127.0.0.1:{control_plane.port}/metrics"
    for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
        assert httpx.get(url, headers={header: "192.0.2.7"}, trust_env=False).status_code == 401, header
    assert httpx.get(url, trust_env=False).status_code == 200


def test_health_readiness_and_metrics_answer_on_this_machine_without_a_token(control_plane: ControlPlane) -> None:
    url = f"http://127.0.0.1:{control_plane.port}"
    assert httpx.get(f"{url}/livez", trust_env=False).status_code == 200
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    health = httpx.get(f"{url}/healthz", trust_env=False).json()
    assert health["status"] == "healthy"
    assert set(health["checks"]) == {"database"}
    control_plane.finished(control_plane.launch("say")["id"])  # so that a worker has come up
    detailed = httpx.get(f"{url}/healthz/detailed", trust_env=False).json()
    assert set(detailed["checks"]) >= {"database", "migrations", "workers", "disk"}
    assert detailed["status"] == "healthy", detailed
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    counted = re.search(r'bazaruto_runs_total\{operation="say",status="succeeded"\} (\S+)', metrics)
    assert counted is not None
    assert float(counted[1]) >= 1
    for name in ("bazaruto_queue_depth", "bazaruto_events_lag 0.0", "http_requests_total", "database_connections_max"):
        assert name in metrics


def test_fifty_launches_at_once_are_all_accepted_and_none_is_run_twice(control_plane: ControlPlane) -> None:
    control_plane.stop("worker")
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        launched = list(pool.map(lambda _: control_plane.launch("say")["id"], range(50)))
    assert len(set(launched)) == 50
    import psycopg

    with psycopg.connect(control_plane.database_url) as connection:  # all but two are taken back: time is short
        connection.execute("DELETE FROM run_changes WHERE run = ANY(%s)", [launched[2:]])
        connection.execute("DELETE FROM runs WHERE id = ANY(%s)", [launched[2:]])
    control_plane.start("worker")
    for run in launched[:2]:
        ended = control_plane.finished(run)
        assert [change["status"] for change in ended["changes"]] == ["queued", "running", "succeeded"]


def test_backups_are_listed_with_what_is_proven_of_each(control_plane: ControlPlane) -> None:
    directory = control_plane.home / "backups"
    lay_down(directory, "bazaruto_20260101_000000")
    lay_down(directory, "bazaruto_20260102_000000", proof="verified")
    lay_down(directory, "bazaruto_20260103_000000", proof="verified").write_bytes(b"changed, of equal size"[:10])
    lay_down(directory, "bazaruto_20260104_000000", proof="failed")
    lay_down(directory, "bazaruto_20260105_000000").unlink()
    lay_down(directory, "bazaruto_20260106_000000").write_bytes(b"cut")
    (directory / "bazaruto_20260107_000000.dump").write_bytes(b"no manifest")
    (directory / "foreign.sql.gz").write_bytes(b"not ours")
    listed: dict[str, dict[str, Any]] = {}
    cursor = None
    while True:
        page = control_plane.http.get("/api/v1/backups", params={"limit": 3, **({"cursor": cursor} if cursor else {})})
        listed |= {backup["name"]: backup for backup in page.json()["items"]}
        cursor = page.json()["next"]
        if cursor is None:
            break
    assert [(name[15:17], backup["status"]) for name, backup in listed.items()] == [
        ("07", "failed"),
        ("06", "failed"),
        ("05", "missing"),
        ("04", "failed"),
        ("03", "unverified"),
        ("02", "verified"),
        ("01", "unverified"),
    ]
    verified = listed["bazaruto_20260102_000000"]
    assert verified["verified_at"] == "2026-01-02T01:00:00Z"
    assert (verified["kind"], verified["size_bytes"], verified["rows"]) == ("database", 10, {"users": 3})
    assert "touched since it was verified" in listed["bazaruto_20260103_000000"]["status_reason"]
    assert listed["bazaruto_20260104_000000"]["status_reason"] == "a claim has no policy"
    directory.rename(directory.with_name("gone"))
    answer = control_plane.http.get("/api/v1/backups")
    directory.with_name("gone").rename(directory)
    assert answer.status_code == 503
    assert "cannot be read" in answer.json()["detail"]


def lay_down(directory: Path, name: str, proof: str | None = None) -> Path:
    """A backup of ten bytes as the backup role leaves it, and as the drill leaves its proof."""
    dump = directory / f"{name}.dump"
    dump.write_bytes(b"0123456789")
    manifest = {"name": name, "created_at": "2026-01-01T00:00:00.5Z", "size_bytes": 10, "rows": {"users": 3}}
    (directory / f"{name}.json").write_text(json.dumps(manifest))
    if proof:
        (directory / "proofs").mkdir(exist_ok=True)
        found = {
            "backup": name,
            "status": proof,
            "size_bytes": 10,
            "mtime_ns": dump.stat().st_mtime_ns,
            "verified_at": "2026-01-02T01:00:00Z",
            "error": None if proof == "verified" else "a claim has no policy",
        }
        (directory / "proofs" / f"{name}.json").write_text(json.dumps(found))
    return dump
