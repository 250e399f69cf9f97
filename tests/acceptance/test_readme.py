"""The README's and the first steps' commands, taken from their text and run as printed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from .conftest import Platform

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDERS = ("make ", ". .venv")


def commands(page: str, heading: str) -> list[str]:
    """The lines of all shell blocks below one heading, without their comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.MULTILINE)[0]
    lines = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)).splitlines()
    return [line.split("  #")[0].strip() for line in lines if not line.startswith(PLACEHOLDERS)]


def shell(platform: Platform, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in bash from the checkout, against this installation."""
    port = platform.service_url.rsplit(":", 1)[1]
    return subprocess.run(
        ["bash", "-e", "-c", script.replace("localhost:8080", f"localhost:{port}")],
        cwd=ROOT,
        env=platform.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_commands_of_the_readme_work_in_their_order(platform: Platform) -> None:
    found = commands("README.md", "What you will see")
    assert {"bazaruto run backup", "bazaruto run restore_undo --confirm local"} <= set(found)
    for line in found:
        done = shell(platform, line)
        assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_restore_and_its_undo_leave_the_same_rows(platform: Platform) -> None:
    count = "psql -h $DB_HOST -U $DB_USER -d $DB_NAME -Atc 'SELECT count(*), max(id::text) FROM claims'"
    before = shell(platform, f'eval "$(bazaruto env)"\n{count}').stdout
    for line in ("bazaruto run restore --confirm local", "bazaruto run restore_undo --confirm local"):
        done = shell(platform, f"{line} -o json")
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert json.loads(done.stdout)["status"] == "succeeded"
        assert shell(platform, f'eval "$(bazaruto env)"\n{count}').stdout == before


def test_first_steps_lose_something_and_get_it_back(platform: Platform) -> None:
    script = "\n".join(commands("docs/first-steps.md", "Lose something, and get it back"))
    assert "restore --check" in script
    done = shell(platform, script)
    assert done.returncode == 0, (done.stdout, done.stderr)
