"""What a site cannot be built from is named, all of it at once, before a host is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import role_modules

site_values = role_modules.load("site_preflight", "site_values")
site_host = role_modules.load("site_preflight", "site_host")


def found(**changed: Any) -> str:
    values = {
        "inventory": "inventories/here",
        "groups": {"database": ["db1"], "app": ["app1", "app2"]},
        "single_groups": ["database"],
        "domain": "bazaruto.test",
        "addresses": {"db1": "10.0.0.1", "app1": "10.0.0.2", "app2": "2001:470::2"},
        "management_addresses": ["10.0.0.0/24", "10.1.0.1"],
        "secrets": {"owner": "0123456789abcdef"},
        "secret_names": ["owner"],
        "sums": [{"what": "Pools", "value": 75, "maximum": 75, "mend": "lower them"}],
        "files": [{"variable": "bundle", "path": __file__, "mend": "make it"}],
        **changed,
    }
    return " ".join(site_values.problems(values))


def test_values_that_can_work_are_taken() -> None:
    assert found() == ""


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"groups": {"database": [], "app": []}}, "No host is in app, database:"),
        ({"groups": {"database": ["db1", "db2"]}}, "database has db1, db2, and can have one host only"),
        ({"domain": ""}, "site_domain is not set"),
        ({"domain": "shop.Example.com"}, "site_domain is still shop.Example.com, the example's"),
        ({"addresses": {"db1": ""}}, "site_address of db1 is not set"),
        ({"addresses": {"db1": "192.0.2.9", "a": "db.example"}}, "example's at a (db.example), db1 (192.0.2.9)"),
        ({"addresses": {"db1": "127.0.1.1"}}, "leads each host to itself at db1 (127.0.1.1)"),
        ({"addresses": {"a": "10.0.0.1", "b": "10.0.0.1"}}, "site_address of a, b is the same, 10.0.0.1"),
        ({"management_addresses": []}, "site_management_addresses is empty"),
        ({"management_addresses": ["10.0.0.0/8/8"]}, "'10.0.0.0/8/8', which is neither an address nor a network"),
        ({"management_addresses": ["198.51.100.7"]}, "site_management_addresses still has 198.51.100.7"),
        ({"secrets": {}}, "site_secrets lacks owner"),
        ({"secrets": {"owner": "change-me-change-me"}}, "still has a placeholder at owner"),
        ({"secrets": {"owner": "short"}}, "fewer than 16 characters at owner"),
        ({"sums": [{"what": "Pools", "value": 96, "maximum": 75, "mend": "lower them"}]}, "Pools come to 96, and 75"),
        ({"files": [{"variable": "bundle", "path": "/no/file", "mend": "make it"}]}, "bundle is /no/file, which is no"),
    ],
)
def test_what_cannot_work_is_named(changed: dict[str, Any], sentence: str) -> None:
    assert sentence in found(**changed)


def test_no_refusal_says_a_secret() -> None:
    assert "hunter2" not in found(secrets={"owner": "hunter2"}, secret_names=["other"])


def test_management_from_anywhere_is_no_example() -> None:
    assert found(management_addresses=["0.0.0.0/0", "::/0"]) == ""


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n', False),
        ('ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n', True),
        ('ID=ubuntu\nVERSION_ID="12"\nPRETTY_NAME="Ubuntu 12"\n', True),
    ],
)
def test_only_a_release_the_roles_know_is_taken(text: str, refused: bool, tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(text)
    said = list(site_host._release(tmp_path / "os-release", ["12"]))
    assert bool(said) == refused
    assert all("and the roles are written for Debian 12" in each for each in said)


def test_too_little_space_is_said_of_the_nearest_directory_there_is(tmp_path: Path) -> None:
    assert list(site_host._space({str(tmp_path / "not" / "there"): 1})) == []
    (sentence,) = site_host._space({str(tmp_path): 2**40})
    assert f"{tmp_path} has" in sentence


def test_who_holds_the_lock_of_apt_is_named_and_nobody_is_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock-frontend"
    lock.touch()
    monkeypatch.setattr(site_host, "LOCKS", (str(lock), str(tmp_path / "none")))
    assert site_host._holder() is None
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        said = site_host._holder()
        holder.communicate("\n")
    assert f"{lock} is held by pid {holder.pid}, python" in str(said)
    assert site_host._holder() is None
