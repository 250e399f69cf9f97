"""What a killed run left in Ansible's temporary directories is removed, and nothing of a playbook that lives."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from bazaruto.control.engine import traces
from bazaruto.control.engine.redactor import Redactor

SECRET = "a-secret-of-the-run-4711"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ansible of a user with this home keeps what is temporary."""
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".ansible" / "tmp"
    place.mkdir(parents=True)
    return place


def leave(place: Path, name: str) -> Path:
    directory = place / name
    directory.mkdir()
    (directory / "arguments").write_text(f"password={SECRET}")
    return directory


def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["ansible-local-{pid}x8_q2k1z", "ansible-tmp-{now}-{pid}-123456789012345"])
def test_only_what_no_living_process_made_is_removed(temporary: Path, tmp_path: Path, name: str) -> None:
    now = f"{time.time():.6f}"
    mine = leave(temporary, name.format(pid=os.getpid(), now=now))
    left = leave(temporary, name.format(pid=dead(), now=now))
    traces.remove(Redactor([SECRET]), time.time() - 5, tmp_path / "facts")
    assert mine.is_dir()
    assert not left.exists()
