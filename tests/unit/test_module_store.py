"""What a store takes in, keeps proofs of, and lets others let go of; no other host is needed to decide that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import role_modules
from tests.unit.test_module_storage import put

fetch = role_modules.load("backup_store", "backup_fetch")
stage = role_modules.load("backup_store", "backup_stage")
release = role_modules.load("backup_store", "backup_release")
proof = role_modules.load("backup_store", "backup_proof")
from ansible.module_utils.bazaruto_backup import storage  # noqa: E402 - found after role_modules was imported
from ansible.module_utils.bazaruto_backup.refusal import Refused  # noqa: E402

NAME = "bazaruto_20261123_120000"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    (made / "arriving" / "db1").mkdir(parents=True)
    made.chmod(0o700)
    return made


@pytest.fixture
def arriving(store: Path) -> Path:
    return store / "arriving" / "db1"


def test_what_arrived_whole_gets_its_name_and_its_modes(store: Path, arriving: Path) -> None:
    put(arriving, NAME)
    assert storage.backups(store) == []
    fetch._seal(arriving, store, NAME, "db1")
    assert [(backup.name, backup.status) for backup in storage.backups(store)] == [(NAME, "unverified")]
    assert {path.stat().st_mode & 0o777 for path in store.glob("*.json")} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in store.glob("*.dump")} == {0o600}


@pytest.mark.parametrize("content", [b"PGDMQ", b"PGD", b""])
def test_what_is_not_what_its_manifest_says_gets_no_name(store: Path, arriving: Path, content: bytes) -> None:
    put(arriving, NAME).write_bytes(content)
    with pytest.raises(Refused, match=f"{NAME} from db1 is not taken into the store"):
        fetch._seal(arriving, store, NAME, "db1")
    assert storage.backups(store) == []
    assert list(arriving.iterdir()) == []  # it is fetched anew, not gone on with


def test_what_has_no_manifest_gets_no_name(store: Path, arriving: Path) -> None:
    put(arriving, NAME)
    (arriving / f"{NAME}.json").unlink()
    with pytest.raises(Refused, match="is not there"):
        fetch._seal(arriving, store, NAME, "db1")
    assert storage.backups(store) == []


def test_parts_of_backups_that_are_no_longer_wanted_go(arriving: Path) -> None:
    (arriving / ".arriving").mkdir()
    for directory in (arriving, arriving / ".arriving"):
        for name in (NAME, "bazaruto_20200101_000000"):
            (directory / f"{name}.dump").touch()
    fetch._forget_others(arriving, [NAME])
    assert sorted(path.name for path in arriving.rglob("*.dump")) == [f"{NAME}.dump"] * 2


def test_only_what_is_stored_with_the_same_checksum_is_let_go_of(store: Path) -> None:
    same, other, unknown = (f"bazaruto_2026112{day}_120000" for day in (1, 2, 3))
    for name in (same, other, unknown):
        put(store, name)
    sha256 = json.loads((store / f"{same}.json").read_text())["sha256"]
    stored = {same: sha256, other: "0" * 64}
    assert release.release(str(store), stored, check_mode=True) == ([same], [unknown, other])
    assert len(storage.backups(store)) == 3
    assert release.release(str(store), stored, check_mode=False) == ([same], [unknown, other])
    assert [backup.name for backup in storage.backups(store)] == [unknown, other]
    assert release.release(str(store), stored, check_mode=False) == ([], [unknown, other])


def test_a_proof_of_other_bytes_is_refused(store: Path) -> None:
    path = put(store, NAME)
    found = {"backup": NAME, "status": "verified", "sha256": "0" * 64}
    with pytest.raises(Refused, match="drill it again"):
        proof.keep(str(store), found, check_mode=False)
    seen = path.stat()
    found |= {"sha256": storage.sha256(path), "size_bytes": seen.st_size, "mtime_ns": seen.st_mtime_ns}
    (store / "proofs").mkdir()
    assert proof.keep(str(store), found, check_mode=True) == ("unverified", "verified")
    assert storage.read(store, NAME).status == "unverified"
    assert proof.keep(str(store), found, check_mode=False) == ("unverified", "verified")


def test_what_belongs_to_a_backup_is_laid_out_with_it(store: Path) -> None:
    put(store, NAME, status="verified")
    assert stage.belonging(store, NAME) == [f"{NAME}.dump", f"{NAME}.json", f"proofs/{NAME}.json"]
    assert stage.belonging(store, "guide.sql.gz") == ["guide.sql.gz"]
