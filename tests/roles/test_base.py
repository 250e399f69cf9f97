"""A bare Debian made a host of the site: who comes in, where, and what a reboot or a careless hand does to it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.waiting import until

from .conftest import check_tells_the_truth, converge

LISTEN = "systemd-run --quiet --unit=listen-{port} python3 -m http.server --bind 0.0.0.0 {port}"


@pytest.fixture(scope="module")
def db(host: Callable[[str], Host]) -> Host:
    return host("db1")


@pytest.fixture(scope="module")
def listening(db: Host) -> None:
    """Something answers on a port for some, and on one for nobody."""
    for port in (8080, 8081):
        db.run(LISTEN.format(port=port))
    until(
        lambda: len(db.run("ss -Hltn '( sport = 8080 or sport = 8081 )'").stdout.splitlines()) == 2,
        10,
        "nothing listens on 8080 and 8081",
    )


def reaches(db: Host, port: int, source: str) -> bool:
    """Whether somebody with this address gets a connection."""
    try:
        socket.create_connection((db.address, port), 1, source_address=(source, 0)).close()
    except TimeoutError:
        return False
    return True


def login(db: Host, user: str, *options: str) -> subprocess.CompletedProcess[str]:
    """SSH as another user, with the lab's key."""
    words = [*db.ssh(), "id", "-un"]
    words[1:1] = ["-l", user, *options]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.usefixtures("listening")
def test_ports_are_open_for_whom_they_were_named_and_for_nobody_else(db: Host, network: dict[str, Any]) -> None:
    management, outside = network["management_address"], network["outside_address"]
    assert reaches(db, 8080, outside)
    assert not reaches(db, 8080, management)
    assert not reaches(db, 8081, outside)
    assert not reaches(db, 8081, management)
    assert reaches(db, 22, management)
    assert not reaches(db, 22, outside)


def test_people_come_in_by_key_and_do_as_root_only_what_was_named(db: Host) -> None:
    assert login(db, "ana").stdout.strip() == "ana"
    assert db.run("sudo -u ana sudo -n /usr/bin/systemctl restart chrony.service").returncode == 0
    assert db.run("sudo -u ana sudo -n /usr/bin/id", check=False).returncode == 1
    assert db.run("sudo -u ana journalctl -n 1 -q").stdout
    assert db.run("getent passwd left", check=False).returncode == 2
    assert db.run("getent shadow ana").stdout.split(":")[1] == "*"


def test_root_and_passwords_do_not_come_in(db: Host) -> None:
    db.run("mkdir -p /root/.ssh && cp /home/debian/.ssh/authorized_keys /root/.ssh/")
    assert "Permission denied" in login(db, "root").stderr
    said = login(db, "debian", "-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password").stderr
    assert "Permission denied (publickey)" in said


def test_a_connection_outlives_the_loading_of_rules(db: Host) -> None:
    words = db.ssh("read line; echo $line")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as talking:
        db.run("systemctl reload nftables && systemctl restart nftables")
        assert talking.communicate("still here\n", timeout=20)[0] == "still here\n"


def test_time_updates_journal_and_kernel_are_set(db: Host) -> None:
    assert db.run("systemctl is-active chrony nftables ssh").stdout.split() == ["active"] * 3
    assert "Debian-Security" in db.run("apt-config dump Unattended-Upgrade::Origins-Pattern").stdout
    assert db.run("unattended-upgrade --dry-run 2>&1").returncode == 0
    assert "SystemMaxUse=500M" in db.run("systemd-analyze cat-config systemd/journald.conf").stdout
    assert db.run("sysctl -n net.ipv4.conf.all.send_redirects").stdout.strip() == "0"
    assert db.run("getent hosts app1").stdout.split() == ["10.0.0.11", "app1"]


def test_check_mode_tells_the_truth(db: Host) -> None:
    changed = check_tells_the_truth(
        "base",
        db,
        [
            "nft flush ruleset",
            "echo 'PermitRootLogin yes' >> /etc/ssh/sshd_config.d/00-base.conf",
            "echo 'ana ALL=(ALL) NOPASSWD: ALL' >> /etc/sudoers.d/base",
            "echo 10.9.9.9 planted >> /etc/hosts",
            "sysctl -qw net.ipv4.conf.all.accept_redirects=1",
            "ssh-keygen -q -t ed25519 -N '' -f /root/planted",
            "cat /root/planted.pub >> /home/ana/.ssh/authorized_keys",
            "useradd left",
            "systemctl disable --now chrony",
        ],
    )
    assert changed == {
        "See whether they are in force",
        "Load the firewall's rules",
        "Harden SSH",
        "Reload sshd",
        "Say what operators may do as root",
        "Know the other hosts by name",
        "See whether the kernel has them",
        "Let each operator in by the keys named here, and no other",
        "Keep an account for each operator",
        "Start those that do not",
    }


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ('{"base_automation_user": "root"}', "base closes SSH for root"),
        ('{"base_firewall_allow": [{"port": 80, "from": [], "comment": "x"}]}', "no rule for port 22"),
        ('{"base_operators": [{"name": "bob"}]}', "without public_keys"),
    ],
)
def test_who_would_shut_himself_out_is_told_before_anything_is_touched(variables: str, says: str) -> None:
    played = converge("base", "-e", variables)
    assert (played.rc, played.changed) == (2, frozenset())
    assert says in played.failed["db1"]


def test_another_debian_is_refused_by_name_before_anything_is_touched(db: Host) -> None:
    db.run(
        "cp --remove-destination /usr/lib/os-release /etc/os-release && "
        "sed -i 's/12/13/; s/bookworm/trixie/' /etc/os-release"
    )
    try:
        played = converge("base")
        assert (played.rc, played.changed) == (2, frozenset())
        assert "Debian GNU/Linux 13 (trixie)" in played.failed["db1"]
    finally:
        db.run("ln -sf ../usr/lib/os-release /etc/os-release")


def test_packages_that_were_left_half_installed_are_finished(db: Host) -> None:
    db.run("apt-get -qq remove -y unattended-upgrades && cd /tmp && apt-get -qq download unattended-upgrades")
    db.run("dpkg --unpack /tmp/unattended-upgrades_*.deb")
    assert converge("base").rc == 0
    assert db.run("dpkg --audit").stdout == ""


def test_a_held_apt_lock_is_named_with_its_holder(db: Host) -> None:
    lock = "f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    hold = f"import fcntl, time; {lock}; time.sleep(99)"
    db.run("apt-get -qq remove -y unattended-upgrades")
    db.run(f'systemd-run --quiet --unit=holder python3 -c "{hold}"')
    until(
        lambda: "lock-frontend" in db.run("lslocks -u -o PATH 2>/dev/null || true").stdout, 10, "nobody holds the lock"
    )
    try:
        played = converge("base", "-e", "base_apt_lock_timeout_seconds=2")
        pid = db.run("systemctl show -P MainPID holder").stdout.strip()
        assert played.rc == 2
        assert f"held by process {pid}" in played.said, played
    finally:
        db.run("systemctl stop holder")
    assert converge("base").rc == 0


def test_everything_is_in_force_after_a_reboot(db: Host, network: dict[str, Any]) -> None:
    db.stop()
    db.start()
    until(
        lambda: db.run("systemctl is-active nftables chrony", check=False).returncode == 0,
        30,
        "nftables or chrony is not active",
    )
    assert not reaches(db, 22, network["outside_address"])
    played = converge("base")
    assert (played.rc, played.changed) == (0, frozenset()), played
