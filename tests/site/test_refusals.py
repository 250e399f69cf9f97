"""What a site cannot be built from is refused by name, before anything is touched on any host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Site
from .plays import Played, play


def assert_refused(played: Played, *sentences: str) -> None:
    """It failed with these words, changed nothing, and broke nowhere."""
    assert played.rc != 0, played
    assert not played.changed, played
    assert "Traceback" not in played.said
    for sentence in sentences:
        assert sentence in played.said, f"{sentence!r} was not said. {played}"


def test_a_host_that_is_down(site: Site) -> None:
    host = site.host("app2")
    host.kill()
    try:
        assert_refused(play(), "No answer over SSH from app2", "Nothing was touched on any host")
    finally:
        host.start()


def test_a_host_that_is_frozen(site: Site) -> None:
    host = site.host("cache1")
    host.freeze()
    try:
        assert_refused(play(), "No answer over SSH from cache1", "Nothing was touched on any host")
    finally:
        host.freeze(False)


def test_a_host_with_a_full_disk(site: Site) -> None:
    disk = next(each for each in site.host("db1").disks if each.volume.name == "backups")
    disk.fill()
    try:
        assert_refused(play(), "/var/backups/bazaruto has 0 MiB free", "free some")
    finally:
        disk.free()


def test_a_host_on_which_apt_is_at_work(site: Site) -> None:
    host = site.host("app3")
    lock = "f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    program = f"import fcntl, time; {lock}; time.sleep(600)"
    host.run(f'systemd-run --unit=planted-apt -p Type=exec python3 -c "{program}"')
    try:
        assert_refused(
            play("-e", "site_preflight_lock_seconds=1"),
            "apt was at work there for 1 s (/var/lib/dpkg/lock-frontend is held by pid",
            "wait until it has ended",
        )
    finally:
        host.run("systemctl stop planted-apt")


@pytest.fixture
def another_release(site: Site) -> Iterator[None]:
    host = site.host("edge1")
    other = "s/^VERSION_ID=.*/VERSION_ID=13/; s/^PRETTY_NAME=.*/PRETTY_NAME=Debian-13/"
    host.run(f"sed -i.kept '{other}' /usr/lib/os-release")
    yield
    host.run("mv /usr/lib/os-release.kept /usr/lib/os-release")


@pytest.mark.usefixtures("another_release")
def test_another_release_of_debian() -> None:
    assert_refused(play(), "It runs Debian-13, and the roles are written for Debian 12")


def test_a_wrong_vault_password(tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong\n")
    assert_refused(
        play(ANSIBLE_VAULT_PASSWORD_FILE=str(wrong)), "does not open with the password", "Nothing was touched"
    )


def test_pools_that_take_more_connections_than_there_are() -> None:
    played = play("-e", "bazaruto_service_db_max_connections=60")
    assert_refused(played, "would open", "of the 75 that", "lower bazaruto_service_db_max_connections (60)")


def test_an_address_that_two_hosts_have() -> None:
    assert_refused(play("-e", "site_address=10.0.0.9"), "is the same, 10.0.0.9: each host needs its own")


def test_secrets_that_are_missing() -> None:
    assert_refused(play("-e", '{"site_secrets": {}}'), "site_secrets lacks database_application_password")


def test_production_left_at_its_example() -> None:
    played = play(inventory="production")
    assert_refused(played, "site_domain is still bazaruto.example.com", "192.0.2.10", "site_secrets lacks")
