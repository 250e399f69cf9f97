"""What people decide about runs: cancel, retry, waive; and which node may take them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import ControlPlane
from .test_control_runs import processes_of

pytestmark = pytest.mark.embedded


def post(plane: ControlPlane, run: str, what: str, **body: Any) -> Any:
    return plane.http.post(f"/api/v1/runs/{run}/{what}", json=body)


def test_a_running_run_is_canceled_with_all_its_processes_and_says_by_whom(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    run = control_plane.launch("slow", parameters={"file": str(tmp_path / "never")})["id"]
    control_plane.in_task(run, "Wait for the file")
    asked_at = time.monotonic()
    answer = post(control_plane, run, "cancel", reason="wrong window")
    assert answer.status_code == 202
    assert answer.json()["cancel_requested_by"] == "admin"
    control_plane.until((control_plane.directory(run) / "cancel.json").exists)
    assert time.monotonic() - asked_at < 5, "signalled at once, not at the next look"
    ended = control_plane.finished(run)
    assert (ended["status"], ended["cancel_reason"]) == ("canceled", "wrong window")
    assert ended["error"] == "It was canceled by admin: wrong window"
    assert processes_of(run) == []
    reasons = [change["reason"] for change in ended["changes"]]
    assert "to be canceled by admin: wrong window" in reasons
    again = post(control_plane, run, "cancel")
    assert (again.status_code, again.json()["detail"]) == (409, "The run has ended already, as canceled.")


def test_a_waiting_run_is_canceled_at_once_and_whoever_waits_for_it_moves_up(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in "abc"]
    first, second, third = (control_plane.launch("slow", parameters={"file": str(file)})["id"] for file in files)
    control_plane.in_task(first, "Wait for the file")
    assert control_plane.with_status(third, "waiting")["waiting_for"] == second
    canceled = post(control_plane, second, "cancel").json()
    assert (canceled["status"], canceled["started_at"], canceled["waiting_for"]) == ("canceled", None, None)
    assert not control_plane.directory(second).exists()
    control_plane.until(lambda: control_plane.run(third)["waiting_for"] == first)
    for file in files:
        file.touch()
    assert control_plane.finished(first)["status"] == "succeeded"
    assert control_plane.finished(third)["status"] == "succeeded"


def test_a_retry_runs_on_the_hosts_that_failed_only(control_plane: ControlPlane) -> None:
    before = control_plane.finished(control_plane.launch("ping", environment="mixed", reason="first")["id"])
    assert before["status"] == "failed"
    assert {host for host, counts in before["hosts"].items() if counts.get("unreachable")} == {"lost"}
    answer = post(control_plane, before["id"], "retry", reason="once more")
    assert answer.status_code == 202
    after = control_plane.finished(answer.json()["id"])
    assert (after["limit"], after["retry_of"], after["reason"]) == ("lost", before["id"], "once more")
    assert set(after["hosts"]) == {"lost"}


def test_what_did_not_fail_cannot_be_retried(control_plane: ControlPlane, tmp_path: Path) -> None:
    succeeded = control_plane.finished(control_plane.launch("say")["id"])["id"]
    assert post(control_plane, succeeded, "retry").status_code == 409
    file = tmp_path / "go"
    running = control_plane.launch("slow", parameters={"file": str(file)})["id"]
    assert post(control_plane, running, "retry").status_code == 409
    file.touch()
    control_plane.finished(running)
    assert post(control_plane, "20260101-000000-abcdef", "retry").status_code == 404


def test_a_retry_needs_the_secrets_again(control_plane: ControlPlane) -> None:
    failed = control_plane.launch("secret", parameters={"password": "correct horse"})["id"]
    assert control_plane.finished(failed)["status"] == "failed"
    refused = post(control_plane, failed, "retry")
    assert refused.status_code == 422
    (wrong,) = refused.json()["errors"]
    assert (wrong["field"], wrong["message"]) == (
        "parameters.password",
        "is secret and was not kept: give it again",
    )
    accepted = post(control_plane, failed, "retry", parameters={"password": "battery staple"})
    again = control_plane.finished(accepted.json()["id"])
    assert (again["retry_of"], again["parameters"]) == (failed, {"password": "***"})
    assert "battery staple" not in str(control_plane.events(again["id"]))


def test_an_end_never_changes_even_by_hand(control_plane: ControlPlane) -> None:
    run = control_plane.finished(control_plane.launch("say")["id"])["id"]
    with (
        psycopg.connect(control_plane.database_url) as connection,
        pytest.raises(psycopg.errors.RaiseException, match="has ended as succeeded, which never changes"),
    ):
        connection.execute("UPDATE runs SET status = 'failed' WHERE id = %s", [run])


def test_a_change_waits_for_hosts_that_may_still_be_at_work_until_somebody_answers_for_them(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    before = control_plane.finished(control_plane.launch("touch", parameters={"file": str(tmp_path / "a")})["id"])["id"]
    with psycopg.connect(control_plane.database_url) as connection:
        connection.execute("UPDATE runs SET left_running = '{ghost}' WHERE id = %s", [before])
    change = control_plane.launch("touch", parameters={"file": str(tmp_path / "b")})["id"]
    waiting = control_plane.with_status(change, "waiting")
    assert waiting["status_reason"] == f"waiting until it is known that run {before} left nothing running on ghost"
    assert control_plane.finished(control_plane.launch("say")["id"])["status"] == "succeeded", "a read does not wait"
    assert post(control_plane, before, "waive").status_code == 422, "without a reason nobody answers for anything"
    waived = post(control_plane, before, "waive", reason="the machine was scrapped").json()
    assert (waived["waived_by"], waived["left_running"]) == ("admin", ["ghost"])
    assert control_plane.finished(change)["status"] == "succeeded"
    assert post(control_plane, before, "waive", reason="once more").status_code == 409


def test_a_node_starts_only_runs_of_the_environments_it_serves(control_plane_of_ones_own: ControlPlane) -> None:
    plane = control_plane_of_ones_own
    plane.stop("worker")
    plane.extra_environment["BAZARUTO_CONTROL_ENVIRONMENTS"] = "unreachable, mixed"
    plane.start("worker")
    elsewhere = plane.launch("say")["id"]
    here = plane.launch("ping", environment="unreachable")["id"]
    assert plane.finished(here)["status"] == "failed"
    unserved = plane.run(elsewhere)
    assert unserved["status"] == "queued"
    assert unserved["status_reason"] == "no worker serves local: start `bazaruto worker`"
    plane.stop("worker")
    plane.extra_environment.clear()
    plane.start("worker")
    assert plane.finished(elsewhere)["status"] == "succeeded"


def test_each_node_runs_what_it_serves_and_keeps_its_runs(
    control_plane_of_ones_own: ControlPlane, tmp_path: Path
) -> None:
    one = control_plane_of_ones_own
    other = ControlPlane(tmp_path / "other node", one.database_url, one.port)
    for part in ("log", "control"):
        (other.home / part).mkdir(parents=True)
    shutil.copy(one.home / "control" / "sealing.key", other.home / "control")
    one.stop("worker")
    one.extra_environment["BAZARUTO_CONTROL_ENVIRONMENTS"] = "local"
    other.extra_environment["BAZARUTO_CONTROL_ENVIRONMENTS"] = "mixed,unreachable"
    one.start("worker")
    other.start("worker")
    try:
        here, there = one.launch("say")["id"], one.launch("ping", environment="mixed")["id"]
        assert one.finished(here)["status"] == "succeeded"
        assert one.finished(there)["status"] == "failed", "one of its hosts is lost"
        assert (one.directory(here).exists(), one.directory(there).exists()) == (True, False)
        assert (other.directory(here).exists(), other.directory(there).exists()) == (False, True)
        workers = one.http.get("/healthz/detailed").json()["checks"]["workers"]
        assert (workers["count"], workers["nodes"]) == (2, 2)
    finally:
        other.stop("worker")
