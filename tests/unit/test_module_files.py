"""Files packed beside a dump: found by name, closed, held to the manifest; put back without losing what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import role_modules

control_files = role_modules.load("control_rebuild", "control_files")
from ansible.module_utils.bazaruto_backup import files, storage  # noqa: E402 - found after role_modules was imported
from ansible.module_utils.bazaruto_backup.refusal import Refused  # noqa: E402

NAME = "bazaruto_20261123_154142"
RUN = "20261123-160000"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with keys, and a directory for backups."""
    for part in ("control/audit", "backups"):
        (tmp_path / part).mkdir(mode=0o700, parents=True)
    for name, text in (("sealing.key", "the key"), ("audit.key.0123", "an old key"), ("audit/heads.log", "one\n")):
        (tmp_path / "control" / name).write_text(text)
    return tmp_path


def packed(home: Path, *more: dict[str, Any]) -> dict[str, Any]:
    """Pack, write the least of a manifest that counts as one, and return what it says of the files."""
    named = [
        ("sealing.key", "control"),
        ("audit.key*", "control"),
        ("node", "control"),
        ("audit/heads.log", "control/audit"),
    ]
    asked = [{"path": str(home / "control" / name), "into": into, "required": True} for name, into in named]
    asked = [{"never_executable": False, **entry} for entry in [*asked, *more]]
    archive = home / "backups" / f"{NAME}{files.ENDING}"
    about: dict[str, Any] = files.pack(asked, archive)
    about |= files.describe(archive, archive.name)
    manifest: dict[str, Any] = {key: kind() for key, kind in storage.MANIFEST_KEYS.items()}
    properties = dict.fromkeys(storage._PROPERTY_KEYS)
    manifest |= {
        "format": 1,
        "name": NAME,
        "created_at": "2026-11-23T15:41:42Z",
        "properties": properties,
        "files": about,
    }
    (home / "backups" / f"{NAME}.json").write_text(json.dumps(manifest))
    return about


def put_back(home: Path, *, check_mode: bool = False) -> tuple[dict[str, str], list[str]]:
    into = {"control": str(home / "control"), "control/audit": str(home / "control" / "audit")}
    options = {"directory": str(home / "backups"), "name": NAME, "into": into, "run": RUN}
    answer: tuple[dict[str, str], list[str]] = control_files.put_back(
        {**options, "only_grow": ["control/audit/heads.log"]}, check_mode=check_mode
    )
    return answer


def test_what_is_named_is_packed_closed_and_what_lacks_is_noted(home: Path) -> None:
    about = packed(home)
    assert sorted(about["members"]) == ["control/audit.key.0123", "control/audit/heads.log", "control/sealing.key"]
    assert about["missing"] == ["control/node"]
    assert (home / "backups" / about["name"]).stat().st_mode & 0o777 == 0o600
    assert files.fault(home / "backups", {"files": about}) == ""


def test_a_script_that_says_a_password_is_left_out(home: Path) -> None:
    script = home / "vault"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    entry = {"path": str(script), "into": "vault", "required": False, "never_executable": True}
    assert list(packed(home, entry)["left_out"]) == ["vault/vault"]
    script.chmod(0o600)
    assert "vault/vault" in packed(home, entry)["members"]


def test_an_archive_that_was_changed_or_is_gone_is_found(home: Path) -> None:
    about = packed(home)
    archive = home / "backups" / about["name"]
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b"the key", b"another"))
    assert "another checksum" in files.fault(home / "backups", {"files": about})
    recomputed = {**about, **files.describe(archive, archive.name)}
    assert "other files than its manifest says: control/sealing.key" in files.fault(
        home / "backups", {"files": recomputed}
    )
    with pytest.raises(Refused, match="was changed"):
        put_back(home)
    archive.unlink()
    assert "is gone" in files.fault(home / "backups", {"files": about})


def test_what_differs_is_kept_aside_and_what_has_grown_stays(home: Path) -> None:
    packed(home)
    key, heads = home / "control" / "sealing.key", home / "control" / "audit" / "heads.log"
    key.write_text("a new key")
    heads.write_text("one\ntwo\n")
    (home / "control" / "audit.key.0123").unlink()
    foreseen, lines = put_back(home, check_mode=True)
    assert key.read_text() == "a new key"
    assert any(str(key) in line and f"replaced_{RUN}" in line for line in lines)
    assert any("node either: it is lost" in line for line in lines)
    assert put_back(home)[0] == foreseen
    assert (key.read_text(), heads.read_text()) == ("the key", "one\ntwo\n")
    assert (home / "control" / f"replaced_{RUN}" / "sealing.key").read_text() == "a new key"
    assert (home / "control" / "audit.key.0123").read_text() == "an old key"
    assert set(put_back(home)[0].values()) == {control_files.SAME, control_files.GROWN}, "again, there is nothing to do"
