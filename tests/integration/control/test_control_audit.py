"""The audit: what becomes an entry, what its entries say, and what keeps them from being written."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import resource
import shutil
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from .conftest import ControlPlane, started

pytestmark = pytest.mark.embedded
RUNS, AUDIT = "/api/v1/runs", "/api/v1/audit"
PLANTED = "correct-horse-battery"
Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def plane(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One whose audit this module may break, as long as it mends it."""
    yield from started(postgres_cluster, tmp_path_factory.mktemp("audit"))


def heads_of(plane: ControlPlane) -> Path:
    return plane.home / "control" / "audit" / "heads.log"


def entries(plane: ControlPlane, **wanted: str | int) -> list[dict[str, Any]]:
    answer = plane.http.get(AUDIT, params={"limit": 500, **wanted})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def count(plane: ControlPlane) -> int:
    newest = entries(plane, limit=1)
    return newest[0]["seq"] if newest else 0


def proof(plane: ControlPlane) -> dict[str, Any]:
    answer = plane.http.get(f"{AUDIT}/verification")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def audited_end(plane: ControlPlane, run: str) -> dict[str, Any]:
    plane.finished(run)
    found: list[dict[str, Any]] = plane.until(lambda: entries(plane, run=run, action="run.end"))
    return found[0]


def token_of(plane: ControlPlane, role: str, **wanted: Any) -> dict[str, str]:
    answer = plane.http.post("/api/v1/tokens", json={"name": f"a-{role}", "role": role, **wanted})
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def test_a_launch_and_its_end_are_entries(plane: ControlPlane) -> None:
    asked = {"operation": "say", "environment": "local", "parameters": {"word": "hello"}, "reason": "to see"}
    answer = plane.http.post(RUNS, json=asked)
    run = answer.json()["id"]
    end = audited_end(plane, run)
    launch = entries(plane, run=run, action="run.launch")[0]
    assert (launch["actor"], launch["token"], launch["address"]) == ("admin", plane.token.split("_")[1], "127.0.0.1")
    assert launch["request_id"] == answer.headers["X-Request-Id"]
    assert (launch["operation"], launch["environment"], launch["outcome"]) == ("say", "local", "accepted")
    assert launch["parameters"] == {"parameters": {"word": "hello"}, "reason": "to see"}
    assert (end["actor"], end["outcome"], end["target"], end["environment"]) == ("worker", "succeeded", run, "local")
    assert launch["seq"] < end["seq"]


def test_decisions_on_a_run_are_entries(plane: ControlPlane, tmp_path: Path) -> None:
    run = plane.launch("slow", parameters={"file": str(tmp_path / "never")})["id"]
    assert plane.http.post(f"{RUNS}/{run}/cancel", json={"reason": "enough"}).status_code == 202
    assert audited_end(plane, run)["outcome"] == "canceled"
    again = plane.http.post(f"{RUNS}/{run}/retry", json={"reason": "again"}).json()["id"]
    plane.http.post(f"{RUNS}/{again}/cancel", json={})
    with psycopg.connect(plane.database_url) as connection:
        connection.execute("UPDATE runs SET left_running = '{a-host}' WHERE id = %s", [run])
    assert plane.http.post(f"{RUNS}/{run}/waive", json={"reason": "it is off"}).status_code == 200
    told = {each["action"]: each for each in entries(plane, run=run)}
    assert told["run.cancel"]["parameters"] == {"reason": "enough"}
    assert told["run.waive"]["parameters"] == {"reason": "it is off"}
    retried = entries(plane, run=again, action="run.retry")[0]
    assert retried["parameters"]["retry_of"] == run
    audited_end(plane, again)


def test_each_refusal_is_one_entry(plane: ControlPlane) -> None:
    run = plane.launch("say")["id"]
    audited_end(plane, run)
    viewer = token_of(plane, "viewer")
    before = count(plane)
    asked = {"operation": "say", "environment": "local"}
    with httpx.Client(base_url=str(plane.http.base_url), trust_env=False) as nobody:
        assert nobody.post(RUNS, json=asked).status_code == 401
        assert nobody.post(RUNS, json=asked, headers=viewer).status_code == 403
    assert plane.http.post(RUNS, json={**asked, "parameters": {"word": "NO", "nothing": 1}}).status_code == 422
    assert plane.http.post(f"{RUNS}/{run}/cancel", json={}).status_code == 409
    found = entries(plane)[: count(plane) - before]
    told = [(each["action"], each["actor"], each["outcome"], each["detail"].split()[0]) for each in reversed(found)]
    assert told == [
        ("run.launch", "nobody", "refused", "401:"),
        ("run.launch", "a-viewer", "refused", "403:"),
        ("run.launch", "admin", "refused", "422:"),
        ("run.cancel", "admin", "refused", "409:"),
    ]
    assert "parameters.word" in found[1]["detail"]
    assert "parameters.nothing" in found[1]["detail"]
    assert (found[1]["operation"], found[1]["environment"], found[0]["target"]) == ("say", "local", run)


def test_reads_are_no_entries(plane: ControlPlane) -> None:
    before = count(plane)
    for path in (RUNS, AUDIT, f"{AUDIT}/verification", f"{AUDIT}/export", "/api/v1/keys", "/api/v1/operations"):
        assert plane.http.get(path).status_code == 200
    assert plane.http.get(f"{RUNS}/20260101-000000-000000").status_code == 404
    assert count(plane) == before


def test_strangers_cannot_fill_the_audit(plane: ControlPlane) -> None:
    before = count(plane)
    with httpx.Client(base_url=str(plane.http.base_url), trust_env=False) as nobody:
        for _ in range(100):
            assert nobody.post(RUNS, json={}).status_code in (401, 429)
    assert count(plane) - before <= 60


def test_a_launch_that_was_sent_twice_is_entered_once(plane: ControlPlane) -> None:
    asked = {"operation": "say", "environment": "local"}
    sent = [plane.http.post(RUNS, json=asked, headers={"Idempotency-Key": "one"}).json()["id"] for _ in range(2)]
    assert sent[0] == sent[1]
    audited_end(plane, sent[0])
    assert len(entries(plane, run=sent[0], action="run.launch")) == 1


def test_no_secret_is_in_an_entry(plane: ControlPlane) -> None:
    asked = {"operation": "secret", "environment": "local", "parameters": {"password": PLANTED}}
    run = plane.http.post(RUNS, json=asked).json()["id"]
    audited_end(plane, run)
    plane.http.post(f"{RUNS}/{run}/retry", json={"parameters": {"password": PLANTED}})
    for parameters in ({"passwort": PLANTED}, {"password": [PLANTED]}, {"password": {"a": PLANTED}}, PLANTED):
        assert plane.http.post(RUNS, json={**asked, "parameters": parameters}).status_code == 422
    assert plane.http.post(RUNS, json={**asked, "password": PLANTED}).status_code == 422
    wrong = {"Authorization": f"Bearer {plane.token[:-1]}"}
    assert plane.http.post(RUNS, json=asked, headers=wrong).status_code == 401
    with psycopg.connect(plane.database_url) as connection:
        told = "\n".join(row[0] for row in connection.execute("SELECT e::text FROM audit_entries e"))
    said = told + heads_of(plane).read_text() + plane.http.get(f"{AUDIT}/export").text
    assert PLANTED not in said
    assert plane.token.split("_", 2)[2][:-1] not in said
    assert entries(plane, run=run, action="run.launch")[0]["parameters"] == {"parameters": {"password": "***"}}


HOSTILE = ["\x1b[2J" + "x" * 5000, "a\u202eb\u2028c", "\ud800", "\x00", "'; DROP TABLE audit_entries; --", "🐘" * 400]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_words_are_kept_bounded_and_readable(plane: ControlPlane, text: str) -> None:
    before = count(plane)
    body = json.dumps({"operation": text, "environment": text, "reason": text, text: text})
    answer = plane.http.post(RUNS, content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    named = urllib.parse.quote(text[:300].encode("utf-8", "replace"), safe="")
    assert plane.http.post(f"{RUNS}/{named}/cancel", json={}).status_code in (400, 404)
    for entry in entries(plane)[: count(plane) - before]:
        words = json.dumps(entry, ensure_ascii=False)
        assert len(words) < 5000
        assert words.isprintable()
    assert proof(plane)["intact"]


def test_many_at_once_leave_no_gap(plane: ControlPlane) -> None:
    before = count(plane)
    asked = {"operation": "say", "environment": "local", "parameters": {"count": 0}}
    with plane.http as http, concurrent.futures.ThreadPoolExecutor(20) as crowd:
        answers = list(crowd.map(lambda _: http.post(RUNS, json=asked).status_code, range(60)))
    assert set(answers) == {422}
    assert count(plane) == before + 60
    found = proof(plane)
    assert (found["intact"], found["entries"], found["unproven"]) == (True, before + 60, [])


def test_entries_are_listed_and_exported(plane: ControlPlane) -> None:
    everything = [json.loads(line) for line in plane.http.get(f"{AUDIT}/export").text.splitlines()]
    assert [each["seq"] for each in everything] == list(range(1, count(plane) + 1))
    last = plane.http.get(f"{AUDIT}/export", params={"since": everything[-1]["seq"]}).text.splitlines()
    assert [json.loads(line) for line in last] == everything[-1:]
    told = plane.cli("audit", "export", "--since", str(everything[-3]["seq"]))
    assert [json.loads(line) for line in told.stdout.splitlines()] == everything[-3:]
    pages: list[dict[str, Any]] = []
    cursor = None
    while cursor or not pages:
        page = plane.http.get(AUDIT, params={"limit": 7, **({"cursor": cursor} if cursor else {})}).json()
        pages += page["items"]
        cursor = page["next"]
    assert pages == everything[::-1]
    refused = plane.cli("audit", "list", "--actor", "nobody", "--action", "run.launch", "-o", "json")
    assert {each["actor"] for each in json.loads(refused.stdout)["items"]} == {"nobody"}
    assert "run.launch" in plane.cli("audit", "list").stdout


def test_a_limited_token_sees_what_is_of_its_environments(plane: ControlPlane) -> None:
    run = plane.launch("ping", environment="mixed")["id"]
    audited_end(plane, run)
    limited = token_of(plane, "viewer", environments=["mixed"])
    found = plane.http.get(AUDIT, headers=limited).json()["items"]
    assert {each["environment"] for each in found} == {"mixed"}
    assert plane.http.get(AUDIT, headers=limited, params={"environment": "local"}).json()["items"] == []
    told = [json.loads(line) for line in plane.http.get(f"{AUDIT}/export", headers=limited).text.splitlines()]
    assert {each["environment"] for each in told} == {"mixed"}
    admin = token_of(plane, "admin", environments=["mixed"])
    assert plane.http.post(f"{AUDIT}/rotation", json={"reason": "x"}, headers=admin).status_code == 403


def test_verify_says_what_is_proven_and_exits_by_it(plane: ControlPlane) -> None:
    sound = plane.cli("audit", "verify")
    assert sound.returncode == 0, sound.stdout
    assert f"{count(plane)} entries since" in sound.stdout
    with psycopg.connect(plane.database_url, autocommit=True) as admin:
        admin.execute("ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_stay")
        (actor,) = admin.execute("SELECT actor FROM audit_entries WHERE seq = 3").fetchone() or ("",)
        admin.execute("UPDATE audit_entries SET actor = 'eve' WHERE seq = 3")
        try:
            changed, as_json = plane.cli("audit", "verify"), plane.cli("audit", "verify", "-o", "json")
        finally:
            admin.execute("UPDATE audit_entries SET actor = %s WHERE seq = 3", [actor])
            admin.execute("ALTER TABLE audit_entries ENABLE TRIGGER audit_entries_stay")
    assert (changed.returncode, as_json.returncode) == (1, 1)
    assert "entry 3: was changed" in changed.stdout
    assert json.loads(as_json.stdout)["first"]["seq"] == 3


def _move_away(path: Path) -> None:
    path.rename(path.with_name("moved"))


def _make_directory(path: Path) -> None:
    _move_away(path)
    path.mkdir()


def _cut(path: Path) -> None:
    shutil.copy2(path, path.with_name("moved"))
    os.truncate(path, path.stat().st_size - 400)


def _empty(path: Path) -> None:
    shutil.copy2(path, path.with_name("moved"))
    os.truncate(path, 0)


def _forge(path: Path) -> None:
    _move_away(path)
    path.write_text('{"seq": 1, "mac": "00", "at": "2026-01-01T00:00:00Z", "state": "head"}\n')


def _make_read_only(path: Path) -> None:
    shutil.copy2(path, path.with_name("moved"))
    path.chmod(0o400)


BROKEN: dict[str, tuple[Break, str]] = {
    "rotated away": (_move_away, "put it back, or give it up with `bazaruto audit accept-rotation"),
    "a directory": (_make_directory, "make it a file"),
    "shortened": (_cut, "rotated away, shortened or replaced"),
    "emptied": (_empty, "rotated away, shortened or replaced"),
    "another file": (_forge, "rotated away, shortened or replaced"),
    "read-only": (_make_read_only, "it is read-only"),
}


@contextlib.contextmanager
def broken(plane: ControlPlane, way: Break) -> Iterator[None]:
    path = heads_of(plane)
    way(path)
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.with_name("moved").replace(path)


def refused_change(plane: ControlPlane) -> str:
    """A launch that must not be made; why."""
    before = plane.http.get(RUNS, params={"limit": 1}).json()["items"]
    answer = plane.http.post(RUNS, json={"operation": "say", "environment": "local"})
    assert (answer.status_code, answer.json()["title"]) == (503, "The audit cannot be written")
    assert plane.http.get(RUNS, params={"limit": 1}).json()["items"] == before, "reads go on, and nothing was launched"
    why: str = answer.json()["detail"]
    return why


@pytest.mark.parametrize("way", BROKEN)
def test_without_the_file_nothing_is_changed_and_why_is_said(plane: ControlPlane, way: str) -> None:
    audited_end(plane, plane.launch("say")["id"])
    make, why = BROKEN[way]
    with broken(plane, make):
        assert why in refused_change(plane)
        check = plane.http.get("/healthz/detailed").json()["checks"]["audit"]
        assert (check["status"], "changes are refused" in json.dumps(check)) == ("degraded", True)
    audited_end(plane, plane.launch("say")["id"])
    found = proof(plane)
    assert found["intact"], found


def test_on_a_full_disk_nothing_is_changed(plane: ControlPlane) -> None:
    audited_end(plane, plane.launch("say")["id"])
    path, pid = heads_of(plane), plane.processes["serve"].pid
    with path.open("a") as file:
        file.write(" " * 3_000_000 + "\n")  # so that of all files of the process this is the one with the limit
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (path.stat().st_size + 40, before[1]))
    try:
        assert "with room for more" in refused_change(plane)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    audited_end(plane, plane.launch("say")["id"])
    found = proof(plane)
    assert (found["intact"], found["unproven"]) == (True, ["1 lines of heads.log cannot be read"])


def test_an_end_is_recorded_without_the_audit_and_entered_later(plane: ControlPlane, tmp_path: Path) -> None:
    go = tmp_path / "go"
    run = plane.launch("slow", parameters={"file": str(go)})["id"]
    plane.in_task(run, "Wait for the file")
    with broken(plane, _move_away):
        go.touch()
        assert plane.finished(run)["status"] == "succeeded"
        assert entries(plane, run=run, action="run.end") == []
    assert audited_end(plane, run)["outcome"] == "succeeded"


def test_a_rotation_can_be_accepted_and_is_remembered(plane: ControlPlane) -> None:
    audited_end(plane, plane.launch("say")["id"])
    path, entered = heads_of(plane), count(plane)
    kept = path.read_bytes()
    path.unlink()
    assert "put it back" in refused_change(plane)
    told = plane.cli("run", "say", "--detach")
    assert (told.returncode != 0, "put it back, or give it up with `bazaruto audit" in told.stderr) == (True, True)
    done = plane.cli("audit", "accept-rotation", "--reason", "logrotate was at work")
    assert (done.returncode, done.stdout) == (
        0,
        f"A new file begins with entry {entered + 1}: changes are made again.\n",
    )
    newest = entries(plane, limit=1)[0]
    assert (newest["action"], newest["outcome"], newest["actor"]) == ("audit.rotation", "accepted", "admin")
    assert newest["parameters"] == {"reason": "logrotate was at work", "lost": None}
    audited_end(plane, plane.launch("say")["id"])
    verified = plane.cli("audit", "verify")
    assert verified.returncode == 0, verified.stdout
    assert f"{entered} entries have no line any more" in verified.stdout
    path.with_name("heads.log.1").write_bytes(kept)
    verified = plane.cli("audit", "verify")
    assert (verified.returncode, "no line any more" in verified.stdout) == (0, False), "what was kept still counts"


def test_each_node_has_its_own_file_and_says_what_it_cannot_prove(plane: ControlPlane, tmp_path: Path) -> None:
    audited_end(plane, plane.launch("say")["id"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    other = ControlPlane(tmp_path / "other", plane.database_url, port)
    for part in ("log", "backups", "control"):
        (other.home / part).mkdir(parents=True)
    for name in ("sealing.key", "admin.token"):
        shutil.copy(plane.home / "control" / name, other.home / "control")
    other.start("serve")
    try:
        assert "audit.key cannot be read" in refused_change(other)
        assert not (other.home / "control" / "audit.key").exists(), "it is not silently made anew"
        shutil.copy(plane.home / "control" / "audit.key", other.home / "control")
        before = count(plane)
        run = other.launch("say")["id"]
        audited_end(plane, run)
        here, there = proof(plane), proof(other)
    finally:
        other.stop("serve")
    assert (here["intact"], there["intact"]) == (True, True)
    assert here["entries"] == there["entries"] == here["heads_compared"] + there["heads_compared"] == before + 2
    node = (other.home / "control" / "node").read_text()
    assert f"1 entries were written by {node}: whether its last ones" in " ".join(here["unproven"])
    assert entries(plane, run=run, action="run.launch")[0]["node"] == node


def test_the_address_is_the_one_a_trusted_proxy_names(control_plane_of_ones_own: ControlPlane) -> None:
    plane = control_plane_of_ones_own
    sent = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"}
    plane.http.post(RUNS, json={}, headers=sent)
    plane.stop("serve")
    plane.extra_environment["BAZARUTO_SERVER_TRUSTED_PROXY"] = "127.0.0.1"
    plane.start("serve")
    plane.http.post(RUNS, json={}, headers=sent)
    assert [each["address"] for each in entries(plane)] == ["198.51.100.7", "127.0.0.1"]
