"""The storage's format: names, statuses, locks, what may be used and what may go."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import role_modules

find = role_modules.load("database_backup", "backup_find")
retention = role_modules.load("database_backup", "backup_retention")
from ansible.module_utils.bazaruto_backup import storage  # noqa: E402 - found after role_modules was imported
from ansible.module_utils.bazaruto_backup.refusal import Refused  # noqa: E402

NOW = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)
PROPERTIES = {
    "owner": "bazaruto",
    "encoding": "UTF8",
    "collate": "C",
    "ctype": "C",
    "locale_provider": "c",
    "locale": None,
    "connection_limit": -1,
    "comment": None,
    "tablespace": "pg_default",
    "has_grants": False,
    "grants": [],
    "settings": [],
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "back ups"
    made.mkdir(mode=0o700)
    return made


def put(directory: Path, name: str, *, status: str = "unverified", content: bytes = b"PGDMP") -> Path:
    """A backup of that status, as backup and drill would have left it."""
    path = directory / f"{name}.dump"
    path.write_bytes(content)
    manifest: dict[str, Any] = {
        "format": 1,
        "name": name,
        "created_at": storage.show_time(storage.Backup(name, directory, "", "", None, None).created_at),
        "database": "bazaruto",
        "size_bytes": len(content),
        "sha256": storage.sha256(path),
        "server_version": "18.6",
        "database_bytes": 1000,
        "rows": {},
        "constraints": {},
        "roles": [],
        "properties": PROPERTIES,
    }
    (directory / f"{name}.json").write_text(json.dumps(manifest))
    if status in {"verified", "failed"}:
        seen = path.stat()
        proof = {
            "status": status,
            "sha256": manifest["sha256"],
            "size_bytes": seen.st_size,
            "mtime_ns": seen.st_mtime_ns,
            "error": "it is broken",
        }
        storage.proof_path(directory, name).parent.mkdir(exist_ok=True)
        storage.proof_path(directory, name).write_text(json.dumps(proof))
    return path


@pytest.mark.parametrize("status", ["unverified", "verified", "failed"])
def test_a_backup_has_the_status_its_proof_gives_it(directory: Path, status: str) -> None:
    put(directory, "bazaruto_20261101_000000", status=status)
    assert [backup.status for backup in storage.backups(directory)] == [status]


def test_a_verified_backup_that_was_touched_since_is_unverified_again(directory: Path) -> None:
    path = put(directory, "bazaruto_20261101_000000", status="verified")
    os.utime(path, ns=(1, 1))
    found = storage.read(directory, path.stem)
    assert (found.status, found.why) == ("unverified", "its file was touched since it was verified: drill it again")


def test_a_manifest_without_its_dump_is_missing(directory: Path) -> None:
    put(directory, "bazaruto_20261101_000000").unlink()
    assert storage.backups(directory)[0].status == "missing"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda text: "", "not readable"),
        (lambda text: "[]", "not readable"),
        (lambda text: text.replace('"sha256"', '"sha1"'), "lacks sha256"),
        (lambda text: text.replace('"owner"', '"proprietor"'), "lacks properties.owner"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "newer release"),
        (lambda text: text.replace("_20261101_", "_20261102_"), "is that of"),
        (lambda text: text.replace('"size_bytes": 5', '"size_bytes": 6'), "its manifest says 6"),
    ],
)
def test_a_backup_with_a_wrong_manifest_is_failed(directory: Path, spoil: Callable[[str], str], why: str) -> None:
    path = put(directory, "bazaruto_20261101_000000").with_suffix(".json")
    path.write_text(spoil(path.read_text()))
    found = storage.read(directory, path.stem)
    assert found.status == "failed"
    assert why in found.why


def test_archives_of_the_guide_and_partial_files_are_no_backups(directory: Path) -> None:
    for name in ("bazaruto_20261101_000000.sql.gz", "bazaruto_20261101_000000.dump.partial", "other.dump", "x.json"):
        (directory / name).touch()
    assert storage.backups(directory) == []


def test_only_our_own_partial_files_are_leftovers_and_with_a_partial_dump_its_manifest(directory: Path) -> None:
    mine = [
        "bazaruto_20261101_000000.dump.partial",
        "bazaruto_20261101_000000.json",
        "bazaruto_20261101_000000.roles.sql",
    ]
    for name in [*mine, "bazaruto_20261101_000000.sql.partial", "notes.partial", "bazaruto_20261102_000000.json"]:
        (directory / name).touch()
    assert sorted(path.name for path in storage.leftovers(directory)) == sorted(mine)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not exist"):
        storage.usable(str(tmp_path / "nowhere"), writable=True)


def test_a_relative_directory_is_refused() -> None:
    with pytest.raises(Refused, match="not an absolute path"):
        storage.usable("backups", writable=True)


def test_a_link_to_elsewhere_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(Refused, match="is a link to"):
        storage.usable(str(tmp_path / "link"), writable=True)


def test_a_read_only_directory_is_refused_also_for_root(directory: Path) -> None:
    directory.chmod(0o500)
    with pytest.raises(Refused, match="read-only"):
        storage.usable(str(directory), writable=True)
    assert storage.usable(str(directory), writable=False) == directory


def test_a_directory_everybody_may_write_into_is_refused(directory: Path) -> None:
    directory.chmod(0o777)
    with pytest.raises(Refused, match="everybody may write"):
        storage.usable(str(directory), writable=True)


def test_a_file_is_no_directory(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(Refused, match="is not a directory"):
        storage.usable(str(directory / "file"), writable=True)


def test_too_little_space_is_refused_with_what_is_needed(directory: Path) -> None:
    with pytest.raises(Refused, match=f"a backup needs {2**60} bytes"):
        storage.refuse_without_space(directory, 2**60, "a backup")


HOLD = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests import role_modules
from ansible.module_utils.bazaruto_backup import storage
with storage.storage_lock(Path(sys.argv[2]), "the other hand", check_mode=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_hands_collide_naming_who_holds_the_storage_and_a_killed_one_lets_go(directory: Path) -> None:
    argv = [sys.executable, "-c", HOLD, str(role_modules.ROOT), str(directory)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for check_mode in (False, True):
            with (
                pytest.raises(Refused, match=f"the other hand, process {other.pid} on"),
                storage.storage_lock(directory, "me", check_mode=check_mode),
            ):
                pass
        other.kill()
    with storage.storage_lock(directory, "me", check_mode=False):
        pass


def test_check_mode_does_not_even_make_the_lock(directory: Path) -> None:
    with storage.storage_lock(directory, "me", check_mode=True):
        assert list(directory.iterdir()) == []


def test_a_restore_takes_the_newest_verified_and_a_drill_the_newest(directory: Path) -> None:
    put(directory, "bazaruto_20261101_000000", status="verified")
    put(directory, "bazaruto_20261102_000000", status="verified")
    put(directory, "bazaruto_20261103_000000", status="failed")
    put(directory, "bazaruto_20261104_000000")
    assert find.choose(str(directory), "", "restore")["name"] == "bazaruto_20261102_000000"
    assert find.choose(str(directory), "", "drill")["name"] == "bazaruto_20261104_000000"


def test_an_unverified_backup_is_restored_only_when_named_and_a_failed_one_never(directory: Path) -> None:
    put(directory, "bazaruto_20261103_000000", status="failed")
    put(directory, "bazaruto_20261104_000000")
    with pytest.raises(Refused, match=r"none of the 2 backups .* is verified"):
        find.choose(str(directory), "", "restore")
    assert find.choose(str(directory), "bazaruto_20261104_000000.dump", "restore")["status"] == "unverified"
    with pytest.raises(Refused, match=r"is failed \(it is broken\)"):
        find.choose(str(directory), "bazaruto_20261103_000000", "restore")


@pytest.mark.parametrize(
    "name",
    ["../bazaruto_20261101_000000", "/etc/passwd", "bazaruto", "a/b.sql.gz", "..sql.gz", "bazaruto_20261101_000000\n"],
)
def test_a_path_is_no_name(directory: Path, name: str) -> None:
    with pytest.raises(Refused, match="is not the name of a backup"):
        find.choose(str(directory), name, "restore")


def test_what_is_not_there_is_refused_by_name(directory: Path) -> None:
    with pytest.raises(Refused, match="there is no backup bazaruto_20261101_000000 in"):
        find.choose(str(directory), "bazaruto_20261101_000000", "drill")
    with pytest.raises(Refused, match=r"there is no archive a\.sql\.gz"):
        find.choose(str(directory), "a.sql.gz", "restore")
    with pytest.raises(Refused, match="there is no backup in"):
        find.choose(str(directory), "", "drill")


def backups(directory: Path, ages_and_statuses: list[tuple[int, str]]) -> list[Any]:
    made = []
    for days, status in sorted(ages_and_statuses):
        name = (NOW - datetime.timedelta(days=days)).strftime("bazaruto_%Y%m%d_%H%M%S")
        made.append(storage.Backup(name, directory, status, "", None, None))
    return made


STATUSES = st.sampled_from(["unverified", "verified", "failed", "missing"])


@given(
    found=st.lists(st.tuples(st.integers(0, 400), STATUSES), unique_by=lambda pair: pair[0], max_size=20),
    days=st.integers(1, 60),
    keep=st.integers(1, 5),
)
def test_retention_never_takes_the_last_verified_nor_the_newest_good_ones(
    found: list[tuple[int, str]], days: int, keep: int
) -> None:
    listed = backups(Path("/nowhere"), found)
    removed, kept = retention.decide(listed, now=NOW, days=days, keep=keep)
    left = [backup for backup in listed if backup not in removed]
    assert all(NOW - backup.created_at >= datetime.timedelta(days=days) for backup in removed)
    assert any(backup.status == "verified" for backup in left) == any(backup.status == "verified" for backup in listed)
    verified = [backup for backup in listed if backup.status == "verified"]
    assert verified[:1] == [backup for backup in left if backup.status == "verified"][:1]
    good = [backup for backup in listed if backup.status in {"verified", "unverified"}]
    assert all(backup in left for backup in good[:keep])
    old = {backup.name for backup in listed if NOW - backup.created_at >= datetime.timedelta(days=days)}
    assert old == {backup.name for backup in removed} | set(kept)


def test_retention_leaves_a_backup_that_is_being_read(directory: Path) -> None:
    name = "bazaruto_20200101_000000"
    path = put(directory, name, status="failed")
    with storage.opened_for_use(path):
        removed, kept = retention.decide(storage.backups(directory), now=NOW, days=30, keep=1)
    assert (removed, kept) == ([], {name: "a restore or drill reads it"})
    removed, kept = retention.decide(storage.backups(directory), now=NOW, days=30, keep=1)
    assert [backup.name for backup in removed] == [name]
