"""`bazaruto` as a person or a script types it: what it prints, and the exit codes of the contract."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import ControlPlane

pytestmark = pytest.mark.embedded


def test_run_shows_progress_by_task_and_host_and_ends_with_the_result(control_plane: ControlPlane) -> None:
    done = control_plane.cli("run", "say", "-p", "word=salut", "-p", "count=2", "-p", "loud=true", "-p", "names=a,b")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Say a word" in lines
    said = next(index for index, line in enumerate(lines) if re.fullmatch(r"  ✓ localhost  Say the word  ok.*", line))
    assert lines[said + 1].rstrip() == "    salut calm 2", "what a debug task says stands below it"
    assert not [line for line in lines if "Validating arguments" in line]
    assert any(line.startswith("say in local: succeeded") for line in lines)
    assert any(re.fullmatch(r" *word +salut *", line) for line in lines)


def test_run_with_json_prints_one_document_the_run(control_plane: ControlPlane) -> None:
    done = control_plane.cli("run", "say", "-e", "local", "-o", "json")
    run = json.loads(done.stdout)
    assert (run["status"], run["result"]["word"], done.stderr) == ("succeeded", "hello", "")


def test_a_failed_run_exits_with_1_and_says_why(control_plane: ControlPlane) -> None:
    done = control_plane.cli("run", "fail")
    assert done.returncode == 1
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert "    The disk is full: free some space." in lines, "below its task"
    assert lines[-1] == 'Task "Refuse the impossible" failed on localhost: The disk is full: free some space.'
    assert json.loads(control_plane.cli("run", "fail", "-o", "json").stdout)["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nothing"], ["operation"]),
        (["say", "-e", "mars"], ["environment"]),
        (["say", "-p", "count=many", "-p", "word=NO", "-p", "tempo=1"], ["count", "word", "tempo"]),
        (["say", "-p", "word"], ["-p word"]),
        (["say", "-p", "word=a", "-p", "word=b"], ["-p word"]),
        (["raze"], ["confirm"]),
        (["raze", "--confirm", "production"], ["confirm"]),
        (["say", "--limit", "@/etc/passwd"], ["limit"]),
        (["say", "-p", b"word=\xff"], ["UTF-8"]),
        (["say", "-p", "count=1e400"], ["count"]),
        (["say", "-p", "count=true"], ["count"]),
        (["../../say", "-e", "/etc"], ["operation", "environment"]),
    ],
)
def test_a_refused_launch_exits_with_2_and_names_every_field(
    control_plane: ControlPlane, words: list[str | bytes], named: list[str]
) -> None:
    done = control_plane.cli("run", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(name in done.stderr for name in named), done.stderr
    assert "Traceback" not in done.stderr


def test_interrupting_the_command_leaves_the_run_running_and_says_so(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    words = ["bazaruto", "run", "slow", "-p", f"file={tmp_path / 'go'}"]
    with subprocess.Popen(words, env=control_plane.environment, stdout=PIPE, stderr=PIPE, text=True) as following:
        assert following.stdout is not None
        while "waiting" not in (line := following.stdout.readline()):
            assert line, "the run's first message came before its end"
        following.send_signal(signal.SIGINT)
        _, said = following.communicate(timeout=10)
    assert following.returncode == 4
    (sentence,) = said.splitlines()
    run = re.findall(r"`bazaruto logs -f (\S+)`", sentence)[0]
    assert control_plane.run(run)["status"] == "running"
    (tmp_path / "go").touch()
    assert control_plane.finished(run)["status"] == "succeeded"


def test_a_reader_that_stops_reading_ends_the_command_without_a_word(control_plane: ControlPlane) -> None:
    for command in ("runs", "operations -o json", "run say"):
        script = f"bazaruto {command} | head -0; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", script], env=control_plane.environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr
        if command == "run say":
            assert done.returncode == 4, "its end was not seen"
            assert "The run goes on" in done.stderr


def test_a_run_ended_at_its_limit_exits_with_3(control_plane: ControlPlane, tmp_path: Path) -> None:
    done = control_plane.cli("run", "brief", "-p", f"file={tmp_path / 'never'}")
    assert done.returncode == 3
    assert "timed_out" in done.stdout


def test_without_a_control_plane_it_says_so_prints_the_command_and_exits_with_4(control_plane: ControlPlane) -> None:
    done = control_plane.cli("run", "say", "-p", "word=salut", "-p", "count=2", "--check", BAZARUTO_CONTROL_PORT="1")
    assert done.returncode == 4
    assert "does not answer" in done.stderr
    command = done.stderr.splitlines()[-1]
    assert "ansible-playbook -i inventories/local playbooks/say.yml --check" in command
    assert '{"sample_word": "salut", "sample_count": 2}' in command
    hidden = control_plane.cli("run", "secret", "-p", "password=hunter22", BAZARUTO_CONTROL_PORT="1")
    assert "hunter22" not in hidden.stderr
    assert control_plane.cli("runs", BAZARUTO_CONTROL_PORT="1").returncode == 4


def test_a_detached_run_is_found_by_runs_show_and_logs(control_plane: ControlPlane) -> None:
    run = json.loads(control_plane.cli("run", "say", "--detach", "-o", "json").stdout)["id"]
    followed = control_plane.cli("logs", run, "-f")
    assert followed.returncode == 0
    assert "TASK [sample : Say the word]" in followed.stdout
    assert "PLAY RECAP" in followed.stdout
    events = json.loads(control_plane.cli("logs", run, "-o", "json").stdout)["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert json.loads(control_plane.cli("show", run, "-o", "json").stdout)["status"] == "succeeded"
    shown = control_plane.cli("show", run).stdout
    assert "accepted from admin" in shown
    listed = control_plane.cli("runs", "--operation", "say", "--status", "succeeded").stdout
    assert run in listed
    assert json.loads(control_plane.cli("runs", "-o", "json", "--limit", "1").stdout)["items"][0]["id"] == run


def test_what_is_not_there_is_one_sentence_and_exit_2(control_plane: ControlPlane) -> None:
    for words in (["show", "20200101-000000-abcdef"], ["logs", "../backups"], ["runs", "--status", "lost"]):
        done = control_plane.cli(*words)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_operations_and_backups_are_listed(control_plane: ControlPlane) -> None:
    assert "Say a word and return it" in control_plane.cli("operations").stdout
    names = {each["name"] for each in json.loads(control_plane.cli("operations", "-o", "json").stdout)["items"]}
    assert "slow_backup" in names
    assert isinstance(json.loads(control_plane.cli("backups", "-o", "json").stdout)["items"], list)
