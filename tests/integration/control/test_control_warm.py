"""A run that is forked from a warm process is, from inside and outside, the run that would have been executed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bazaruto import processes
from bazaruto.control.engine import launcher, rundir, surroundings

CONTENT = Path(__file__).parent / "warm_content"
DEADLINE_SECONDS = 60.0
# What may differ between a forked playbook and an executed one. Everything else that it reports is compared.
MAY_DIFFER = {
    "chance",  # drawn anew by every process
    "modules",  # the fork has ansible-runner's and the supervisor's loaded too
}


def until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (answer := what()):
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.01)
    return answer


@dataclasses.dataclass
class Run:
    """One run's directory, and what it is started with."""

    id: str
    home: Path
    directory: rundir.RunDirectory
    environment: dict[str, str]
    content: Path
    lock: int

    def request(self) -> launcher.Request:
        return launcher.Request(self.id, str(self.directory.path), self.environment, str(self.content))

    @contextlib.contextmanager
    def log(self) -> Iterator[int]:
        descriptor = os.open(self.directory.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def forked(self, warm: launcher.Launcher) -> int:
        with self.log() as log:
            return warm.launch(self.request(), self.lock, log)

    def executed(self) -> subprocess.Popen[bytes]:
        words = [
            sys.executable,
            "-m",
            "bazaruto.control.engine.guard",
            self.id,
            str(self.directory.path),
            str(self.lock),
        ]
        with self.log() as log:
            return subprocess.Popen(
                words,
                env=self.environment,
                cwd=self.content,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self.lock],
                start_new_session=True,
            )

    def outcome(self) -> rundir.Outcome:
        found: rundir.Outcome = until(self.directory.outcome)
        return found

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.directory.events_file.read_text(encoding="utf-8").splitlines()]

    def report(self) -> dict[str, Any]:
        """What the content's callback plugin saw, without what is this run's own."""
        text = (self.home / f"report-{self.id}.json").read_text(encoding="utf-8")
        text = text.replace(self.id, "RUN")
        for pattern, instead in (
            (r"ansible-local-\w+", "ansible-local"),
            (r"/dev/pts/\d+", "/dev/pts"),
            (r" at 0x\w+", ""),
            (r"#\d+ \(deleted\)", "deleted"),
            (r"pipe:\[\d+\]", "pipe"),
        ):
            text = re.sub(pattern, instead, text)
        report: dict[str, Any] = json.loads(text)
        return report


class Bench:
    """A home, a content directory, and a warm process for it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.content = home / "content"
        shutil.copytree(CONTENT, self.content)
        self.warm = launcher.Launcher(self.environment("x"))

    def environment(self, run: str, content: Path | None = None) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{surroundings.SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "BAZARUTO_HOME": str(self.home),
            "BAZARUTO_RUN_ID": run,
            "ANSIBLE_CONFIG": str((content or self.content) / "ansible.cfg"),
        }

    def start(self) -> None:
        self.warm.start()
        until(self.warm.is_ready)

    def run(self, playbook: str = "report", content: Path | None = None, **spec: Any) -> Run:
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        directory = rundir.RunDirectory(self.home / "control" / "runs" / name)
        content = content or self.content
        more: dict[str, str] = spec.pop("environment", {})
        directory.create(
            rundir.Spec(
                run=name,
                operation=playbook,
                environment="local",
                content_directory=str(content),
                playbook=str(content / "playbooks" / f"{playbook}.yml"),
                inventory=str(content / "inventories" / "local"),
                timeout_seconds=DEADLINE_SECONDS,
                **spec,
            ),
            {},
        )
        lock = rundir.try_lock(directory.supervisor_lock)
        assert lock is not None
        return Run(name, self.home, directory, {**self.environment(name, content), **more}, content, lock)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("warm"))
    made.start()
    yield made
    made.warm.stop()


@pytest.fixture
def own_bench(tmp_path: Path) -> Iterator[Bench]:
    """For tests that freeze or kill the warm process."""
    made = Bench(tmp_path)
    made.start()
    yield made
    made.warm.stop()


OTHER_SETTINGS = {
    "paths": "[defaults]\nroles_path = here\nfilter_plugins = filters\naction_plugins = actions\nforks = 3\n"
    "nocows = false\ncollections_path = collections\ncallback_result_format = yaml\nvault_password_file = vault.sh\n",
    "ssh": "[defaults]\ngathering = explicit\n[ssh_connection]\nssh_args = -o ControlMaster=auto\n"
    "[inventory]\nany_unparsed_is_failed = true\n",
}


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ("", {}),
        ("", {"check": True, "diff": True}),
        ("", {"environment": {"ANSIBLE_VERBOSITY": "3", "ANSIBLE_DISPLAY_ARGS_TO_STDOUT": "1", "TZ": "Asia/Tokyo"}}),
        ("", {"environment": {"ANSIBLE_FORCE_COLOR": "1", "ANSIBLE_FORKS": "2", "PGPASSFILE": "/nowhere"}}),
        ("paths", {}),
        ("ssh", {}),
    ],
    ids=["plain", "check and diff", "verbose elsewhere", "other variables", "other paths", "other ssh"],
)
def test_a_forked_playbook_sees_what_an_executed_one_sees(
    bench: Bench, tmp_path: Path, settings: str, more: dict[str, Any]
) -> None:
    content = bench.content
    if settings:
        content = tmp_path / "content"
        shutil.copytree(CONTENT, content)
        (content / "ansible.cfg").write_text(OTHER_SETTINGS[settings], encoding="utf-8")
    executed, forked = bench.run(content=content, **more), bench.run(content=content, **more)
    child = executed.executed()
    assert executed.outcome().status == "succeeded", executed.outcome()
    child.wait(DEADLINE_SECONDS)
    until_launched(bench, forked)
    assert forked.outcome().status == "succeeded", forked.outcome()
    left, right = forked.report(), executed.report()
    assert "ansible_runner" in left["modules"], forked.directory.log_file.read_text()
    assert "ansible_runner" not in right["modules"]
    assert {name for name in right if left[name] != right[name]} <= MAY_DIFFER, differences(left, right)
    assert told(forked) == told(executed)
    assert forked.directory.log_file.read_bytes() == executed.directory.log_file.read_bytes() == b""


def until_launched(bench: Bench, run: Run) -> None:
    """Launch from the warm process: one with other settings of its own is renewed first."""

    def launched() -> bool:
        with contextlib.suppress(launcher.LauncherUnavailable):
            return run.forked(bench.warm) > 0
        return False

    until(launched)


def differences(left: dict[str, Any], right: dict[str, Any]) -> str:
    lines = []
    for name in sorted(set(left) - MAY_DIFFER):
        if left[name] == right.get(name):
            continue
        if isinstance(left[name], dict):
            keys = [key for key in {**left[name], **right[name]} if left[name].get(key) != right[name].get(key)]
            lines += [f"{name}.{key}: {left[name].get(key)!r} | {right[name].get(key)!r}" for key in keys]
        else:
            lines.append(f"{name}: {left[name]!r} | {right[name]!r}")
    return "\n".join(lines)


def told(run: Run) -> list[Any]:
    """A run's events without what no two runs share: times, uuids, pids."""
    own = ("at", "uuid", "seconds")
    text = json.dumps([{name: event[name] for name in event if name not in own} for event in run.events()])
    text = text.replace(run.id, "RUN")
    for pattern in (
        r"\d+:\d+:\d+\.\d+",
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d+",
        r'"(duration|pid)": [\d.]+',
        r"\w{12}-\w{4}-\w{4}-\w{4}-\w{12}",
        r"ansible-local-\w+",
        r"ansible-tmp-[\d.-]+",
        r"tmp[\w]{8}\b",
        r"\d+\.\d+ seconds",
    ):
        text = re.sub(pattern, "#", text)
    events: list[Any] = json.loads(text)
    return events


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ANSIBLE_LOG_PATH": "LOG"}, "DEFAULT_LOG_PATH"),
        ({"ANSIBLE_NO_LOG": "true"}, "DEFAULT_NO_LOG"),
        ({"ANSIBLE_TASK_TIMEOUT": "7"}, "TASK_TIMEOUT"),
        ({"ANSIBLE_STRATEGY": "free"}, "DEFAULT_STRATEGY"),
        ({"LC_TIME": "C"}, "LC_TIME"),
    ],
)
def test_a_setting_that_importing_used_up_makes_the_playbook_executed(
    bench: Bench, variables: dict[str, str], named: str
) -> None:
    log = bench.home / "ansible.log"
    until_launched(bench, bench.run())  # a launcher that is renewed for this run would have imported with its settings
    run = bench.run(environment={name: value.replace("LOG", str(log)) for name, value in variables.items()})
    until_launched(bench, run)
    assert run.outcome().status == "succeeded"
    assert f"executed, not forked: Ansible was imported with another {named}\n" in run.directory.log_file.read_text()
    report = run.report()
    assert "ansible_runner" not in report["modules"]
    assert log.exists() == (named == "DEFAULT_LOG_PATH")
    log.unlink(missing_ok=True)


def test_each_process_shows_its_own_words_and_run_to_others(bench: Bench) -> None:
    run = bench.run("slow")
    guard = run.forked(bench.warm)
    supervisor = json.loads(
        until(lambda: run.directory.supervisor_file.exists() and run.directory.supervisor_file.read_text())
    )["pid"]
    until(lambda: run.directory.events_file.exists() and "runner_on_start" in run.directory.events_file.read_text())
    family = [member.pid for member in processes.descendants(guard)]
    playbooks = [pid for pid in family if "ansible-playbook" in " ".join(processes.arguments_of(pid))]
    shown = {pid: [word for word in processes.arguments_of(pid) if word] for pid in (guard, supervisor, *playbooks)}
    assert shown[guard][1:5] == ["-m", "bazaruto.control.engine.guard", run.id, str(run.directory.path)]
    assert shown[supervisor][1:] == ["-m", "bazaruto.control.engine.supervisor", run.id, str(run.directory.path)]
    assert playbooks
    assert shown[playbooks[0]][-1] == str(bench.content / "playbooks" / "slow.yml")
    for pid in shown:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"BAZARUTO_RUN_ID={run.id}".encode() in variables
        assert os.getsid(pid) != os.getsid(0)
    os.kill(guard, signal.SIGTERM)
    assert run.outcome().status == "interrupted"
    os.close(run.lock)
    until(lambda: not rundir.is_locked(run.directory.supervisor_lock))


def test_many_runs_at_once_leave_nothing_in_the_warm_process(bench: Bench) -> None:
    pid = bench.warm.pid
    assert pid is not None
    opened = sorted(Path(f"/proc/{pid}/fd").iterdir())
    runs = [bench.run() for _ in range(4)]
    for run in runs:
        until_launched(bench, run)
    for run in runs:
        assert run.outcome().status == "succeeded"
        os.close(run.lock)
    until(lambda: not any(rundir.is_locked(run.directory.supervisor_lock) for run in runs))
    assert bench.warm.pid == pid
    assert sorted(Path(f"/proc/{pid}/fd").iterdir()) == opened
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: not children.read_text().strip())  # zombies too
    assert len({json.dumps(run.report()["chance"]) for run in runs}) == len(runs)


def test_a_frozen_warm_process_starts_nothing_and_holds_no_lock(own_bench: Bench) -> None:
    run, pid = own_bench.run(), own_bench.warm.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(launcher.LauncherUnavailable):
        run.forked(own_bench.warm)
    assert processes.identify(pid) is None
    assert not run.directory.guard_file.exists()
    child = run.executed()  # what the worker does then
    assert run.outcome().status == "succeeded"
    child.wait(DEADLINE_SECONDS)
    assert run.directory.events_file.read_text().count('"playbook_on_start"') == 1
    os.close(run.lock)
    assert not rundir.is_locked(run.directory.supervisor_lock)
    again = own_bench.run()
    until_launched(own_bench, again)  # a new one was started
    assert again.outcome().status == "succeeded"


def test_a_process_forked_from_a_late_request_goes_away(own_bench: Bench, tmp_path: Path) -> None:
    run = own_bench.run()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = [sys.executable, "-m", "bazaruto.control.engine.launcher", str(theirs.fileno()), "-" * launcher.ROOM]
        process = subprocess.Popen(words, env=run.environment, pass_fds=[theirs.fileno()], start_new_session=True)
    with ours, run.log() as log:
        ours.settimeout(DEADLINE_SECONDS)
        assert ours.recv(100) == launcher.READY
        process.send_signal(signal.SIGSTOP)
        message = json.dumps(dataclasses.asdict(run.request())).encode()
        late, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with late, theirs:
            socket.send_fds(ours, [message], [theirs.fileno(), log])
        process.send_signal(signal.SIGCONT)  # it reads the request now; the worker has given up
        permit, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with permit:
            with theirs:
                socket.send_fds(ours, [message], [theirs.fileno(), log])
            permit.settimeout(DEADLINE_SECONDS)
            forked = processes.identify(json.loads(permit.recv(1000))["pid"])
            assert forked
        until(lambda: not processes.is_alive(forked))  # it got no lock
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: not children.read_text().strip())
    assert process.wait(DEADLINE_SECONDS) == 0  # the worker's end is closed
    os.close(run.lock)
    assert not run.directory.guard_file.exists()
    assert not rundir.is_locked(run.directory.supervisor_lock)
    assert run.directory.log_file.read_text() == ""


def test_runs_outlive_the_warm_process(own_bench: Bench) -> None:
    run = own_bench.run()
    run.forked(own_bench.warm)
    own_bench.warm.stop()
    assert run.outcome().status == "succeeded"


def test_new_packages_need_a_new_warm_process(
    own_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    before = own_bench.warm.pid
    first = own_bench.run()
    with pytest.raises(launcher.LauncherUnavailable):
        first.forked(own_bench.warm)
    second = own_bench.warm.pid
    assert second != before
    until_launched(own_bench, first)
    assert own_bench.warm.pid == second
    (packages / "ansible_core-99.dist-info").mkdir()
    with pytest.raises(launcher.LauncherUnavailable):
        own_bench.run().forked(own_bench.warm)
    assert own_bench.warm.pid != second
    assert first.outcome().status == "succeeded"
