"""What a person does with a run from a terminal: cancels, leaves, retries, reads it; and how secrets are given."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import httpx
import pexpect
import psycopg
import pytest

if TYPE_CHECKING:
    from .conftest import ControlPlane

pytestmark = pytest.mark.embedded
Terminal = Callable[..., "pexpect.spawn[str]"]
CTRL_C, CTRL_D = "\x03", "\x04"
QUESTION = r"Cancel the run, or detach\? \[c/d\] "


@pytest.fixture
def terminal(control_plane: ControlPlane) -> Iterator[Terminal]:
    """`bazaruto WORDS…` on a terminal of 80 columns; whatever is left of it is ended."""
    opened: list[pexpect.spawn[str]] = []

    def open_(*words: str, **changed: str) -> pexpect.spawn[str]:
        environment = {**control_plane.environment, "TERM": "xterm", **changed}
        child = pexpect.spawn(
            "bazaruto", list(words), env=environment, dimensions=(24, 80), encoding="utf-8", timeout=40
        )
        opened.append(child)
        return child

    yield open_
    for child in opened:
        child.close(force=True)


def exit_code(child: pexpect.spawn[str]) -> int | None:
    child.expect(pexpect.EOF)
    child.wait()
    code: int | None = child.exitstatus
    return code


def newest(plane: ControlPlane, operation: str) -> str:
    found: str = plane.http.get("/api/v1/runs", params={"operation": operation, "limit": 1}).json()["items"][0]["id"]
    return found


def follow_slow(terminal: Terminal, plane: ControlPlane, file: Path) -> tuple[pexpect.spawn[str], str]:
    """A run that is followed on a terminal, and provably in its task."""
    child = terminal("run", "slow_backup", "-p", f"file={file}")
    child.expect("Begin to wait")
    run = newest(plane, "slow_backup")
    plane.in_task(run, "Wait for the file")
    return child, run


def test_ctrl_c_asks_and_cancels_and_follows_to_the_end(
    control_plane: ControlPlane, terminal: Terminal, tmp_path: Path
) -> None:
    child, run = follow_slow(terminal, control_plane, tmp_path / "never")
    child.send(CTRL_C)
    child.expect(QUESTION)
    child.sendline("what?")
    child.expect(QUESTION)
    child.sendline("c")
    child.expect("to be canceled by admin: Ctrl-C")
    child.expect("slow_backup in local: .*canceled")
    assert exit_code(child) == 3
    ended = control_plane.run(run)
    assert (ended["status"], ended["cancel_reason"]) == ("canceled", "Ctrl-C")


@pytest.mark.parametrize("answer", ["d\r", CTRL_C, CTRL_D], ids=["d", "a second Ctrl-C", "the end of the input"])
def test_ctrl_c_asks_and_leaves_the_run_to_itself(
    control_plane: ControlPlane, terminal: Terminal, tmp_path: Path, answer: str
) -> None:
    child, run = follow_slow(terminal, control_plane, tmp_path / "go")
    child.send(CTRL_C)
    child.expect(QUESTION)
    child.send(answer)
    child.expect(f"The run goes on: `bazaruto logs -f {run}`")
    assert exit_code(child) == 4
    assert control_plane.run(run)["cancel_requested_at"] is None
    (tmp_path / "go").touch()
    assert control_plane.finished(run)["status"] == "succeeded"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_without_a_terminal_leaves_the_run_to_itself(
    control_plane: ControlPlane, tmp_path: Path, number: signal.Signals
) -> None:
    words = ["bazaruto", "run", "slow_backup", "-p", f"file={tmp_path / 'go'}"]
    with subprocess.Popen(words, env=control_plane.environment, stdout=PIPE, stderr=PIPE, text=True) as following:
        assert following.stdout is not None
        while "waiting" not in (line := following.stdout.readline()):
            assert line, "the run's first message came before its end"
        following.send_signal(number)
        _, said = following.communicate(timeout=30)
    assert following.returncode == 4
    run = re.findall(r"^The run goes on: `bazaruto logs -f (\S+)` follows it.$", said)[0]
    assert control_plane.run(run)["status"] == "running"
    (tmp_path / "go").touch()
    assert control_plane.finished(run)["status"] == "succeeded"


def test_cancel_waits_for_the_end_and_refuses_what_is_over(control_plane: ControlPlane, tmp_path: Path) -> None:
    run = control_plane.launch("slow_backup", parameters={"file": str(tmp_path / "never")})["id"]
    control_plane.in_task(run, "Wait for the file")
    done = control_plane.cli("cancel", run, "--reason", "wrong day")
    assert done.returncode == 0, done.stderr
    assert "slow_backup in local: canceled" in done.stdout
    assert "canceled by admin: wrong day" in done.stdout
    assert control_plane.run(run)["status"] == "canceled", "it had ended when the command did"
    again = control_plane.cli("cancel", run)
    assert (again.returncode, again.stdout) == (2, "")
    assert "ended already, as canceled" in again.stderr
    shown = control_plane.cli("show", run).stdout
    assert re.search(r"canceled +by admin at \S+Z: wrong day", shown), shown


def test_cancel_with_json_is_the_run_and_detach_does_not_wait(control_plane: ControlPlane, tmp_path: Path) -> None:
    first = control_plane.launch("slow_backup", parameters={"file": str(tmp_path / "go")})["id"]
    behind = control_plane.launch("slow_backup", parameters={"file": str(tmp_path / "go")})["id"]
    canceled = json.loads(control_plane.cli("cancel", behind, "-o", "json").stdout)
    assert (canceled["id"], canceled["status"]) == (behind, "canceled")
    detached = control_plane.cli("cancel", first, "--detach")
    assert (detached.returncode, detached.stdout) == (0, f"Asked for: `bazaruto show {first}` says how it ended.\n")
    assert control_plane.finished(first)["status"] == "canceled"


def test_retry_follows_a_new_run_on_the_hosts_that_failed(control_plane: ControlPlane) -> None:
    failed = json.loads(control_plane.cli("run", "fail", "-o", "json").stdout)["id"]
    done = control_plane.cli("retry", failed, "--reason", "once more", "-o", "json")
    assert done.returncode == 1, "with the new run's truth"
    again = json.loads(done.stdout)
    assert (again["retry_of"], again["limit"], again["reason"]) == (failed, "localhost", "once more")
    assert re.search(rf"retry_of +{failed}", control_plane.cli("show", again["id"]).stdout)
    well = json.loads(control_plane.cli("run", "say", "-o", "json").stdout)["id"]
    refused = control_plane.cli("retry", well)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "succeeded" in refused.stderr


def test_a_secret_is_asked_for_without_echo(control_plane: ControlPlane, terminal: Terminal) -> None:
    """Also again by a retry, since it was not kept. The playbook spills it, which is redacted."""
    secret = f"hunter-{uuid.uuid4().hex}"
    child = terminal("run", "secret", "-p", "password")
    child.expect("password: ")
    child.sendline(secret)
    assert exit_code(child) == 1
    assert "wrong password" in child.before
    assert secret not in child.before
    run = newest(control_plane, "secret")
    again = terminal("retry", run)
    again.expect("password: ")
    again.sendline(secret)
    assert exit_code(again) == 1
    assert secret not in again.before
    assert control_plane.run(newest(control_plane, "secret"))["retry_of"] == run


def test_a_secret_comes_from_the_standard_input_where_there_is_no_terminal(control_plane: ControlPlane) -> None:
    secret = f"hunter-{uuid.uuid4().hex}"
    words = ["bazaruto", "run", "secret", "-p", "password"]
    done = subprocess.run(
        words, env=control_plane.environment, input=f"{secret}\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "wrong password ***" in done.stdout, "it was given: the playbook spilled it"
    assert secret not in done.stdout + done.stderr
    ended = subprocess.run(words, env=control_plane.environment, input="", capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "ended before the line for password" in ended.stderr


def test_a_secret_on_the_command_line_works_with_a_warning(control_plane: ControlPlane) -> None:
    done = control_plane.cli("run", "secret", "-p", "password=hunter2233")
    assert done.returncode == 1
    assert "Others on this machine can read password" in done.stderr
    assert "hunter2233" not in done.stdout + done.stderr
    assert "is not KEY=VALUE" in control_plane.cli("run", "say", "-p", "word").stderr, "what is no secret is not asked"


def test_one_key_is_one_run(control_plane: ControlPlane) -> None:
    key = uuid.uuid4().hex
    runs = {
        json.loads(control_plane.cli("run", "say", "--idempotency-key", key, "--detach", "-o", "json").stdout)["id"]
        for _ in range(2)
    }
    assert len(runs) == 1
    other = control_plane.cli("run", "say", "-p", "word=other", "--idempotency-key", key, "--detach")
    assert other.returncode == 2
    assert "dempotency" in other.stderr


@contextlib.contextmanager
def losing_the_first_answer(plane: ControlPlane) -> Iterator[int]:
    """A way to the control plane on which the answer to the first POST gets lost."""
    lost: list[str] = []

    class Way(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on("GET", None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if lost:
                self._pass_on("POST", body)
            else:
                lost.append(self._answer("POST", body).text)
                self.close_connection = True

        def _answer(self, method: str, body: bytes | None) -> httpx.Response:
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            url = f"http://127.0.0.1:{plane.port}{self.path}"
            return httpx.request(method, url, headers=headers, content=body, trust_env=False)

        def _pass_on(self, method: str, body: bytes | None) -> None:
            answer = self._answer(method, body)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Way) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
    assert lost


def test_a_launch_whose_answer_gets_lost_is_one_run(control_plane: ControlPlane) -> None:
    why = uuid.uuid4().hex
    with losing_the_first_answer(control_plane) as port:
        words = ["run", "say", "--reason", why, "--detach", "-o", "json"]
        done = control_plane.cli(*words, BAZARUTO_CONTROL_PORT=str(port))
    assert done.returncode == 0, done.stderr
    listed = control_plane.http.get("/api/v1/runs", params={"operation": "say", "limit": 20}).json()["items"]
    assert [run["id"] for run in listed if run["reason"] == why] == [json.loads(done.stdout)["id"]]


def without_a_control_plane(plane: ControlPlane, *words: str) -> str:
    """What `bazaruto` says then, called by its path from a shell that does not have it in PATH."""
    program = Path(sys.executable).parent / "bazaruto"
    environment = {**plane.environment, "PATH": os.defpath, "BAZARUTO_CONTROL_PORT": "1"}
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    return done.stderr


def pasted(said: str) -> subprocess.CompletedProcess[str]:
    """The command that was printed, in a shell that knows nothing of Bazaruto."""
    environment = {"PATH": os.defpath, "HOME": os.environ["HOME"], "LC_ALL": "C.UTF-8"}
    words = ["bash", "-c", said.splitlines()[-1]]
    return subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, check=False)


def test_the_command_by_hand_can_be_pasted(control_plane: ControlPlane) -> None:
    words = ["-p", "word=salut", "-p", "count=2", "-p", "names=o'hara,b c", "--check", "--diff", "--limit", "all"]
    by_hand = pasted(without_a_control_plane(control_plane, "run", "say", *words))
    assert by_hand.returncode == 0, by_hand.stdout + by_hand.stderr
    assert "salut calm 2" in by_hand.stdout
    razed = without_a_control_plane(control_plane, "run", "raze", "--confirm", "local")
    assert "-e confirm=local" in razed.splitlines()[-1]
    assert pasted(razed).returncode == 0


def test_by_hand_secrets_are_left_out_and_refusals_are_said(control_plane: ControlPlane, tmp_path: Path) -> None:
    hidden = without_a_control_plane(control_plane, "run", "secret", "-p", "password=hunter22")
    assert "hunter22" not in hidden
    assert "-e @FILE" in hidden
    assert "sample_password: …" in hidden
    (tmp_path / "file").write_text("sample_password: given by file\n", encoding="utf-8")
    by_hand = pasted(f"{hidden.rstrip()} -e @{tmp_path / 'file'}")
    assert "wrong password given by file" in by_hand.stdout
    wrong = without_a_control_plane(control_plane, "run", "raze", "-p", "x=1")
    assert "parameters.x" in wrong
    assert "confirm" in wrong
    assert "ansible-playbook" not in wrong


def test_a_retry_by_hand_is_on_the_hosts_that_failed(control_plane: ControlPlane) -> None:
    failed = json.loads(control_plane.cli("run", "fail", "--diff", "-o", "json").stdout)
    assert failed["status"] == "failed", failed
    said = without_a_control_plane(control_plane, "retry", failed["id"])
    assert "playbooks/fail.yml --diff --limit localhost" in said.splitlines()[-1]
    assert "free some space" in pasted(said).stdout


def test_raw_logs_are_what_ansible_printed(control_plane: ControlPlane, tmp_path: Path) -> None:
    run = control_plane.launch("slow_backup", parameters={"file": str(tmp_path / "go")})["id"]
    control_plane.in_task(run, "Wait for the file")
    words = ["bazaruto", "logs", run, "-f", "--raw"]
    with subprocess.Popen(words, env=control_plane.environment, stdout=PIPE) as following:
        assert following.stdout is not None
        seen = b""
        while b"Begin to wait" not in seen:
            part = os.read(following.stdout.fileno(), 65536)
            assert part, "it ended before the run did"
            seen += part
        (tmp_path / "go").touch()
        seen += following.stdout.read()
    assert following.returncode == 0
    assert b"PLAY RECAP" in seen
    assert control_plane.cli("logs", run, "--raw").stdout.encode() == seen, "nothing twice, nothing left out"
    assert control_plane.cli("logs", run, "--raw", "--after", "10").stdout.encode() == seen[10:]
    assert control_plane.cli("logs", run, "--raw", "-o", "json").returncode == 2


def test_logs_go_on_after_an_event(control_plane: ControlPlane, terminal: Terminal, tmp_path: Path) -> None:
    run = control_plane.launch("slow_backup", parameters={"file": str(tmp_path / "go")})["id"]
    control_plane.in_task(run, "Wait for the file")
    child = terminal("logs", "-f", run)
    child.expect("Begin to wait")
    child.expect("Wait for the file")
    child.send(CTRL_C)
    child.expect(rf"`bazaruto logs -f --after (\d+) {run}` goes on from here")
    after = int(child.match[1])
    assert exit_code(child) == 4
    (tmp_path / "go").touch()
    rest = control_plane.cli("logs", "-f", "--after", str(after), run)
    assert "PLAY RECAP" in rest.stdout
    assert "Begin to wait" not in rest.stdout


def test_one_operation_is_shown_with_its_parameters(control_plane: ControlPlane) -> None:
    shown = control_plane.cli("operations", "say").stdout
    assert re.search(r"count +integer +1 +How often\.\s+1 to 9\.", shown), shown
    assert re.search(r"mood +string +calm +How it is said\. Two sentences of it\.\s+One of calm, merry\.", shown)
    assert "Must match ^[a-z]+$" in shown
    secret = control_plane.cli("operations", "secret").stdout
    assert re.search(r"password +string +required +A secret\.\s+Secret: ", secret), secret
    assert json.loads(control_plane.cli("operations", "say", "-o", "json").stdout)["name"] == "say"
    unknown = control_plane.cli("operations", "nothing")
    assert (unknown.returncode, unknown.stdout) == (2, "")


def test_show_has_the_content_that_was_run(control_plane: ControlPlane) -> None:
    run = json.loads(control_plane.cli("run", "say", "-o", "json").stdout)
    shown = control_plane.cli("show", run["id"]).stdout
    assert re.search(rf"content_digest +{run['content_digest']}", shown), shown
    if run["revision"]:
        changed = ", with changes that are not committed" if run["dirty"] else ""
        assert re.search(rf"revision +{run['revision']}{changed} *\n", shown), shown


def test_show_breaks_the_command_by_hand_nowhere(control_plane: ControlPlane, terminal: Terminal) -> None:
    words = ["run", "repeat", "-p", f"word={'wide ' * 30}"]
    run = json.loads(control_plane.cli(*words, "-o", "json").stdout)["id"]
    child = terminal("show", run)
    assert exit_code(child) == 0
    assert control_plane.run(run)["command"] in child.before.splitlines()[-1]


def test_waive_says_what_no_longer_waits(control_plane: ControlPlane) -> None:
    run = json.loads(control_plane.cli("run", "ping", "-e", "unreachable", "-o", "json").stdout)["id"]
    nothing = control_plane.cli("waive", run, "--reason", "it is switched off")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "nothing to waive" in nothing.stderr
    with psycopg.connect(control_plane.database_url) as connection:  # as a node that is away would have left it
        connection.execute("UPDATE runs SET left_running = '{db1}', node = 'away' WHERE id = %s", [run])
    assert "db1: may still be at work for it" in control_plane.cli("show", run).stdout
    waived = control_plane.cli("waive", run, "--reason", "it is switched off")
    assert waived.returncode == 0, waived.stderr
    assert waived.stdout == "Changes in unreachable no longer wait until it is known what runs on db1.\n"
    assert re.search(r"waived +by admin at \S+Z: it is switched off", control_plane.cli("show", run).stdout)


def offered(plane: ControlPlane, line: str, **changed: str) -> list[str]:
    """What bash gets when TAB is pressed at the end of a line; nothing may be said beside it."""
    environment = {
        **plane.environment,
        "_BAZARUTO_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        **changed,
    }
    done = subprocess.run(["bazaruto"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_shell_completes_from_the_content_without_a_control_plane(control_plane: ControlPlane) -> None:
    away = {"BAZARUTO_CONTROL_PORT": "1"}
    assert offered(control_plane, "bazaruto run slo", **away) == ["slow", "slow_backup"]
    assert "local" in offered(control_plane, "bazaruto run say -e ", **away)
    assert offered(control_plane, "bazaruto run say -p mo", **away) == ["mood=calm", "mood=merry"]
    assert "mood=calm" not in offered(control_plane, "bazaruto run say -p mood=merry -p ", **away)
    assert offered(control_plane, "bazaruto run secret -p ", **away) == ["password"]
    assert offered(control_plane, "bazaruto runs --status s", **away) == ["succeeded"]
    assert "cancel" in offered(control_plane, "bazaruto c", **away)
    assert offered(control_plane, "bazaruto run ", BAZARUTO_CONTENT_DIRECTORY="/nowhere") == []
    assert offered(control_plane, "bazaruto run ", BAZARUTO_NO_SETTING="1") == []


def test_the_shell_completes_runs_by_what_can_be_done_with_them(control_plane: ControlPlane, tmp_path: Path) -> None:
    failed = json.loads(control_plane.cli("run", "fail", "-o", "json").stdout)["id"]
    running = control_plane.launch("slow_backup", parameters={"file": str(tmp_path / "go")})["id"]
    assert {failed, running} <= set(offered(control_plane, "bazaruto show "))
    cancel, retry = (offered(control_plane, f"bazaruto {word} ") for word in ("cancel", "retry"))
    assert (running in cancel, failed in cancel, running in retry, failed in retry) == (True, False, False, True)
    assert failed in offered(control_plane, "bazaruto show ", BAZARUTO_CONTROL_PORT="1"), "from the directories here"
    (tmp_path / "go").touch()
    control_plane.finished(running)
