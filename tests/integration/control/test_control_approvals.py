"""Approvals: what is protected is planned, approved by another person, planned again, and only then done."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from .conftest import CONTENT, ControlPlane

pytestmark = pytest.mark.embedded
CLAIM_OF_THE_VERSION_BEFORE = """
UPDATE runs SET status = 'running', waiting_for = NULL, waiting_reason = NULL, node = 'old',
                started_at = clock_timestamp()
WHERE status IN ('queued', 'waiting')
  AND id = (
    SELECT r.id FROM runs r
    WHERE r.status IN ('queued', 'waiting') AND r.environment = 'guarded'
      AND NOT EXISTS (
        SELECT FROM runs o
        WHERE o.environment = r.environment AND o.exclusion = r.exclusion AND o.id <> r.id
          AND (o.status = 'running' OR (o.status IN ('queued', 'waiting') AND o.position < r.position)))
    ORDER BY r.position LIMIT 1 FOR UPDATE OF r SKIP LOCKED)
RETURNING id
"""
LATER = "UPDATE runs SET approval_expires_at = clock_timestamp() - interval '1 s' WHERE id = %(run)s"


def token_of(plane: ControlPlane, name: str, role: str, **limits: Any) -> str:
    made = plane.http.post("/api/v1/tokens", json={"name": name, "role": role, **limits})
    assert made.status_code == 201, made.text
    token: str = made.json()["token"]
    return token


def person(plane: ControlPlane, name: str, role: str = "approver", **limits: Any) -> httpx.Client:
    client = plane.http
    client.headers["Authorization"] = f"Bearer {token_of(plane, name, role, **limits)}"
    return client


def launched(plane: ControlPlane, file: Path, **request: Any) -> str:
    """A run in the protected environment, launched by the person `admin`."""
    parameters = {"file": str(file), **request.pop("parameters", {})}
    run = plane.launch("rewrite", environment="guarded", parameters=parameters, **request)
    identity: str = run["id"]
    return identity


def pending(plane: ControlPlane, run: str) -> dict[str, Any]:
    """The run, once its plan is there to be approved."""
    found: dict[str, Any] = plane.until(lambda: (now := plane.run(run))["approval"] not in ("planning", None) and now)
    assert (found["status"], found["approval"]) == ("waiting", "pending"), found
    return found


def decide(client: httpx.Client, run: str, what: str, **body: Any) -> httpx.Response:
    return client.post(f"/api/v1/runs/{run}/{what}", json=body)


def tamper(plane: ControlPlane, statement: str, run: str) -> list[Any]:
    with psycopg.connect(plane.database_url, autocommit=True) as connection:
        cursor = connection.execute(statement, {"run": run})
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def mia(control_plane: ControlPlane) -> httpx.Client:
    return person(control_plane, "mia")


def test_a_protected_change_is_planned_approved_by_another_planned_again_and_done(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    file = tmp_path / "words"
    run = control_plane.launch("rewrite", environment="guarded", parameters={"file": str(file), "word": "salut"})
    assert (run["status"], run["approval"], run["plan"]) == ("waiting", "planning", None)
    assert run["waiting_for"] == run["plan_run"]
    planned = pending(control_plane, run["id"])
    plan = control_plane.run(planned["plan_run"])
    assert (plan["status"], plan["check"], plan["diff"]) == ("succeeded", True, True)
    assert (plan["plan_for"], plan["approval"]) == (run["id"], None)
    assert planned["plan"]["content_digest"] == planned["content_digest"] == plan["content_digest"]
    changes = planned["plan"]["changes"]
    assert [(each["host"], each["task"], each["item"]) for each in changes] == [
        ("localhost", "Write the words", None),
        ("localhost", "Note the run", None),
        ("localhost", "Render the words", "first"),
        ("localhost", "Render the words", "second"),
    ]
    assert "+salut" in changes[0]["diff"]
    assert f"+by run {run['id']}" in changes[1]["diff"], "the plan speaks of the run, not of itself"
    assert planned["plan"]["count"] == 4
    assert not planned["plan"]["cut"]
    assert planned["approval_expires_at"] > planned["plan"]["planned_at"]
    assert list(tmp_path.iterdir()) == [], "nothing was changed before the approval"

    answer = decide(mia, run["id"], "approve", plan=planned["plan_run"], reason="looked at it")
    assert answer.status_code == 202, answer.text
    assert (answer.json()["approval"], answer.json()["approved_by"]) == ("confirming", "mia")
    ended = control_plane.finished(run["id"])
    assert (ended["status"], ended["approval"]) == ("succeeded", "granted"), ended
    assert (ended["approved_by"], ended["approve_reason"]) == ("mia", "looked at it")
    assert ended["approved_at"].endswith("Z")
    assert file.read_text() == "salut\n"
    assert (tmp_path / "words.run").read_text() == f"by run {run['id']}\n"
    confirmed = control_plane.run(ended["confirming_run"])
    assert (confirmed["plan_for"], confirmed["check"], confirmed["status"]) == (run["id"], True, "succeeded")
    assert confirmed["finished_at"] <= ended["started_at"]
    assert [change["status"] for change in ended["changes"]] == [
        "queued", "waiting", "waiting", "waiting", "queued", "running", "succeeded",
    ]  # fmt: skip


def test_reads_check_runs_and_other_environments_need_no_approval(control_plane: ControlPlane, tmp_path: Path) -> None:
    file = {"file": str(tmp_path / "words")}
    assert control_plane.launch("say", environment="guarded")["approval"] is None
    assert control_plane.launch("rewrite", environment="guarded", parameters=file, check=True)["approval"] is None
    run = control_plane.launch("rewrite", parameters=file)
    assert (run["approval"], control_plane.finished(run["id"])["status"]) == (None, "succeeded")
    everywhere = control_plane.launch("rewrite_approved", parameters=file)
    assert everywhere["approval"] == "planning", "the operation says so, whatever the environment"
    control_plane.http.post(f"/api/v1/runs/{everywhere['id']}/cancel", json={})


def test_the_catalogue_says_what_needs_an_approval(control_plane: ControlPlane) -> None:
    environments = control_plane.http.get("/api/v1/environments").json()["items"]
    assert {each["name"] for each in environments if each["protected"]} == {"guarded"}
    operations = {name: control_plane.http.get(f"/api/v1/operations/{name}").json() for name in ("say", "unforeseen")}
    assert {name: each["approval"] for name, each in operations.items()} == {"say": False, "unforeseen": True}


def test_nobody_approves_their_own_by_a_second_token_neither(control_plane: ControlPlane, tmp_path: Path) -> None:
    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    second = person(control_plane, "admin", role="approver")
    for client in (control_plane.http, second):
        answer = decide(client, run, "approve")
        assert answer.status_code == 403, answer.text
        assert "somebody else" in answer.json()["detail"]
    assert control_plane.run(run)["approval"] == "pending"
    assert decide(second, run, "reject", reason="not needed").json()["status"] == "rejected"


def test_roles_and_limits_hold(control_plane: ControlPlane, tmp_path: Path) -> None:
    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    for client in (
        person(control_plane, "vera", role="viewer"),
        person(control_plane, "otto", role="operator"),
        person(control_plane, "lena", environments=["local"]),
        person(control_plane, "olga", operations=["say"]),
    ):
        for what, body in (("approve", {}), ("reject", {"reason": "no"})):
            assert decide(client, run, what, **body).status_code == 403
    assert control_plane.run(run)["approval"] == "pending"
    assert decide(person(control_plane, "paul", environments=["guarded"]), run, "approve").status_code == 202
    assert control_plane.finished(run)["status"] == "succeeded"


def test_a_plan_that_is_stale_or_foreign_or_not_there_yet_is_not_approved(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    busy = control_plane.launch("slow", environment="local", parameters={"file": str(go)})["id"]
    early = control_plane.launch("rewrite_approved", parameters={"file": str(tmp_path / "early")})
    answer = decide(mia, early["id"], "approve")
    assert answer.status_code == 409
    assert early["plan_run"] in answer.json()["detail"], "its plan waits for the change that runs"
    go.touch()
    assert pending(control_plane, early["id"])["plan"]["count"] == 4
    run = launched(control_plane, tmp_path / "words")
    planned = pending(control_plane, run)
    stale = decide(mia, run, "approve", plan=early["plan_run"])
    assert (stale.status_code, planned["plan_run"] in stale.json()["detail"]) == (409, True)
    of_a_plan = decide(mia, planned["plan_run"], "approve")
    assert (of_a_plan.status_code, run in of_a_plan.json()["detail"]) == (409, True)
    foreign = decide(mia, busy, "approve")
    assert (foreign.status_code, foreign.json()["detail"]) == (409, "The run needs no approval.")
    assert decide(mia, "20260101-000000-abcdef", "approve").status_code == 404
    assert decide(mia, run, "approve", plans="x").status_code == 422
    assert decide(mia, run, "reject").status_code == 422, "why is part of it"
    assert control_plane.run(run)["approval"] == "pending"
    for each in (run, early["id"]):
        assert decide(mia, each, "reject", reason="enough").status_code == 200


def test_of_twenty_approvals_at_once_one_wins(control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path) -> None:
    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    people = [mia, person(control_plane, "noah")]
    with ThreadPoolExecutor(20) as many:
        answers = list(many.map(lambda number: decide(people[number % 2], run, "approve"), range(20)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [202] + [409] * 19
    winner = next(answer.json()["approved_by"] for answer in answers if answer.status_code == 202)
    ended = control_plane.finished(run)
    assert (ended["status"], ended["approved_by"]) == ("succeeded", winner)
    plans = tamper(control_plane, "SELECT id FROM runs WHERE plan_for = %(run)s", run)
    assert len(plans) == 2, "one plan before, one after"
    late = decide(mia, run, "reject", reason="too late")
    assert (late.status_code, f"approved already, by {winner}" in late.json()["detail"]) == (409, True)


def test_a_rejection_says_who_and_why_and_stays(control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path) -> None:
    secret = "correct horse battery"
    run = launched(control_plane, tmp_path / "words", parameters={"password": secret})
    planned = pending(control_plane, run)
    assert secret not in json.dumps(planned)
    assert tamper(control_plane, "SELECT variables FROM runs WHERE id = %(run)s", run)[0][0], "kept sealed meanwhile"
    assert decide(mia, run, "reject", reason="not on a Friday").status_code == 200
    ended = control_plane.run(run)
    assert (ended["status"], ended["approval"]) == ("rejected", "rejected")
    assert (ended["rejected_by"], ended["reject_reason"]) == ("mia", "not on a Friday")
    assert ended["error"] == "It was rejected by mia: not on a Friday"
    assert ended["finished_at"]
    assert ended["started_at"] is None
    assert tamper(control_plane, "SELECT variables FROM runs WHERE id = %(run)s", run) == [(None,)], "forgotten"
    for what, body in (("approve", {}), ("reject", {"reason": "again"}), ("cancel", {})):
        assert decide(mia, run, what, **body).status_code == 409
    with pytest.raises(psycopg.errors.RaiseException):
        tamper(control_plane, "UPDATE runs SET status = 'queued', finished_at = NULL WHERE id = %(run)s", run)
    assert list(tmp_path.iterdir()) == []


def test_whoever_may_cancel_withdraws_and_the_plan_under_way_ends_with_it(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    control_plane.launch("slow", environment="guarded", check=True, parameters={"file": str(go)})
    run = control_plane.launch("rewrite", environment="guarded", parameters={"file": str(tmp_path / "words")})
    answer = decide(control_plane.http, run["id"], "cancel", reason="wrong window")
    assert (answer.status_code, answer.json()["status"]) == (202, "rejected")
    assert answer.json()["error"] == "It was withdrawn by admin: wrong window"
    go.touch()
    assert control_plane.finished(run["plan_run"])["status"] == "canceled"


def test_an_approval_that_came_too_late_is_refused_and_the_run_rejected(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    tamper(control_plane, LATER, run)
    assert decide(mia, run, "approve").status_code == 409
    ended = control_plane.run(run)
    assert (ended["status"], ended["rejected_by"]) == ("rejected", None)
    assert ended["error"].startswith("Nobody approved it until 2")
    assert tamper(control_plane, "SELECT variables FROM runs WHERE id = %(run)s", run) == [(None,)]


def test_a_plan_that_fails_or_is_canceled_rejects_its_run(control_plane: ControlPlane, tmp_path: Path) -> None:
    run = control_plane.finished(control_plane.launch("unforeseen")["id"])
    assert run["status"] == "rejected"
    assert f"run {run['plan_run']} ended as failed" in run["error"]
    assert "The disk is full" in run["error"]
    go = tmp_path / "go"
    before = control_plane.launch("slow", parameters={"file": str(go)})["id"]
    run = control_plane.launch("rewrite_approved", parameters={"file": str(tmp_path / "words")})
    assert decide(control_plane.http, run["plan_run"], "cancel").status_code == 202
    ended = control_plane.finished(run["id"])
    assert (ended["status"], "ended as canceled" in ended["error"]) == ("rejected", True)
    go.touch()
    control_plane.finished(before)


def test_what_would_change_something_else_by_now_is_void_and_says_where(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    file = tmp_path / "words"
    run = launched(control_plane, file)
    pending(control_plane, run)
    file.write_text("put there meanwhile\n")
    file.chmod(0o600)
    assert decide(mia, run, "approve").status_code == 202
    ended = control_plane.finished(run)
    assert (ended["status"], ended["started_at"]) == ("rejected", None)
    assert 'task "Write the words" on localhost would change something else' in ended["error"]
    assert "mia approved" in ended["error"]
    assert file.read_text() == "put there meanwhile\n"


def test_a_waiting_approval_holds_nobody_up_and_an_approved_run_lets_nobody_in_between(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    touched = control_plane.launch("touch", environment="guarded", check=True, parameters={"file": str(tmp_path / "a")})
    assert control_plane.finished(touched["id"])["status"] == "succeeded", "the same exclusion, and it went first"
    go = tmp_path / "go"
    holding = control_plane.launch("slow", environment="guarded", check=True, parameters={"file": str(go)})["id"]
    control_plane.in_task(holding, "Wait for the file")
    assert decide(mia, run, "approve").status_code == 202
    later = [
        control_plane.launch("touch", environment="guarded", check=True, parameters={"file": str(tmp_path / "b")})["id"]
        for _ in range(3)
    ]
    go.touch()
    ended = control_plane.finished(run)
    assert ended["status"] == "succeeded", ended["error"]
    starts = [control_plane.finished(each)["started_at"] for each in later]
    assert all(control_plane.run(ended["confirming_run"])["finished_at"] <= ended["started_at"] < at for at in starts)
    assert all(ended["finished_at"] <= at for at in starts)


def test_nobody_is_let_in_while_a_confirmed_plan_is_not_taken_up_yet(
    control_plane_of_ones_own: ControlPlane, tmp_path: Path
) -> None:
    plane = control_plane_of_ones_own
    run = launched(plane, tmp_path / "words")
    pending(plane, run)
    plane.stop("worker")
    assert decide(person(plane, "mia"), run, "approve").status_code == 202
    later = plane.launch("touch", environment="guarded", check=True, parameters={"file": str(tmp_path / "b")})["id"]
    over = "UPDATE runs SET status = 'succeeded', finished_at = now() WHERE plan_for = %(run)s AND finished_at IS NULL"
    tamper(plane, over, run)
    position = "SELECT goes_before(r) FROM runs r WHERE r.id = %(run)s"
    assert tamper(plane, position, later), "what was approved goes first, although it is not queued yet"


def test_a_worker_of_the_version_before_starts_nothing_unapproved(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    assert tamper(control_plane, CLAIM_OF_THE_VERSION_BEFORE, run) == []
    started = "UPDATE runs SET status = 'running', node = 'old', started_at = now() WHERE id = %(run)s RETURNING id"
    assert tamper(control_plane, started, run) == []
    assert control_plane.run(run)["status"] == "waiting"
    decide(mia, run, "reject", reason="only tried")


def test_changed_content_voids_a_plan_at_its_approval_and_right_before_its_run(
    control_plane_of_ones_own: ControlPlane, tmp_path: Path
) -> None:
    plane = control_plane_of_ones_own
    content = tmp_path / "content"
    shutil.copytree(CONTENT, content)
    for what in ("worker", "serve"):
        plane.stop(what)
    plane.extra_environment["BAZARUTO_CONTENT_DIRECTORY"] = str(content)
    plane.start("serve")
    plane.start("worker")
    mia = person(plane, "mia")
    run = launched(plane, tmp_path / "words")
    pending(plane, run)
    inventory = content / "inventories" / "guarded" / "hosts.yml"
    inventory.write_text(inventory.read_text() + "# one more line\n")
    answer = decide(mia, run, "approve")
    assert answer.status_code == 409
    assert "the content was changed" in answer.json()["detail"]
    assert plane.run(run)["status"] == "rejected"

    run = launched(plane, tmp_path / "words")
    pending(plane, run)
    go = tmp_path / "go"
    holding = plane.launch("slow", environment="guarded", check=True, parameters={"file": str(go)})["id"]
    plane.in_task(holding, "Wait for the file")
    assert decide(mia, run, "approve").status_code == 202
    inventory.write_text(inventory.read_text() + "# and another\n")
    go.touch()
    ended = plane.finished(run)
    assert (ended["status"], "the content was changed" in ended["error"]) == ("rejected", True), ended
    assert ended["approved_by"] == "mia"
    assert not (tmp_path / "words").exists()
    assert not plane.directory(run).exists(), "nothing of it was ever begun"


def test_without_a_worker_whoever_looks_first_finds_out_what_expired(
    control_plane_of_ones_own: ControlPlane, tmp_path: Path
) -> None:
    plane = control_plane_of_ones_own
    plane.stop("worker")
    plane.extra_environment["BAZARUTO_CONTROL_APPROVAL_EXPIRES"] = "90s"
    plane.start("worker")
    run = launched(plane, tmp_path / "words")
    planned = pending(plane, run)
    made, until = (datetime.fromisoformat(at) for at in (planned["plan"]["planned_at"], planned["approval_expires_at"]))
    assert 90 <= (until - made).total_seconds() < 120, "as the setting says"
    plane.stop("worker")
    tamper(plane, LATER, run)
    listed = plane.http.get("/api/v1/runs", params={"status": "rejected"}).json()["items"]
    assert [each["id"] for each in listed] == [run]
    assert plane.run(run)["error"].startswith("Nobody approved it until ")


def test_a_retry_needs_its_own_approval_and_a_key_launches_once(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    request = {"operation": "rewrite", "environment": "guarded", "parameters": {"file": str(tmp_path / "words")}}
    keyed = {"Idempotency-Key": f"once {tmp_path}"}
    first, again = (control_plane.http.post("/api/v1/runs", json=request, headers=keyed) for _ in range(2))
    run = first.json()["id"]
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (run, "true")
    assert len(tamper(control_plane, "SELECT id FROM runs WHERE plan_for = %(run)s", run)) == 1
    decide(mia, run, "reject", reason="once more, please")
    retried = decide(control_plane.http, run, "retry").json()
    assert (retried["retry_of"], retried["approval"]) == (run, "planning")
    assert retried["plan_run"] != control_plane.run(run)["plan_run"]
    decide(mia, retried["id"], "reject", reason="enough")


def test_reindexing_keeps_what_is_known_of_plan_and_approval(
    control_plane_of_ones_own: ControlPlane, tmp_path: Path
) -> None:
    plane = control_plane_of_ones_own
    run = launched(plane, tmp_path / "words")
    pending(plane, run)
    assert decide(person(plane, "mia"), run, "approve", reason="fine").status_code == 202
    before = plane.finished(run)
    plane.stop("worker")
    tamper(plane, "DELETE FROM idempotency_keys", run)
    tamper(plane, "TRUNCATE runs, run_changes, events CASCADE", run)
    done = plane.cli("reindex")
    assert done.returncode == 0, done.stderr
    after = plane.run(run)
    for name in ("approval", "plan_run", "confirming_run", "plan", "approved_by", "approved_at", "approve_reason"):
        assert after[name] == before[name], name
    assert plane.run(before["plan_run"])["plan_for"] == run


def test_the_metrics_count_what_waits_for_an_approval(
    control_plane: ControlPlane, mia: httpx.Client, tmp_path: Path
) -> None:
    def waiting() -> float:
        lines = control_plane.http.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("bazaruto_runs_waiting_for_approval ")).split()[1])

    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    before = waiting()
    assert before >= 1
    decide(mia, run, "reject", reason="counted")
    assert waiting() == before - 1
