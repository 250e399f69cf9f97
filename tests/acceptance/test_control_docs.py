"""docs/control-plane.md's commands, taken from its text and run as printed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import Platform

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "control-plane.md"


@pytest.mark.timeout(600)  # a dozen runs, and the platform, on a machine that does other things too
def test_the_pages_commands_work_in_their_order(platform: Platform) -> None:
    """All blocks in one shell; `curl -f` makes an error status fail, and the run launched by curl is waited for."""
    script = "".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert script.count("curl -s ") > 8
    assert script.count("bazaruto ") > 8
    script = script.replace("http://127.0.0.1:8081", platform.control_url).replace("curl -s ", "curl -sf ")
    script = script.replace("var/", f"{platform.home}/").replace(". .venv/bin/activate\n", "")
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env=platform.environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "\nevent: end\n" in done.stdout, done.stdout
    assert "restore_drill in local: canceled" in done.stdout
    assert "restore_drill in local: succeeded" in done.stdout, "the retry"
    launched = re.search(r'"id":"([^"]+)"[^{}]*"status":"queued"', done.stdout)
    assert launched, done.stdout
    ended = platform.run("logs", "-f", launched[1])
    assert ended.returncode == 0
    run = platform.json("show", launched[1], "-o", "json")
    assert (run["status"], run["reason"]) == ("succeeded", "by curl"), json.dumps(run)


def test_the_page_names_every_state_and_file_there_is(platform: Platform) -> None:
    page = PAGE.read_text(encoding="utf-8")
    from bazaruto.control.runs import RunStatus

    assert not [status for status in RunStatus if f"`{status}`" not in page]
    run = platform.json("runs", "-o", "json", "--limit", "1")["items"][0]["id"]
    directory = platform.home / "control" / "runs" / run
    for name in re.findall(r"^var/control/runs/RUN/(\S+)", page, re.MULTILINE):
        assert (directory / name).is_file(), name
    assert [each.name for each in (platform.home / "control" / "content").iterdir()]
    for name in re.findall(r"^var/(log/\S+|control/[a-z.]+) ", page, re.MULTILINE):
        assert (platform.home / name).is_file(), name


def test_the_access_pages_commands_work_in_their_order(platform: Platform) -> None:
    page = PAGE.with_name("access.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    before = platform.token
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env=platform.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "as ana (viewer)" in done.stdout
    assert platform.token != before, "the last command made a new one"
    assert platform.json("whoami")["token"] == platform.token.split("_")[1]
