"""`bazaruto up`, `down`, `status` and `env`: brought up, mended after every kind of death, refused in sentences."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import bazaruto
from bazaruto import processes

from .conftest import BIN, Platform, free_port, platform_in

SERVERS = ["postgresql-service", "postgresql-control", "redis"]
DAEMONS = ["bazarutod", "bazaruto-worker", "control", "control-worker"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")


def files(home: Path) -> dict[str, int]:
    """Every file that `up` writes, with its time; not what servers and logs write all the time."""
    ours = [home / "local.json"]
    for part in ("secrets", "config", "run", "control", "backups"):
        ours += [path for path in (home / part).rglob("*") if path.is_file() and path.name != "up.lock"]
    return {str(path): path.stat().st_mtime_ns for path in ours}


def processes_of(home: Path) -> list[int]:
    """Every live process that was started for this home, servers included."""
    found = []
    for pid in processes.everyone():
        with contextlib.suppress(OSError):
            inside = (Path("/proc") / str(pid) / "cwd").readlink().is_relative_to(home)
            marked = processes.environment_of(pid).get("BAZARUTO_HOME") == str(home)
            if (inside or marked) and processes.identify(pid) and pid != os.getpid():
                found.append(pid)
    return found


def test_up_leaves_a_verified_backup_and_both_faces_ready(platform: Platform) -> None:
    for url in (platform.service_url, platform.control_url):
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            assert answer.status == 200
    statuses = [backup["status"] for backup in platform.json("backups")["items"]]
    assert statuses.count("verified") >= 1


def test_a_second_up_changes_nothing_is_quick_and_says_what_runs(platform: Platform) -> None:
    before, running = files(platform.home), platform.processes()
    backups = platform.json("backups")["items"]
    began = time.monotonic()
    done = platform.run("up", COLUMNS="80")
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert seconds < 15
    assert files(platform.home) == before
    assert platform.processes() == running
    assert platform.json("backups")["items"] == backups
    for name, process in running.items():
        assert name in done.stdout
        assert str(process["pid"]) in done.stdout
    assert platform.service_url in done.stdout
    assert platform.control_url in done.stdout


def test_status_tells_where_everything_is(platform: Platform) -> None:
    done = platform.run("status", "-o", "json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["service"]["url"] == platform.service_url
    assert told["control"]["url"] == platform.control_url
    assert told["service"]["backup_directory"] == str(platform.home / "backups")
    for url in (told["service"]["database_url"], told["control"]["database_url"]):
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert {process["name"] for process in told["processes"]} == {*SERVERS, *DAEMONS}
    assert {process["state"] for process in told["processes"]} == {"running"}


def test_env_makes_the_guides_commands_work_as_printed(platform: Platform) -> None:
    script = (
        f'eval "$({BIN}/bazaruto env)" && command -v pg_dump'
        ' && pg_dump -h $DB_HOST -U $DB_USER -d $DB_NAME --schema-only | grep -c "CREATE TABLE public.users"'
        ' && psql -h $DB_HOST -U $DB_USER -d $DB_NAME -Atc "SELECT COUNT(*) >= 1000 FROM users;"'
    )
    strange = {**platform.environment, "PGPASSWORD": "of something else", "PGHOST": "elsewhere.invalid"}
    done = subprocess.run(["sh", "-c", script], env=strange, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, tables, enough = done.stdout.split()
    assert where == f"{platform.local['postgresql']['bin_directory']}/pg_dump"
    assert (tables, enough) == ("1", "t")


def test_no_secret_stands_in_local_json_and_all_secrets_are_closed(platform: Platform) -> None:
    secrets = [path for path in (platform.home / "secrets").rglob("*") if path.is_file()]
    assert secrets
    words = {line.rsplit(":", 1)[-1] for path in secrets for line in path.read_text().splitlines() if line}
    text = (platform.home / "local.json").read_text()
    assert not [word for word in words if word in text]
    assert {path.stat().st_mode & 0o077 for path in [*secrets, platform.home / "control" / "admin.token"]} == {0}
    assert (platform.home / "secrets").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "victims",
    [
        ["postgresql-service"],
        ["postgresql-control", "redis"],
        ["bazarutod", "control-worker"],
        ["bazaruto-worker", "control"],
    ],
    ids="+".join,
)
def test_what_was_killed_is_mended_by_up(platform: Platform, victims: list[str]) -> None:
    before = platform.processes()
    for name in victims:
        os.kill(before[name]["pid"], signal.SIGKILL)
    down = platform.run("status")
    assert down.returncode == 1, down.stdout
    done = platform.run("up")
    assert done.returncode == 0, done.stderr
    after = platform.processes()
    assert {process["state"] for process in after.values()} == {"running"}
    for name in after:
        assert (after[name]["pid"] != before[name]["pid"]) == (name in victims), name


def test_after_a_reboot_numbers_in_old_records_are_nobody(platform: Platform) -> None:
    before = platform.processes()
    with subprocess.Popen(["sleep", "300"]) as foreign:
        try:
            for name in [*SERVERS, *DAEMONS]:
                os.kill(before[name]["pid"], signal.SIGKILL)
                record = platform.home / "run" / f"{name}.pid.json"
                values = {**json.loads(record.read_text()), "boot_id": "the last boot", "pid": foreign.pid}
                record.write_text(json.dumps(values))
            assert platform.run("up").returncode == 0
            assert platform.run("status").returncode == 0
            assert foreign.poll() is None
        finally:
            foreign.kill()


def test_lost_records_of_running_processes_are_found_again(platform: Platform) -> None:
    before = platform.processes()
    for record in (platform.home / "run").glob("*.pid.json"):
        record.unlink()
    assert platform.processes() == before
    assert platform.run("up").returncode == 0
    assert platform.processes() == before


def test_down_leaves_no_process_and_no_socket_and_keeps_the_data(platform: Platform) -> None:
    with psycopg.connect(platform.service_database_url) as connection:
        users = connection.execute("SELECT count(*) FROM users").fetchone()
    sockets = Path(platform.local["socket_directory"])
    assert sockets.is_dir()
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    at_work = subprocess.Popen(
        [sys.executable, "-c", stubborn], env={**platform.environment, "BAZARUTO_RUN_ID": "20261123-154142-3f9a1c"}
    )
    done = platform.run("down")
    assert done.returncode == 0, done.stderr
    assert "20261123-154142-3f9a1c" in done.stdout
    assert at_work.wait(timeout=5) == -signal.SIGKILL
    assert processes_of(platform.home) == []
    assert not sockets.exists()
    assert list((platform.home / "run").glob("*.pid.json")) == []
    again = platform.run("down")
    assert again.returncode == 0
    assert "nothing ran" in again.stdout
    assert platform.run("status").returncode == 1
    assert platform.run("up").returncode == 0
    with psycopg.connect(platform.service_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == users


def test_two_ups_at_once_end_in_one_installation(platform: Platform) -> None:
    assert platform.run("down").returncode == 0
    both = [
        subprocess.Popen([BIN / "bazaruto", "up"], env=platform.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("is at work here" in output for output in outputs) == 1
    named = [name for pid in processes_of(platform.home) for name in processes.arguments_of(pid)[-1:]]
    assert sorted(named).count("serve") == 2
    assert sorted(named).count("worker") == 2


def test_a_taken_port_is_refused_by_who_has_it_and_what_to_set(platform: Platform, tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for setting in ("BAZARUTO_SERVICE_PORT", "BAZARUTO_CONTROL_PORT"):
            done = platform_in(tmp_path / "var").run("up", **{setting: port})
            assert done.returncode == 1
            assert f"Port {port} on 127.0.0.1 is taken by process {os.getpid()} (" in done.stderr
            assert setting in done.stderr
            assert done.stderr.count("\n") == 1
    assert processes_of(tmp_path / "var") == []


@contextlib.contextmanager
def small_file_system(directory: Path, options: str) -> Iterator[Path]:
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount, not even root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@needs_root
@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "sentence"),
    [("size=40m", "MB free, an installation needs 300 MB"), ("size=400m,ro", "Read-only file system")],
)
def test_a_home_without_space_or_read_only_is_refused_in_a_sentence(
    tmp_path: Path, options: str, sentence: str
) -> None:
    with small_file_system(tmp_path / "small", options) as directory:
        done = platform_in(directory / "var").run("up")
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "BAZARUTO_HOME" in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(directory.iterdir()) == []


def test_a_home_that_is_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("not a directory")
    done = platform_in(tmp_path / "var").run("up")
    assert done.returncode == 1
    assert "BAZARUTO_HOME" in done.stderr
    assert done.stderr.count("\n") == 1


def test_wrong_settings_are_refused_together(tmp_path: Path) -> None:
    done = platform_in(tmp_path / "var").run("up", BAZARUTO_SERVICE_PORT="eighty", BAZARUTO_NO_SUCH="1")
    assert done.returncode == 2
    assert "service_port" in done.stderr
    assert "BAZARUTO_NO_SUCH" in done.stderr
    assert not (tmp_path / "var").exists()


def test_a_second_copy_runs_beside_the_first_under_a_long_path_with_spaces(platform: Platform, tmp_path: Path) -> None:
    home = tmp_path / ("second home with spaces " + "x" * 200)[: 150 - len(str(tmp_path))] / "var"
    second = platform_in(home)
    parents = {path: (path.stat().st_mode, path.stat().st_uid) for path in home.parents if path.exists()}
    first = platform.processes()
    try:
        done = second.run("up", "--no-backup")
        assert done.returncode == 0, done.stderr
        assert second.run("status").returncode == 0
        assert platform.processes() == first
        assert {path: (path.stat().st_mode, path.stat().st_uid) for path in parents} == parents
        moved = second.run("up", "--no-backup", BAZARUTO_SERVICE_PORT=str(free_port()))
        assert moved.returncode == 1
        assert "bazaruto down" in moved.stderr
        kept = {name: value for name, value in second.environment.items() if not name.endswith("_PORT")}
        unasked = Platform(home, kept)
        assert unasked.run("up", "--no-backup").returncode == 0
        assert unasked.service_url == second.service_url
    finally:
        refused = second.run("down", "--remove-data")  # nobody answers yes
        left = home.exists()
        gone = second.run("down", "--remove-data", "--yes")
    assert refused.returncode == 2
    assert left
    assert gone.returncode == 0, gone.stderr
    assert not home.exists()
    assert processes_of(home) == []
    assert platform.processes() == first


def test_a_daemon_that_dies_at_its_start_says_why(platform: Platform, tmp_path: Path) -> None:
    broken = platform_in(tmp_path / "var")
    try:
        rules = broken.home / "config" / "business_rules.json"
        rules.parent.mkdir(parents=True)
        content = tmp_path / "content"
        content.mkdir()
        done = broken.run("up", "--no-backup", BAZARUTO_CONTENT_DIRECTORY=str(content))
        assert done.returncode == 1
        assert "ended while it started" in done.stderr
        assert str(content) in done.stderr
    finally:
        broken.run("down", "--remove-data", "--yes")


def python_for_everyone() -> str:
    """An interpreter of this version that every user may run."""
    show = "import sys; print(sys.version_info[:2])"
    for candidate in (sys.executable, "/usr/bin/python3"):
        reachable = subprocess.run([*AS_NOBODY, "test", "-x", os.path.realpath(candidate)], check=False, cwd="/")
        told = subprocess.run([candidate, "-c", show], capture_output=True, text=True, check=False)
        if reachable.returncode == 0 and told.stdout.strip() == str(sys.version_info[:2]):
            return candidate
    pytest.skip("the user nobody can run no Python of this version: it lies below a directory closed to others")


LOCK = Path(__file__).resolve().parents[2] / "app" / "requirements" / "control.txt"
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]


@pytest.fixture
def for_everyone() -> Iterator[Path]:
    """An environment with these packages that every user may run, below a directory that every user may enter."""
    python = python_for_everyone()
    packages = [path for path in sys.path if path.endswith("site-packages")] + [str(Path(bazaruto.__file__).parents[1])]
    with tempfile.TemporaryDirectory(prefix="bazaruto-nobody-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        subprocess.run([python, "-m", "venv", "--without-pip", directory / "venv"], check=True)
        (site,) = (directory / "venv").glob("lib/python*/site-packages")
        # What the tester's own Python is too new to have; the lock says which.
        older = [line.split(" ;")[0] for line in LOCK.read_text().splitlines() if "< '3.11.3'" in line]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, *older]
        if older and subprocess.run(pip, check=False).returncode:
            pytest.skip(f"{', '.join(older)}, which an older Python needs, could not be fetched")
        (site / "these.pth").write_text("\n".join(packages) + "\n")
        for program, module in (("bazaruto", "bazaruto.control.cli"), ("bazarutod", "bazaruto.service.cli")):
            script = directory / "venv" / "bin" / program
            script.write_text(f"#!{directory}/venv/bin/python\nfrom {module} import main\nmain()\n")
            script.chmod(0o755)
        (directory / "home").mkdir()
        os.chown(directory / "home", NOBODY, NOBODY)
        yield directory


@needs_root
@pytest.mark.root
def test_a_normal_user_needs_no_root(for_everyone: Path) -> None:
    home = for_everyone / "home" / "var"
    mine = platform_in(home)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*AS_NOBODY, for_everyone / "venv" / "bin" / "bazaruto", *words],
            env={**mine.environment, "HOME": str(home.parent), "XDG_RUNTIME_DIR": ""},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        done = run("up", "--no-backup")
        assert done.returncode == 0, done.stderr
        told = json.loads(run("status", "-o", "json").stdout)
        assert told["running"]
        for process in told["processes"]:
            assert Path(f"/proc/{process['pid']}").stat().st_uid == NOBODY, process
        local = json.loads((home / "local.json").read_text())
        assert local["postgresql"]["server_command_prefix"] == []
        assert local["postgresql"]["server_user"] is None
    finally:
        gone = run("down")
    assert gone.returncode == 0, gone.stderr
    assert processes_of(home) == []


def test_env_before_up_says_what_to_run(tmp_path: Path) -> None:
    done = platform_in(tmp_path / "var").run("env")
    assert done.returncode == 1
    assert "make up" in done.stderr
    assert done.stdout == ""
