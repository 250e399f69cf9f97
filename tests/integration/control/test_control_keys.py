"""Keys: a lost or different one is said, nothing is made anew behind anybody's back, and giving one up is an entry."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet

from .conftest import ControlPlane, started

pytestmark = pytest.mark.embedded
RUNS = "/api/v1/runs"
SAY = {"operation": "say", "environment": "local"}


@pytest.fixture(scope="module")
def plane(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One whose keys this module may lose, as long as it finds them again; no worker, so that runs wait."""
    for made in started(postgres_cluster, tmp_path_factory.mktemp("keys")):
        made.stop("worker")
        yield made


def key_of(plane: ControlPlane, name: str) -> Path:
    return plane.home / "control" / name


@contextlib.contextmanager
def another(path: Path, content: bytes | None) -> Iterator[None]:
    """Something else, or nothing, in the place of a key."""
    aside = path.rename(path.with_name(f"aside.{path.name}"))
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        aside.replace(path)


def states(plane: ControlPlane) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in plane.http.get("/api/v1/keys").json()["items"]}


def proof(plane: ControlPlane) -> dict[str, Any]:
    found: dict[str, Any] = plane.http.get("/api/v1/audit/verification").json()
    return found


def launched(plane: ControlPlane, key: str = "") -> tuple[int, str]:
    headers = {"Idempotency-Key": key} if key else {}
    answer = plane.http.post(RUNS, json=SAY, headers=headers)
    body = answer.json()
    return answer.status_code, body.get("detail", "") + json.dumps(body.get("errors", ""))


LOST = {
    "missing": (None, "cannot be read"),
    "another": (Fernet.generate_key(), "is another key"),
    "no key": (b"garbage", "is no key, but 7 bytes of something else"),
}


@pytest.mark.parametrize("way", LOST)
@pytest.mark.parametrize("name", ["sealing.key", "audit.key"])
def test_a_lost_key_is_said_and_launches_are_refused(plane: ControlPlane, name: str, way: str) -> None:
    content, why = LOST[way]
    assert launched(plane)[0] == 202
    with another(key_of(plane, name), content):
        status, detail = launched(plane)
        assert (status, why in detail, f"bazaruto keys replace {name}" in detail) == (503, True, True), detail
        check = plane.http.get("/healthz/detailed").json()["checks"]["keys"]
        assert (check["status"], why in json.dumps(check)) == ("degraded", True)
        assert why in states(plane)[name]["problem"]
        assert plane.http.get(RUNS).status_code == 200, "reads go on"
        found = proof(plane)
        assert found["intact"] == (name == "sealing.key")
        assert found["first"] is None
        if name == "audit.key":
            assert why in found["problems"][0]
            assert "made with a key that is lost" in found["unproven"][0]
            assert plane.cli("audit", "verify").returncode == 1
        assert plane.cli("migrate").returncode == 0
        assert key_of(plane, name).exists() == (content is not None), "it is not silently made anew"
    assert launched(plane)[0] == 202
    assert proof(plane)["intact"]


def test_keys_are_files_that_only_their_owner_may_read(plane: ControlPlane) -> None:
    for name in ("sealing.key", "audit.key"):
        assert key_of(plane, name).stat().st_mode & 0o777 == 0o600


def test_replacing_the_key_of_the_audit_keeps_old_entries_checkable_while_it_is_kept(plane: ControlPlane) -> None:
    launched(plane)
    before, old = states(plane)["audit.key"]["fingerprint"], proof(plane)["entries"]
    done = plane.cli("keys", "replace", "audit.key", "--reason", "somebody left")
    assert done.returncode == 0, done.stderr
    after = states(plane)["audit.key"]
    assert (after["fingerprint"] != before, after["problem"]) == (True, None)
    kept = key_of(plane, f"audit.key.{before}")
    assert kept.stat().st_mode & 0o777 == 0o600
    newest = plane.http.get("/api/v1/audit", params={"action": "key.replace"}).json()["items"][0]
    told = newest["parameters"]
    assert (told["reason"], told["before"], told["after"]) == ("somebody left", before, after["fingerprint"])
    assert (newest["actor"], newest["target"], newest["key"]) == ("admin", "audit.key", after["fingerprint"])
    assert launched(plane)[0] == 202
    assert (proof(plane)["intact"], proof(plane)["unproven"]) == (True, [])

    with another(kept, None):
        found = proof(plane)
        assert (found["intact"], found["first"]) == (True, None), "lost, which was said, and no sign of harm"
        assert found["unproven"] == [
            f"{old} entries were made with a key that is lost: only order and heads are compared"
        ]
        with psycopg.connect(plane.database_url, autocommit=True) as admin:
            admin.execute("ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_stay")
            admin.execute("UPDATE audit_entries SET mac = sha256(mac) WHERE seq = 2")
            assert proof(plane)["first"]["seq"] == 2, "their heads are still compared"
            admin.execute("UPDATE audit_entries SET key = %s WHERE seq = %s", [before, found["entries"]])
            seqs = [each["seq"] for each in proof(plane)["findings"]]
    assert found["entries"] in seqs, "a key that was given up proves nothing that came later"


def test_the_old_key_proves_nothing_after_it_was_replaced(control_plane_of_ones_own: ControlPlane) -> None:
    """Who has the old key, and the database, and the new entries' places, still cannot write history."""
    plane = control_plane_of_ones_own
    launched(plane)
    assert plane.cli("keys", "replace", "audit.key", "--reason", "it leaked").returncode == 0
    with psycopg.connect(plane.database_url, autocommit=True) as admin:
        admin.execute("ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_stay")
        admin.execute("DELETE FROM audit_entries WHERE action = 'key.replace'")
        admin.execute("UPDATE audit_head SET seq = e.seq, mac = e.mac FROM audit_entries e "
                      "WHERE e.seq = (SELECT max(seq) FROM audit_entries)")  # fmt: skip
    shutil.rmtree(plane.home / "control" / "audit")
    found = proof(plane)
    assert not found["intact"]
    assert found["first"] is not None
    assert "was in use" in found["first"]["what"]


def test_what_a_replaced_sealing_key_sealed_can_be_opened_while_it_is_kept(
    control_plane_of_ones_own: ControlPlane,
) -> None:
    plane = control_plane_of_ones_own
    plane.stop("worker")
    first, second = plane.launch("say")["id"], plane.launch("say")["id"]
    assert launched(plane, "kept")[0] == 202
    for _ in range(2):
        assert plane.cli("keys", "replace", "sealing.key", "--reason", "practice").returncode == 0
    status, detail = launched(plane, "kept")
    assert (status, "before sealing.key was replaced" in detail) == (422, True), detail
    assert launched(plane, "new")[0] == 202
    plane.start("worker")
    assert plane.finished(first)["status"] == plane.finished(second)["status"] == "succeeded"
    plane.stop("worker")
    third = plane.launch("say")["id"]
    assert plane.cli("keys", "replace", "sealing.key", "--reason", "practice").returncode == 0
    for kept in (plane.home / "control").glob("sealing.key.*"):
        kept.unlink()
    plane.start("worker")
    ended = plane.finished(third)
    assert (ended["status"], "sealed with another key" in ended["error"]) == ("failed", True)
