"""What the guide's archives must be before psql sees them, and how invariants are read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests import role_modules

role_modules.load("database_backup", "backup_find")
from ansible.module_utils.bazaruto_backup.refusal import Refused  # noqa: E402 - found after role_modules was imported
from ansible.module_utils.bazaruto_restore import loading, proof, swap  # noqa: E402

SCRIPT = rb"""--
-- PostgreSQL database dump
--
\restrict abc
CREATE TABLE users (email text);
COPY public.users (email) FROM stdin;
\N
\\! not a command, but data
\.
\unrestrict abc
--
-- PostgreSQL database dump complete
--
"""


def archive(tmp_path: Path, script: bytes) -> Path:
    path = tmp_path / "guide.sql.gz"
    path.write_bytes(gzip.compress(script))
    return path


def test_a_complete_dump_passes_whatever_its_data_looks_like(tmp_path: Path) -> None:
    loading.check_script(archive(tmp_path, SCRIPT))


@pytest.mark.parametrize(
    "command", [rb"\connect bazaruto", rb"\! rm -rf /", rb"\i /etc/passwd", rb"\c postgres", rb"\set ON_ERROR_STOP 0"]
)
def test_a_command_to_psql_is_refused_with_its_line(tmp_path: Path, command: bytes) -> None:
    with pytest.raises(Refused, match=r"line 5 of guide\.sql\.gz is a command to psql"):
        loading.check_script(archive(tmp_path, SCRIPT.replace(b"CREATE", command + b"\nCREATE")))


@pytest.mark.parametrize("cut", [10, -1, -8, -12])
def test_a_cut_archive_is_refused(tmp_path: Path, cut: int) -> None:
    path = archive(tmp_path, SCRIPT)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Refused, match="damaged or cut off"):
        loading.check_script(path)


def test_a_flipped_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, SCRIPT)
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(Refused, match="damaged or cut off"):
        loading.check_script(path)


@pytest.mark.parametrize("script", [b"", b"hello\n", SCRIPT.replace(b"dump complete", b"dump")])
def test_what_does_not_end_as_a_dump_is_refused(tmp_path: Path, script: bytes) -> None:
    with pytest.raises(Refused, match="does not end as a complete dump"):
        loading.check_script(archive(tmp_path, script))


def test_a_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "guide.sql.gz"
    path.write_bytes(b"CREATE TABLE users ();")
    with pytest.raises(Refused, match="damaged or cut off"):
        loading.check_script(path)


def test_the_invariants_of_the_role_are_named_statements() -> None:
    text = (role_modules.ROOT / "roles/database_restore/files/invariants.sql").read_text()
    names = [name for name, _statement in proof.read_invariants(text)]
    assert "every_claim_has_a_policy" in names
    assert len(names) == len(set(names)) == text.count("-- name:")


def test_a_file_without_invariants_is_refused() -> None:
    with pytest.raises(Refused, match="not one invariant"):
        proof.read_invariants("SELECT 1;")


def test_names_of_databases_carry_the_run() -> None:
    names = swap.Names("bazaruto", "20261123-154142-3f9a1c")
    assert names.kept == "bazaruto_before_20261123_154142_3f9a1c"
    assert names.new == "bazaruto_restore_20261123_154142_3f9a1c"


@pytest.mark.parametrize(
    ("live", "run"),
    [
        ("Bazaruto", "20261123-154142"),
        ("a b", "20261123-154142"),
        ("a" * 31, "20261123-154142"),
        ("bazaruto", "latest"),
    ],
)
def test_names_that_cannot_carry_a_run_are_refused(live: str, run: str) -> None:
    with pytest.raises(Refused):
        swap.Names(live, run)
