"""Copies of the business rules: checked, whole, and nothing lost."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import role_modules

rules_copy = role_modules.load("config_backup", "rules_copy")
IS_JSON = [sys.executable, "-c", "import json, sys; json.load(open(sys.argv[1]))"]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "live.json").write_text('{"version": 7}')
    return {
        "src": str(tmp_path / "live.json"),
        "dest": str(tmp_path / "copy.json"),
        "replace": False,
        "mode": "0600",
        "check_command": IS_JSON,
        "lock": str(tmp_path / ".lock"),
    }


def test_a_copy_is_private_and_named_by_its_version(options: dict[str, Any]) -> None:
    answer = rules_copy.copy(options, check_mode=False)
    copy = Path(options["dest"])
    assert copy.read_text() == '{"version": 7}'
    assert copy.stat().st_mode & 0o777 == 0o600
    assert (answer["changed"], answer["rules"]["version"]) == (True, 7)


def test_a_second_copy_of_the_same_content_changes_nothing(options: dict[str, Any]) -> None:
    rules_copy.copy(options, check_mode=False)
    inode = Path(options["dest"]).stat().st_ino
    assert rules_copy.copy(options, check_mode=False)["changed"] is False
    assert Path(options["dest"]).stat().st_ino == inode


def test_an_existing_copy_is_not_overwritten(options: dict[str, Any]) -> None:
    Path(options["dest"]).write_text("{}")
    with pytest.raises(rules_copy.Refused, match="exists already with other content"):
        rules_copy.copy(options, check_mode=False)
    assert Path(options["dest"]).read_text() == "{}"


def test_check_mode_predicts_and_writes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert rules_copy.copy(options, check_mode=True)["changed"] is True
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("check_mode", [False, True])
def test_wrong_rules_are_refused_and_what_is_live_stays(
    options: dict[str, Any], tmp_path: Path, check_mode: bool
) -> None:
    Path(options["src"]).write_text("{")
    Path(options["dest"]).write_text("{}")
    with pytest.raises(rules_copy.Refused, match="no valid business rules"):
        rules_copy.copy({**options, "replace": True}, check_mode=check_mode)
    assert Path(options["dest"]).read_text() == "{}"
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_what_is_replaced_keeps_its_mode(options: dict[str, Any]) -> None:
    live = Path(options["dest"])
    live.write_text("{}")
    live.chmod(0o644)
    rules_copy.copy({**options, "replace": True}, check_mode=False)
    assert live.stat().st_mode & 0o777 == 0o644


def test_huge_files_links_and_missing_ones_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(rules_copy.Refused, match="there is no file"):
        rules_copy.copy({**options, "src": str(tmp_path / "none.json")}, check_mode=False)
    with Path(options["src"]).open("wb") as file:
        file.truncate(2**21)
    with pytest.raises(rules_copy.Refused, match="more than 1048576 bytes"):
        rules_copy.copy(options, check_mode=False)
    Path(options["dest"]).symlink_to("/etc/passwd")
    with pytest.raises(rules_copy.Refused, match="is a link to"):
        rules_copy.copy(options, check_mode=False)


def test_a_missing_check_command_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(rules_copy.Refused, match="/no/such/bazarutod"):
        rules_copy.copy({**options, "check_command": ["/no/such/bazarutod"]}, check_mode=False)


def test_two_hands_collide(options: dict[str, Any]) -> None:
    descriptor = os.open(options["lock"], os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(rules_copy.Refused, match="somebody else copies"):
            rules_copy.copy(options, check_mode=False)
    finally:
        os.close(descriptor)
    assert rules_copy.copy(options, check_mode=False)["changed"]
