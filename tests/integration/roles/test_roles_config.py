"""The roles config_backup and config_restore, with the service's own check, and a service that runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import role_modules
from tests.integration.roles.conftest import Place
from tests.integration.roles.test_roles_backup import wait_for

DEFAULT_RULES = role_modules.ROOT / "app/bazaruto/service/default_rules.json"


@pytest.fixture
def rules(place: Place) -> Path:
    """The live rules of the place."""
    path = place.home / "config" / "business_rules.json"
    shutil.copy(DEFAULT_RULES, path)
    return path


def set_version(path: Path, version: int) -> None:
    document = json.loads(path.read_text()) | {"version": version}
    path.write_text(json.dumps(document))


def copies(place: Place) -> list[str]:
    return sorted(path.name for path in (place.storage / "config").glob("business_rules_*"))


def test_a_backup_and_its_restore_and_a_second_restore_that_changes_nothing(place: Place, rules: Path) -> None:
    made = place.play("config_backup")
    assert made.returncode == 0, made.output
    assert made.result is not None
    name = made.result["name"]
    assert copies(place) == [f"{name}.json"]
    assert (place.storage / "config" / f"{name}.json").stat().st_mode & 0o777 == 0o600

    set_version(rules, 2)
    asked = place.play("config_restore")
    assert asked.returncode == 2
    assert "-e confirm=local" in asked.words
    assert json.loads(rules.read_text())["version"] == 2

    done = place.play("config_restore", "--diff", confirm="local", config_restore_backup=name)
    assert done.returncode == 0, done.output
    assert '+  "version": 1' in done.output
    assert rules.read_bytes() == DEFAULT_RULES.read_bytes()
    assert done.result is not None
    kept = done.result["replaced"]
    assert json.loads((place.storage / "config" / f"{kept}.json").read_text())["version"] == 2

    again = place.play("config_restore", confirm="local")
    assert (again.returncode, again.changed) == (0, 0), again.output
    assert copies(place) == sorted([f"{name}.json", f"{kept}.json"])

    back = place.play("config_restore", confirm="local", config_restore_backup=kept)
    assert back.returncode == 0, back.output
    assert json.loads(rules.read_text())["version"] == 2


def test_wrong_rules_are_not_backed_up(place: Place, rules: Path) -> None:
    rules.write_text('{"version": "one"}')
    done = place.play("config_backup")
    assert done.returncode == 2
    assert "holds no valid business rules" in done.words
    assert copies(place) == []


def test_wrong_rules_are_not_restored_but_wrong_live_ones_are_replaced(place: Place, rules: Path) -> None:
    good, bad = (place.storage / "config" / f"business_rules_2026010{day}_000000.json" for day in (1, 2))
    shutil.copy(DEFAULT_RULES, good)
    bad.write_text("{")
    rules.write_text("not even JSON")
    refused = place.play("config_restore", confirm="local", config_restore_backup=bad.stem)
    assert refused.returncode == 2
    assert rules.read_text() == "not even JSON"
    done = place.play("config_restore", confirm="local", config_restore_backup=good.stem)
    assert done.returncode == 0, done.output
    assert rules.read_bytes() == DEFAULT_RULES.read_bytes()
    assert done.result is not None
    assert (place.storage / "config" / f"{done.result['replaced']}.json").read_text() == "not even JSON"


def test_a_path_is_no_name_and_without_copies_it_says_what_to_do(place: Place, rules: Path) -> None:
    done = place.play("config_restore", confirm="local", config_restore_backup="../../etc/passwd")
    assert done.returncode == 2
    assert "is not the name of a copy" in done.words
    assert "make one with playbooks/config_backup.yml" in place.play("config_restore", confirm="local").words


def test_check_mode_changes_nothing(place: Place, rules: Path) -> None:
    shutil.copy(DEFAULT_RULES, place.storage / "config" / "business_rules_20260101_000000.json")
    set_version(rules, 3)
    before = {path: path.stat().st_mtime_ns for path in place.home.rglob("*")}
    assert place.play("config_backup", "--check").returncode == 0
    done = place.play("config_restore", "--check", "--diff")
    assert done.returncode == 0, done.output
    assert '+  "version": 1' in done.output
    assert {path: path.stat().st_mtime_ns for path in place.home.rglob("*")} == before


def test_old_copies_go_and_the_newest_stays_whatever_its_age(place: Place, rules: Path) -> None:
    for day in (1, 2, 3):
        shutil.copy(DEFAULT_RULES, place.storage / "config" / f"business_rules_2020010{day}_000000.json")
    done = place.play("config_backup")
    assert done.result is not None, done.output
    assert copies(place) == [f"{done.result['name']}.json"]
    assert done.result["removed"] == [f"business_rules_2020010{day}_000000.json" for day in (1, 2, 3)]


@pytest.fixture
def service(place: Place, rules: Path) -> Iterator[str]:
    """bazarutod with the place's rules and database; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BAZARUTO_")}
    environment |= {"BAZARUTO_HOME": str(place.home), "BAZARUTO_SERVICE_PORT": str(port)}
    environment["BAZARUTO_DATABASE_URL"] = place.cluster.url_of(place.database)
    log = place.home / "service.out"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "bazarutod", "serve"], env=environment, stdout=out, stderr=out
        )
    try:
        wait_for(lambda: process.poll() is not None or answers(url))
        assert process.poll() is None, log.read_text()
        place.write_local(service=json.loads((place.home / "local.json").read_text())["service"] | {"url": url})
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/livez", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False  # not there yet


def test_a_running_service_is_asked_whether_it_took_the_rules(place: Place, rules: Path, service: str) -> None:
    shutil.copy(DEFAULT_RULES, place.storage / "config" / "business_rules_20260101_000000.json")
    set_version(rules, 9)
    done = place.play("config_restore", confirm="local")
    assert done.returncode == 0, done.output
    assert done.result is not None
    assert (done.result["service_took_it"], done.result["version"]) == (True, 1)

    # The same version with other content: the service keeps what it has, and the operation says so.
    other = json.loads(DEFAULT_RULES.read_text())
    other["waiting_periods_days"]["motor"] = 99
    (place.storage / "config" / "business_rules_20260102_000000.json").write_text(json.dumps(other))
    refused = place.play("config_restore", confirm="local", config_restore_service_seconds=3)
    assert refused.returncode == 2
    assert "the service did not take it" in refused.words
    assert "give it another version" in refused.words
