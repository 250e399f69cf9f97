"""Approvals on the command line: a launch says what it waits for, and whoever approves sees what they approve."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import ControlPlane
from .test_control_approvals import launched, pending, token_of

pytestmark = pytest.mark.embedded


def as_mia(plane: ControlPlane, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The same command line, where another person is logged in."""
    logins = {"XDG_CONFIG_HOME": str(tmp_path / "mia")}
    if not (tmp_path / "mia").exists():
        environment, token = {**plane.environment, **logins}, token_of(plane, "mia", "approver")
        subprocess.run(["bazaruto", "login"], env=environment, input=token, text=True, check=True)
    return plane.cli(*words, **logins)


def test_run_follows_a_protected_change_through_its_approval(control_plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "words"
    command = ["bazaruto", "run", "rewrite", "-e", "guarded", "-p", f"file={file}"]
    process = subprocess.Popen(command, env=control_plane.environment, stdout=subprocess.PIPE, text=True)
    run = control_plane.until(lambda: _run_for(control_plane, file))
    pending(control_plane, run)
    undecided = as_mia(control_plane, tmp_path, "approve", run)
    assert (undecided.returncode, "add --yes" in undecided.stderr) == (2, True), undecided.stderr
    assert "+hello" in undecided.stdout, "shown before it is asked"
    approved = as_mia(control_plane, tmp_path, "approve", run, "--yes", "--reason", "fine")
    assert approved.returncode == 0, approved.stderr
    assert "approved by mia" in approved.stdout
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert "finds out what it would change" in said
    assert f"`bazaruto approve {run}`" in said
    assert "Write the words" in said
    assert "+hello" in said
    assert file.read_text() == "hello\n"
    shown = control_plane.cli("show", run).stdout
    assert "by mia at " in shown
    assert "would change 4 things" in shown


def test_a_rejected_run_ends_with_2_and_says_who_and_why(control_plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "words"
    command = ["bazaruto", "run", "rewrite", "-e", "guarded", "-p", f"file={file}"]
    process = subprocess.Popen(command, env=control_plane.environment, stdout=subprocess.PIPE, text=True)
    run = control_plane.until(lambda: _run_for(control_plane, file))
    pending(control_plane, run)
    waiting = json.loads(control_plane.cli("runs", "--status", "waiting", "-o", "json").stdout)["items"]
    assert run in {each["id"] for each in waiting}
    rejected = as_mia(control_plane, tmp_path, "reject", run, "--reason", "not on a Friday")
    assert (rejected.returncode, rejected.stdout) == (0, "It was rejected by mia: not on a Friday\n"), rejected.stderr
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 2
    assert "It was rejected by mia: not on a Friday" in said
    late = as_mia(control_plane, tmp_path, "approve", run, "--yes")
    assert (late.returncode, "There is nothing to approve" in late.stderr) == (2, True)


def test_a_withdrawal_ends_well(control_plane: ControlPlane, tmp_path: Path) -> None:
    run = launched(control_plane, tmp_path / "words")
    pending(control_plane, run)
    own = control_plane.cli("approve", run, "--yes")
    assert (own.returncode, "somebody else" in own.stderr) == (2, True)
    withdrawn = control_plane.cli("cancel", run, "--reason", "wrong window", "-o", "json")
    assert withdrawn.returncode == 0, withdrawn.stderr
    ended: dict[str, Any] = json.loads(withdrawn.stdout)
    assert (ended["status"], ended["rejected_by"], ended["reject_reason"]) == ("rejected", "admin", "wrong window")


def _run_for(plane: ControlPlane, file: Path) -> str | None:
    listed = plane.http.get("/api/v1/runs", params={"operation": "rewrite", "environment": "guarded"}).json()["items"]
    found: list[str] = [each["id"] for each in listed if each["parameters"]["file"] == str(file) and not each["check"]]
    return found[0] if found else None
