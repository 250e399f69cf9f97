"""The Operations Guide's commands, taken from its text and run as printed.

Only what names a place is exchanged: the port, the log directory and the backup directory of this installation.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "operations-guide.md"
DAY_SECONDS = 86_400


def commands(heading: str) -> str:
    """The first code block below a heading of the guide."""
    section = GUIDE.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1]
    block = re.search(r"```\w*\n(.*?)```", section, re.DOTALL)
    assert block is not None, heading
    return block[1]


def shell(platform: Any, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the guide's reader would: in bash, after `eval "$(bazaruto env)"`."""
    port = platform.service_url.rsplit(":", 1)[1]
    script = script.replace("localhost:8080", f"localhost:{port}").replace("/var/log/bazaruto", f"{platform.home}/log")
    exports = platform.run("env").stdout
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", f"{exports}\n{script}"],
        env={**platform.environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def superuser(platform: Any) -> psycopg.Connection[Any]:
    server = json.loads((platform.home / "local.json").read_text(encoding="utf-8"))["postgresql"]
    return psycopg.connect(
        host=server["host"],
        port=server["port"],
        user="postgres",
        passfile=server["passfile"],
        dbname="postgres",
        autocommit=True,
    )


def test_health_commands_answer_as_documented(platform: Any) -> None:
    for line in commands("Health Endpoints").splitlines():
        if line.startswith("curl"):
            done = shell(platform, line.replace("curl ", "curl -sf "))
            assert done.returncode == 0, (line, done.stdout, done.stderr)
    answer = json.loads(shell(platform, "curl -s http://localhost:8080/healthz").stdout)
    documented = json.loads(commands("Health Check Response"))
    assert answer.keys() == documented.keys()
    assert answer["checks"].keys() == documented["checks"].keys()
    assert answer["status"] == "healthy"
    for check in answer["checks"].values():
        assert check["status"] == "healthy"
        assert re.fullmatch(r"\d+ms", check["response_time"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", answer["timestamp"])


def test_metrics_command_shows_every_documented_name(platform: Any) -> None:
    text = commands("Prometheus Metrics")
    done = shell(platform, "curl -sf http://localhost:8080/healthz >/dev/null\n" + text.replace("curl ", "curl -sf "))
    assert done.returncode == 0
    exposed = set(re.findall(r"^# TYPE (\S+) ", done.stdout, re.MULTILINE))
    assert set(re.findall(r"^# - (\S+)$", text, re.MULTILINE)) <= exposed


def test_connection_and_job_commands_answer(platform: Any) -> None:
    pool = shell(platform, "curl -s http://localhost:8080/metrics | grep database_connections")
    assert {"database_connections_active", "database_connections_max"} <= set(pool.stdout.split())
    for path in ("/healthz/jobs", "/jobs/failed", "/debug/pprof/heap"):
        done = shell(platform, f"curl -sf http://localhost:8080{path}")
        assert done.returncode == 0, (path, done.stdout, done.stderr)


def test_every_log_line_has_the_documented_shape(platform: Any) -> None:
    shell(platform, "curl -s http://localhost:8080/v1/users")
    documented = {"level", "timestamp", "message"}
    files = sorted((platform.home / "log").glob("*.log"))
    assert files
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            assert documented <= entry.keys(), (path.name, line)
            assert entry["timestamp"].endswith("Z"), line


def test_security_greps_find_failed_logins_and_refusals(platform: Any) -> None:
    password = (platform.home / "secrets" / "demo-password").read_text(encoding="utf-8").strip()
    login = "curl -s -H 'Content-Type: application/json' http://localhost:8080/v1/auth/login -d "
    wrong = json.dumps({"email": "customer@bazaruto.example", "password": "not this one"})
    right = json.dumps({"email": "customer@bazaruto.example", "password": password})
    assert json.loads(shell(platform, f"{login} '{wrong}'").stdout)["status"] == 401
    token = json.loads(shell(platform, f"{login} '{right}'").stdout)["token"]
    refused = shell(platform, f"curl -s -H 'Authorization: Bearer {token}' http://localhost:8080/v1/users")
    assert json.loads(refused.stdout)["status"] == 403

    greps = [line for line in commands("Security Monitoring").splitlines() if line.startswith("grep")]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = [shell(platform, grep) for grep in greps]
        if all(done.returncode == 0 and done.stdout for done in found):
            break
        time.sleep(0.1)
    assert len(greps) == 2
    for done in found:
        assert done.returncode == 0
        assert all(json.loads(line) for line in done.stdout.splitlines())
        assert password not in done.stdout


def test_backup_script_and_recovery_work_and_leave_our_backups_alone(platform: Any, tmp_path: Path) -> None:
    ours = {path.name for path in (platform.home / "backups").iterdir()}
    directory = platform.home / "backups"  # the worst case: the guide's script pointed at our own directory
    times = {path: path.stat().st_mtime_ns for path in directory.glob("bazaruto_*")}
    for path in times:
        old = time.time() - 40 * DAY_SECONDS
        os.utime(path, (old, old))
    script = commands("Database Backup").replace('"/backups"', f'"{directory}"')
    done = shell(platform, script)
    assert done.returncode == 0, done.stderr
    made = sorted(directory.glob("bazaruto_*.sql.gz"))
    try:
        assert len(made) == 1
        assert ours <= {path.name for path in directory.iterdir()}
        with superuser(platform) as connection:
            connection.execute("CREATE DATABASE guide_recovery OWNER bazaruto")
        recovery = commands("Database Recovery").replace("backup_20240115_103000.sql.gz", f"'{made[0]}'")
        done = shell(platform, "export DB_NAME=guide_recovery\n" + recovery)
        assert done.returncode == 0, done.stderr
        assert "ERROR" not in done.stderr
        count = re.search(r"^\s*(\d+)\s*$", done.stdout, re.MULTILINE)
        assert count is not None
        assert int(count[1]) >= 1000
    finally:
        for path, nanoseconds in times.items():
            os.utime(path, ns=(nanoseconds, nanoseconds))  # a proof holds for the file as it was
        for path in made:
            path.unlink()
        with superuser(platform) as connection:
            connection.execute("DROP DATABASE IF EXISTS guide_recovery")


def test_old_archives_of_the_guide_go_and_ours_stay(platform: Any) -> None:
    directory = platform.home / "backups"
    archive = directory / "bazaruto_20200101_000000.sql.gz"
    archive.write_bytes(gzip.compress(b"SELECT 1;"))
    os.utime(archive, (0, 0))
    before = {path.name for path in directory.iterdir()} - {archive.name}
    find = next(line for line in commands("Database Backup").splitlines() if line.startswith("find"))
    assert shell(platform, find, BACKUP_DIR=str(directory)).returncode == 0
    assert not archive.exists()
    assert {path.name for path in directory.iterdir()} == before


@pytest.mark.parametrize("index", ["idx_users_email", "idx_policies_user_id", "idx_claims_status"])
def test_indexes_of_the_guide_exist(platform: Any, index: str) -> None:
    assert index in commands("Database Optimization")
    found = shell(platform, f"psql -h $DB_HOST -U $DB_USER -d $DB_NAME -Atc \"SELECT to_regclass('{index}')\"")
    assert found.stdout.strip() == index, found.stderr
