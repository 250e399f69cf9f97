"""A control node that is destroyed is rebuilt from a control backup and the run directories, in a new home."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bazaruto import processes
from tests.acceptance.conftest import BIN, Platform, platform_in

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(900)]  # two whole installations, on a busy machine too
ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 90.0
OVER = {"succeeded", "failed", "canceled", "timed_out", "interrupted", "rejected"}
SHOWN = {"ANSIBLE_SHOW_CUSTOM_STATS": "true", "ANSIBLE_NOCOLOR": "true", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
SAME = ("operation", "status", "requested_by", "reason", "created_at", "started_at", "events", "result", "error")


@dataclasses.dataclass
class Story:
    """What there was before the node was lost, and the node that was rebuilt."""

    plane: Platform
    backup: dict[str, Any]  # as the playbook returned it
    runs: dict[str, dict[str, Any]]
    backups: list[dict[str, Any]]
    audit: list[dict[str, Any]]
    keys: dict[str, bytes]
    started_since: str  # queued in the backup, ended since
    canceled_since: str  # queued in the backup, canceled since
    later: str  # made and ended after the backup
    refused: str = ""  # what the playbook said without its confirmation
    rebuilt: dict[str, Any] = dataclasses.field(default_factory=dict)


def play(plane: Platform, name: str, *words: str) -> tuple[int, str, dict[str, Any] | None]:
    """A playbook by hand: exit code, output as one line, result."""
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", "inventories/local", f"playbooks/{name}.yml", *words],
        cwd=ROOT,
        env={**plane.environment, **SHOWN},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    stats = [line for line in done.stdout.splitlines() if line.startswith("\tRUN: ")]
    result = json.loads(stats[0].removeprefix("\tRUN: "))["result"] if stats else None
    return done.returncode, " ".join((done.stdout + done.stderr).replace("\\n", " ").split()), result


def made(plane: Platform, name: str, *words: str) -> dict[str, Any]:
    code, output, result = play(plane, name, *words)
    assert code == 0, output
    assert result is not None
    return result


def launched(plane: Platform, operation: str, *words: str) -> str:
    return str(plane.json("run", operation, "--detach", *words)["id"])


def ended(plane: Platform, run: str) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (found := plane.json("show", run))["status"] not in OVER:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return dict(found)


def end_worker(plane: Platform) -> None:
    worker = processes.identify(plane.processes()["control-worker"]["pid"])
    assert worker
    processes.send(worker, signal.SIGTERM)
    assert not processes.wait_all([worker], time.monotonic() + 30)


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    """One node is backed up, works on, and is lost; another one is rebuilt in its place."""
    with tempfile.TemporaryDirectory(prefix="bazaruto-rebuild-") as name:
        lost, new = (platform_in(Path(name) / part) for part in ("lost", "new"))
        vault_key = Path(name) / "vault.key"
        vault_key.write_text("a key of vaults, of more than 16 characters\n")
        vault_key.chmod(0o600)
        lost.environment["BAZARUTO_VAULT_PASSWORD_FILE"] = str(vault_key)
        try:
            told = live_and_die(lost)
            survive(lost.home, new.home)
            told.plane = new
            assert new.run("up", "--no-backup", timeout=180).returncode == 0
            code, told.refused, _ = play(new, "control_rebuild")
            assert code != 0
            told.rebuilt = made(new, "control_rebuild", "-e", "confirm=local")
            yield told
        finally:
            for plane in (lost, new):
                plane.run("down")


def live_and_die(plane: Platform) -> Story:
    """Of two runs that wait when the backup is made, one is started and one canceled afterwards; then another run."""
    up = plane.run("up", "--no-backup", timeout=180)
    assert up.returncode == 0, up.stderr
    ended(plane, launched(plane, "config_backup", "--reason", "before the backup"))
    end_worker(plane)
    waiting = [launched(plane, "config_backup", "--reason", reason) for reason in ("started", "canceled")]
    backup = made(plane, "control_backup")
    assert made(plane, "control_drill")["status"] == "verified"
    assert plane.run("cancel", waiting[1], "--reason", "after the backup").returncode == 0
    assert plane.run("up", "--no-backup").returncode == 0
    ended(plane, waiting[0])
    later = launched(plane, "config_backup", "--reason", "after the backup")
    ended(plane, later)
    told = Story(
        plane=plane,
        backup=backup,
        runs={run["id"]: plane.json("show", run["id"]) for run in plane.json("runs")["items"]},
        backups=plane.json("backups")["items"],
        audit=plane.json("audit", "list", "--limit", "1000")["items"],
        keys={name: (plane.home / "control" / name).read_bytes() for name in ("sealing.key", "audit.key", "node")},
        started_since=waiting[0],
        canceled_since=waiting[1],
        later=later,
    )
    assert plane.run("down").returncode == 0
    return told


def survive(lost: Path, new: Path) -> None:
    """What lay on another disk: run directories and backups. All else is gone."""
    for part in ("control/runs", "backups"):
        (new / part).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copytree(lost / part, new / part)
    shutil.rmtree(lost)


def test_a_control_backup_holds_the_keys_closed_and_is_listed_by_its_kind(story: Story) -> None:
    assert story.backup["files"] == [
        "control/audit.key", "control/audit/heads.log", "control/node", "control/sealing.key", "vault/vault.key",
    ]  # fmt: skip
    directory = story.plane.home / "backups" / "control"
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir() if path.is_file()} == {0o600}
    listed = [backup for backup in story.backups if backup["kind"] == "control"]
    assert [(backup["name"], backup["status"]) for backup in listed] == [(story.backup["name"], "verified")]
    assert story.plane.json("backups", "--kind", "control")["items"] == listed
    assert story.plane.json("backups", "--kind", "database")["items"] == []


def test_without_its_confirmation_a_rebuild_says_what_it_would_replace_and_ends_nothing(story: Story) -> None:
    assert "-e confirm=local" in story.refused
    assert "sealing.key is another file than control/sealing.key of the backup" in story.refused


def test_runs_and_backups_are_listed_as_before(story: Story) -> None:
    now = {run["id"]: story.plane.json("show", run["id"]) for run in story.plane.json("runs")["items"]}
    assert now.keys() == story.runs.keys()
    for run, before in story.runs.items():
        if run != story.canceled_since:
            assert {name: now[run][name] for name in SAME} == {name: before[name] for name in SAME}
    assert now[story.later]["status"] == "succeeded"
    assert story.plane.json("backups")["items"] == story.backups
    assert story.rebuilt["runs"] == len(story.runs)
    assert story.rebuilt["backups"] == len(story.backups)


def test_what_waited_in_the_backup_is_not_started_again(story: Story) -> None:
    started, canceled = (story.plane.json("show", run) for run in (story.started_since, story.canceled_since))
    assert started["status"] == "succeeded"
    assert started["started_at"] == story.runs[story.started_since]["started_at"]
    assert canceled["status"] == "interrupted"
    assert canceled["started_at"] is None
    assert "is not known, so it is not started" in canceled["error"]
    copies = list((story.plane.home / "backups" / "config").glob("business_rules_*.json"))
    assert len(copies) == len([run for run in story.runs.values() if run["started_at"]])
    assert ended(story.plane, launched(story.plane, "config_backup"))["status"] == "succeeded"


def test_the_audit_goes_on_from_the_backup_and_can_be_proven(story: Story) -> None:
    kept = [entry for entry in story.audit if entry["seq"] <= story.backup["rows"]["audit_entries"]]
    now = {entry["seq"]: entry for entry in story.plane.json("audit", "list", "--limit", "1000")["items"]}
    assert kept
    assert [now[entry["seq"]] for entry in kept] == kept
    proof = story.plane.run("audit", "verify")
    assert proof.returncode == 0, proof.stdout


def test_keys_and_name_are_those_of_the_lost_node_and_the_new_ones_are_kept(story: Story) -> None:
    control = story.plane.home / "control"
    assert {name: (control / name).read_bytes() for name in story.keys} == story.keys
    (aside,) = control.glob("replaced_*")
    assert set(story.keys) <= {path.name for path in aside.iterdir()}
    assert (control / "sealing.key").stat().st_mode & 0o777 == 0o600
    assert story.rebuilt["files"]["control/sealing.key"] == "replaces another file"


def test_a_lost_sealing_key_is_said_by_backup_and_rebuild_and_never_made_anew(story: Story) -> None:
    key = story.plane.home / "control" / "sealing.key"
    kept = key.read_bytes()
    key.unlink()
    try:
        backup = made(story.plane, "control_backup")
        assert backup["missing"] == ["control/sealing.key"]
        listed = story.plane.json("backups", "--kind", "control")["items"][0]
        assert "control/sealing.key was not there" in listed["status_reason"]
        words = ("-e", "confirm=local", "-e", f"control_rebuild_backup={backup['name']}")
        notes = " ".join(made(story.plane, "control_rebuild", *words)["notes"])
        assert f"there is no {key} either: it is lost" in notes
        assert f"{key} cannot be read" in notes
        assert not key.exists()
    finally:
        key.write_bytes(kept)
        key.chmod(0o600)
