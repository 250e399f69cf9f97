"""`.ci/environment`, which makes .venv for make: what it refuses, and what a failed installation leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in miniature: what .ci/environment reads, with locks that hold nothing."""
    directory = tmp_path / "a checkout"
    shutil.copytree(ROOT / ".ci", directory / ".ci")
    shutil.copy(ROOT / "Makefile", directory / "Makefile")
    locks = directory / "app" / "requirements"
    locks.mkdir(parents=True)
    for name in ("build", "service", "control", "dev"):
        (locks / f"{name}.txt").touch()
    (directory / "pyproject.toml").touch()
    return directory


def make(checkout: Path, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BAZARUTO_", "MAKE"))}
    return subprocess.run(
        ["make", *words, f"PYTHON={python}"],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_wrong_python_is_refused_before_anything_is_made(checkout: Path) -> None:
    done = make(checkout, "up", python="/bin/false")
    assert done.returncode != 0
    assert "PYTHON=/bin/false is no Python 3.11 or newer with its venv module" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_failed_installation_says_why_and_is_made_anew_by_the_next(checkout: Path) -> None:
    (checkout / "app" / "requirements" / "control.txt").write_text("./not-there.whl\n")
    done = make(checkout, "up")
    assert done.returncode != 0
    assert "The packages could not be installed" in done.stderr
    assert "not-there.whl" in done.stderr
    assert (checkout / ".venv" / ".incomplete").exists()
    (checkout / ".venv" / "half").touch()
    again = make(checkout, "up")
    assert "Making .venv with Python" in again.stderr
    assert not (checkout / ".venv" / "half").exists()


def test_before_make_up_nothing_is_set_up_and_make_says_so(checkout: Path) -> None:
    for target in ("down", "status", "clean"):
        done = make(checkout, target)
        assert (done.returncode, done.stdout.startswith("Nothing is set up here")) == (0, True), done.stderr
