"""Runs through the API: accepted, played, followed, ended truthfully."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import ControlPlane

pytestmark = pytest.mark.embedded


def test_a_run_succeeds_with_its_result_and_its_life(control_plane: ControlPlane) -> None:
    run = control_plane.launch("say", parameters={"word": "salut", "count": 3, "loud": True}, reason="to hear it")
    assert run["status"] == "queued"
    assert run["requested_by"] == "admin"
    ended = control_plane.finished(run["id"])
    assert ended["status"] == "succeeded", ended
    assert ended["result"] == {"word": "salut", "count": 3, "loud": True, "run": run["id"]}
    assert ended["parameters"] == {"word": "salut", "count": 3, "loud": True}
    assert ended["hosts"] == {"localhost": {"ok": 3}}
    assert ended["error"] is None
    assert [change["status"] for change in ended["changes"]] == ["queued", "running", "succeeded"]
    for moment in ("created_at", "started_at", "finished_at"):
        assert ended[moment].endswith("Z")
    by_hand = shlex.split(ended["command"])
    assert by_hand[:-1] == ["ansible-playbook", "-i", "inventories/local", "playbooks/say.yml", "-e"]
    assert json.loads(by_hand[-1]) == {"sample_word": "salut", "sample_count": 3, "sample_loud": True}


def test_events_are_numbered_from_one_without_gaps_and_come_in_pages(control_plane: ControlPlane) -> None:
    run = control_plane.launch("say")["id"]
    total = control_plane.finished(run)["events"]
    pages: list[dict[str, Any]] = []
    after = 0
    while True:
        page = control_plane.http.get(f"/api/v1/runs/{run}/events", params={"after": after, "limit": 5}).json()
        if not page["events"]:
            break
        pages += page["events"]
        after = page["next"]
    assert [event["seq"] for event in pages] == list(range(1, total + 1))
    assert pages[0]["type"] == "playbook_on_start"
    assert pages[-1]["type"] == "playbook_on_stats"
    said = next(event for event in pages if event["type"] == "runner_on_ok" and event["task"] == "Say the word")
    assert (said["host"], said["play"], said["role"], said["changed"]) == ("localhost", "Say a word", "sample", False)
    assert said["at"].endswith("Z")


def test_a_failed_run_names_task_host_and_message_of_the_first_failure(control_plane: ControlPlane) -> None:
    ended = control_plane.finished(control_plane.launch("fail")["id"])
    assert ended["status"] == "failed"
    assert ended["error"] == 'Task "Refuse the impossible" failed on localhost: The disk is full: free some space.'
    assert ended["hosts"] == {"localhost": {"ok": 1, "failed": 1, "ignored": 1}}


def test_an_unreachable_host_fails_the_run(control_plane: ControlPlane) -> None:
    ended = control_plane.finished(control_plane.launch("ping", environment="unreachable")["id"])
    assert ended["status"] == "failed"
    assert ended["error"].startswith('Task "Ask the host" could not reach localhost:')


def test_a_playbook_that_cannot_be_parsed_fails_with_ansibles_words(control_plane: ControlPlane) -> None:
    ended = control_plane.finished(control_plane.launch("broken")["id"])
    assert ended["status"] == "failed"
    assert "'tusks' is not a valid attribute for a Play" in ended["error"]


def test_a_play_without_hosts_is_no_success(control_plane: ControlPlane) -> None:
    ended = control_plane.finished(control_plane.launch("nobody")["id"])
    assert (ended["status"], ended["result"]) == ("failed", None)
    assert ended["error"].startswith("Nothing was done: its inventory has no host for it.")


def test_a_play_that_leaves_a_daemon_on_its_terminal_succeeds_at_its_own_end(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    ended = control_plane.finished(control_plane.launch("linger", parameters={"file": str(file)})["id"])
    left = processes_of(ended["id"])
    file.touch()
    assert (ended["status"], ended["error"]) == ("succeeded", None)
    assert left, "the daemon was there all the time"
    assert control_plane.events(ended["id"])[-1]["type"] == "playbook_on_stats"


def test_a_run_is_ended_at_its_time_limit_with_all_its_processes(control_plane: ControlPlane, tmp_path: Path) -> None:
    run = control_plane.launch("brief", parameters={"file": str(tmp_path / "never")})["id"]
    ended = control_plane.finished(run)
    assert ended["status"] == "timed_out"
    assert "time limit of 3 s" in ended["error"]
    assert processes_of(run) == []


def test_templates_in_parameters_are_taken_as_they_stand(control_plane: ControlPlane) -> None:
    wish = "{{ lookup('pipe', 'id') }} {% raw %}"
    ended = control_plane.finished(control_plane.launch("repeat", parameters={"word": wish})["id"])
    assert ended["result"]["word"] == wish
    by_hand = control_plane.run(ended["id"])["command"]
    assert shlex.split(by_hand)[-1] == '{"sample_word": !unsafe "' + wish + '"}'


def test_check_mode_reaches_the_playbook(control_plane: ControlPlane, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    ended = control_plane.finished(control_plane.launch("touch", parameters={"file": str(target)}, check=True)["id"])
    assert (ended["status"], ended["check"]) == ("succeeded", True)
    assert not target.exists()
    ended = control_plane.finished(control_plane.launch("touch", parameters={"file": str(target)})["id"])
    assert ended["hosts"]["localhost"]["changed"] == 1
    assert target.exists()


def test_changes_wait_for_each_other_in_their_order_and_start_by_themselves(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in "abc"]
    runs = [control_plane.launch("slow", parameters={"file": str(file)})["id"] for file in files]
    control_plane.in_task(runs[0], "Wait for the file")
    second = control_plane.with_status(runs[1], "waiting")
    assert second["status_reason"] == f"waiting for run {runs[0]}"
    assert control_plane.with_status(runs[2], "waiting")["waiting_for"] == runs[1]
    beside = control_plane.finished(control_plane.launch("say")["id"])
    assert beside["status"] == "succeeded", "a read runs beside a change"
    for file in files:
        file.touch()
    ended = [control_plane.finished(run) for run in runs]
    assert [run["status"] for run in ended] == ["succeeded"] * 3
    assert ended[0]["finished_at"] <= ended[1]["started_at"]
    assert ended[1]["finished_at"] <= ended[2]["started_at"]
    waited = [change for change in ended[1]["changes"] if change["status"] == "waiting"]
    assert [change["reason"] for change in waited] == [f"waiting for run {runs[0]}"]


def test_a_backup_excludes_only_its_own_kind(control_plane: ControlPlane, tmp_path: Path) -> None:
    change, first, second = tmp_path / "change", tmp_path / "first", tmp_path / "second"
    changing = control_plane.launch("slow", parameters={"file": str(change)})["id"]
    backups = [control_plane.launch("slow_backup", parameters={"file": str(file)})["id"] for file in (first, second)]
    control_plane.in_task(changing, "Wait for the file")
    control_plane.in_task(backups[0], "Wait for the file")
    assert control_plane.with_status(backups[1], "waiting")["waiting_for"] == backups[0]
    for file in (change, first, second):
        file.touch()
    for run in (changing, *backups):
        assert control_plane.finished(run)["status"] == "succeeded"


def test_a_secret_parameter_is_seen_nowhere(control_plane: ControlPlane, postgres_cluster: Any) -> None:
    secret = 'Xy"7\\pläne&tuesday'
    run = control_plane.launch("secret", parameters={"password": secret})
    ended = control_plane.finished(run["id"])
    assert run["parameters"] == ended["parameters"] == {"password": "***"}
    assert "password" not in ended["command"]
    texts = [json.dumps(ended, ensure_ascii=False), json.dumps(control_plane.events(run["id"]), ensure_ascii=False)]
    texts += [path.read_text(errors="replace") for path in control_plane.home.rglob("*") if path.is_file()]
    assert any("the password is ***" in text for text in texts), "the task did print it"
    spellings = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    assert [spelling for spelling in spellings if any(spelling in text for text in texts)] == []
    dump = database_text(control_plane)
    assert [spelling for spelling in spellings if spelling in dump] == []


def test_an_enormous_event_is_cut_and_says_so(control_plane: ControlPlane) -> None:
    run = control_plane.launch("big")["id"]
    assert control_plane.finished(run)["status"] == "succeeded"
    cut = [event for event in control_plane.events(run) if "cut" in event]
    assert cut[0]["cut"]["stdout"] > 200_000
    assert len(json.dumps(cut[0])) < 64 * 1024


def test_a_run_directory_is_private_and_holds_no_variables_after_the_end(control_plane: ControlPlane) -> None:
    run = control_plane.launch("say")["id"]
    control_plane.finished(run)
    directory = control_plane.directory(run)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not (directory / "private").exists()
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_supervisor_carries_the_run_and_little_else(control_plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "go"
    run = control_plane.launch("slow", parameters={"file": str(file)})["id"]
    control_plane.in_task(run, "Wait for the file")
    proc = Path("/proc") / str(control_plane.supervisor(run))
    assert run in (proc / "cmdline").read_text().split("\0")
    names = {entry.partition("=")[0] for entry in (proc / "environ").read_text().split("\0") if entry}
    assert "BAZARUTO_RUN_ID" in names
    assert not names & {"BAZARUTO_CONTROL_DATABASE_URL", "BAZARUTO_CONTENT_DIRECTORY", "PYTEST_CURRENT_TEST"}
    family = [Path("/proc") / str(pid) for pid in processes_of(run)]
    command_lines = [(member / "cmdline").read_text() for member in family]
    assert any("ansible-playbook" in line for line in command_lines)
    assert not [line for line in command_lines if str(file) in line]
    worker = Path("/proc") / str(control_plane.processes["worker"].pid)
    assert "a planted secret" in (worker / "environ").read_text()
    assert not [member for member in family if "a planted secret" in (member / "environ").read_text()]
    file.touch()
    assert control_plane.finished(run)["status"] == "succeeded"


def test_a_run_outlives_worker_and_api_and_is_followed_to_its_end(control_plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "go"
    run = control_plane.launch("slow", parameters={"file": str(file)})["id"]
    control_plane.in_task(run, "Wait for the file")
    for what in ("worker", "serve"):
        process = control_plane.processes.pop(what)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    file.touch()
    outcome = control_plane.directory(run) / "outcome.json"
    control_plane.until(outcome.exists)
    control_plane.start("serve")
    assert control_plane.run(run)["status"] == "running"
    control_plane.start("worker")
    ended = control_plane.finished(run)
    assert ended["status"] == "succeeded"
    assert [event["seq"] for event in control_plane.events(run)] == list(range(1, ended["events"] + 1))


def test_a_run_whose_supervisor_was_killed_is_interrupted_and_leaves_nothing(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    run = control_plane.launch("slow", parameters={"file": str(tmp_path / "never")})["id"]
    control_plane.in_task(run, "Wait for the file")
    assert processes_of(run)
    os.kill(control_plane.supervisor(run), signal.SIGKILL)
    ended = control_plane.finished(run)
    assert ended["status"] == "interrupted"
    assert "was killed by SIGKILL before it wrote an outcome" in ended["error"]
    assert ended["events"] == len(control_plane.events(run)) > 0
    assert processes_of(run) == []


def test_a_run_whose_guard_was_killed_goes_on_to_its_end(control_plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "go"
    run = control_plane.launch("slow", parameters={"file": str(file)})["id"]
    control_plane.in_task(run, "Wait for the file")
    os.kill(control_plane.guard(run), signal.SIGKILL)
    file.touch()
    assert control_plane.finished(run)["status"] == "succeeded"


def test_what_guard_and_supervisor_leave_when_both_are_killed_is_swept(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    run = control_plane.launch("slow", parameters={"file": str(tmp_path / "never")})["id"]
    control_plane.in_task(run, "Wait for the file")
    for pid in (control_plane.guard(run), control_plane.supervisor(run)):
        os.kill(pid, signal.SIGKILL)
    assert processes_of(run)
    ended = control_plane.finished(run)
    assert ended["status"] == "interrupted"
    assert "guard and its supervisor died" in ended["error"]
    assert ended["events"] == len(control_plane.events(run)) > 0
    assert processes_of(run) == []
    assert not (control_plane.directory(run) / "private").exists()


def test_a_supervisor_that_is_told_to_stop_ends_its_playbook_and_says_so(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    run = control_plane.launch("slow", parameters={"file": str(tmp_path / "never")})["id"]
    control_plane.in_task(run, "Wait for the file")
    os.kill(control_plane.supervisor(run), signal.SIGTERM)
    ended = control_plane.finished(run)
    assert ended["status"] == "interrupted"
    assert "told to stop" in ended["error"]
    assert processes_of(run) == []


def test_a_run_goes_on_while_the_control_database_is_away(
    control_plane: ControlPlane, postgres_cluster: Any, tmp_path: Path
) -> None:
    file = tmp_path / "go"
    run = control_plane.launch("slow", parameters={"file": str(file)})["id"]
    control_plane.in_task(run, "Wait for the file")
    postgres_cluster.restart(signal.SIGKILL)
    file.touch()
    control_plane.until(lambda: control_plane.http.get("/readyz").status_code == 200)
    ended = control_plane.finished(run)
    assert ended["status"] == "succeeded"
    assert [event["seq"] for event in control_plane.events(run)] == list(range(1, ended["events"] + 1))
    started = time.monotonic()
    assert control_plane.finished(control_plane.launch("say")["id"])["status"] == "succeeded"
    assert time.monotonic() - started < 15, "the worker looks for work again"


def test_two_workers_start_each_run_once_and_either_takes_over(control_plane: ControlPlane, tmp_path: Path) -> None:
    first = control_plane.processes["worker"]
    control_plane.start("worker")
    second, file = control_plane.processes["worker"], tmp_path / "go"
    changes = [control_plane.launch("slow", parameters={"file": str(file)})["id"] for _ in range(2)]
    reads = [control_plane.launch("say")["id"] for _ in range(4)]
    control_plane.in_task(changes[0], "Wait for the file")
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    file.touch()
    for run in (*changes, *reads):
        ended = control_plane.finished(run)
        assert ended["status"] == "succeeded"
        assert [change["status"] for change in ended["changes"]].count("running") == 1
        assert [event["seq"] for event in control_plane.events(run)] == list(range(1, ended["events"] + 1))
    assert second.poll() is None


def test_runs_that_were_accepted_without_a_worker_start_when_there_is_one(control_plane: ControlPlane) -> None:
    control_plane.stop("worker")
    run = control_plane.launch("say")["id"]
    degraded = control_plane.http.get("/healthz/detailed").json()
    assert degraded["checks"]["workers"]["error"].startswith("no worker is connected, or was heard of")
    assert control_plane.run(run)["status_reason"] == "no worker serves local: start `bazaruto worker`"
    assert control_plane.run(run)["status"] == "queued"
    control_plane.start("worker")
    assert control_plane.finished(run)["status"] == "succeeded"


def processes_of(run: str) -> list[int]:
    """Living processes that carry the run in their environment."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            carries = f"BAZARUTO_RUN_ID={run}".encode() in (proc / "environ").read_bytes()
            dead = (proc / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if carries and not dead:
            found.append(int(proc.name))
    return found


def database_text(control_plane: ControlPlane) -> str:
    """Everything that the control database holds, as text."""
    import psycopg

    with psycopg.connect(control_plane.database_url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return "\n".join(
            str(row) for (table,) in rows for row in connection.execute(f'SELECT * FROM "{table}"').fetchall()
        )
