"""Business rules that change while the service runs, and their check on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bazaruto.service import rules

from .conftest import Client, Installation, wait_until


@pytest.fixture(scope="module")
def site(install: Callable[..., Installation]) -> Installation:
    return install()


@pytest.fixture(scope="module")
def reader(site: Installation) -> Client:
    return site.serve().login(site.add_user("agent"))


def _write(site: Installation, document: Any) -> None:
    """As an editor or Ansible does: a new file, renamed into place."""
    new = site.home / "config" / "new.json"
    new.write_text(document if isinstance(document, str) else json.dumps(document))
    new.replace(site.home / "config" / "business_rules.json")


def _good(version: int | str) -> dict[str, Any]:
    days = dict.fromkeys(("motor", "home", "health", "travel", "life"), 0)
    return {"version": version, "auto_approval_limits": {"motor": {"EUR": 5}}, "waiting_periods_days": days}


def test_a_changed_file_is_in_force_without_a_restart_and_a_wrong_one_is_not(
    site: Installation, reader: Client
) -> None:
    _write(site, _good(7))
    shown = wait_until(lambda: (now := reader.get("/v1/rules").json())["version"] == 7 and now)
    assert shown["last_error"] is None
    assert shown["rules"]["auto_approval_limits"] == {"motor": {"EUR": 5}}

    _write(site, _good(8) | {"auto_approval_limits": {"motor": {"EUR": -5}}})
    refused = wait_until(lambda: (now := reader.get("/v1/rules").json())["last_error"] and now)
    assert (refused["version"], refused["sha256"]) == (7, shown["sha256"])
    assert "auto_approval_limits.motor.EUR" in refused["last_error"]["error"]
    check = reader.get("/healthz/detailed").json()["checks"]["rules"]
    assert check["status"] == "degraded"
    assert "version 7 stays in force" in check["error"]
    lines = [json.loads(line) for line in (site.home / "log" / "bazarutod.log").read_text().splitlines()]
    assert any("Business rules refused" in line["message"] for line in lines)

    changed = _good(7) | {"auto_approval_limits": {}}
    _write(site, changed)
    wait_until(lambda: "give it another version" in (reader.get("/v1/rules").json()["last_error"] or {})["error"])

    (site.home / "config" / "business_rules.json").unlink()
    wait_until(lambda: "cannot be read" in (reader.get("/v1/rules").json()["last_error"] or {})["error"])
    assert reader.get("/v1/rules").json()["version"] == 7

    _write(site, _good("an older one, restored"))
    wait_until(lambda: reader.get("/v1/rules").json()["version"] == "an older one, restored")
    assert reader.get("/healthz/detailed").json()["checks"]["rules"]["status"] == "healthy"


def test_rules_are_shown_to_those_who_logged_in(reader: Client) -> None:
    assert Client(reader.url, reader.process).get("/v1/rules").status_code == 401


def test_the_check_command_names_each_error(shared: Installation, tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(_good(1)))
    assert shared.bazarutod("rules", "check", str(file)).returncode == 0
    file.write_text(json.dumps(_good(0) | {"auto_approval_limits": {"yacht": {}, "home": {"EURO": 1}}, "extra": 1}))
    done = shared.bazarutod("rules", "check", str(file))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) >= 4
    for name in ("version", "yacht", "EURO", "extra"):
        assert name in done.stderr


def test_the_check_command_refuses_what_is_no_file(shared: Installation, tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        done = shared.bazarutod("rules", "check", str(path))
        assert (done.returncode, "cannot be read" in done.stderr) == (1, True)


def test_the_schema_beside_the_module_is_the_models() -> None:
    beside = Path(rules.__file__).with_name("business_rules.schema.json")
    assert beside.read_text() == rules.schema_text()
