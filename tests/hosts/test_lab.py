"""The lab itself: hosts that died are mended, two labs do not meet, and nothing is left of one that is gone."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bazaruto import processes
from tests.hosts.conftest import REPOSITORY
from tests.lab import claims, files, plan
from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.waiting import becomes_true

CGROUPS = Path("/sys/fs/cgroup")
HOME = "a home, with: signs"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its path is what overlayfs, SSH and Ansible each read in their own way."""
    return tmp_path_factory.mktemp(HOME)


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[Lab]:
    """A lab of two of its hosts."""
    lab = Lab(home / "lab" / "one")
    try:
        lab.up(["cache1", "ctl1"])
        yield lab
    finally:
        lab.down()


@pytest.fixture
def cache(lab: Lab) -> Host:
    return lab.host("cache1")


def test_the_inventory_reaches_the_hosts_and_checks_their_keys(lab: Lab, home: Path) -> None:
    assert ansible(home, lab, "cache1,ctl1", "-m", "ping").returncode == 0
    known = lab.directory / "known_hosts"
    kept = known.read_text()
    known.write_text("".join(line for line in kept.splitlines(keepends=True) if "cache1" not in line))
    try:
        done = ansible(home, lab, "cache1", "-m", "ping", "-e", "ansible_control_path_dir=/run/other-bazaruto")
        assert done.returncode != 0
        assert "Host key verification failed" in done.stdout
    finally:
        known.write_text(kept)
        Path("/run/other-bazaruto").rmdir()


def test_a_host_is_as_a_provider_delivers_it(lab: Lab, cache: Host) -> None:
    """Bare, without knowledge of the others; what it installs it has, without a network."""
    assert cache.run("dpkg -l redis-server", check=False).returncode != 0
    assert "ctl1" not in cache.run("cat /etc/hosts").stdout
    assert cache.run("ip route").stdout.splitlines() == [
        f"{lab.claim.network} dev host0 proto kernel scope link src {cache.address} "
    ]
    cache.run("apt-get -qq update && apt-get -qq install jq")
    assert cache.run("echo 1 | jq .").stdout == "1\n"


def test_a_host_that_reboots_is_booted_again(lab: Lab, home: Path, cache: Host) -> None:
    before = cache.run("cat /proc/sys/kernel/random/boot_id").stdout
    done = ansible(home, lab, "cache1", "--become", "-m", "ansible.builtin.reboot")
    assert done.returncode == 0, done.stdout
    assert cache.run("cat /proc/sys/kernel/random/boot_id").stdout != before
    assert cache.is_kept()


def test_what_runs_is_left_and_what_was_killed_is_mended(lab: Lab, cache: Host) -> None:
    """Whoever of nspawn and its keeper is killed; what the host had written is still there."""
    cache.run("touch /root/kept")
    other = lab.host("ctl1").leader()
    for part in ("guest/supervisor", "keeper"):
        killed(cache, part)
        lab.up(["cache1", "ctl1"])
        assert cache.is_kept()
        assert cache.run("ls /root").stdout == "kept\n"
    assert lab.host("ctl1").leader() == other


def test_a_disk_that_is_gone_takes_its_host_with_it(lab: Lab) -> None:
    """Half a host would lie about what lasts: it is made anew."""
    host = lab.host("ctl1")
    host.run("touch /root/kept")
    host.kill()
    host.disk("runs").unmount()
    lab.up(["ctl1"])
    assert host.run("ls /root").stdout == ""


def test_two_labs_do_not_meet(lab: Lab, home: Path, cache: Host) -> None:
    other = Lab(home / "lab" / "two")
    try:
        [theirs] = other.up(["cache1"])
        assert not lab.claim.network.overlaps(other.claim.network)
        theirs.run("hostname theirs")
        assert cache.run("hostname").stdout == "cache1\n"
        assert len({(of.directory / "vault-password").read_text() for of in (lab, other)}) == 2
    finally:
        other.down()
    assert cache.answers()


def test_a_lab_without_its_files_is_made_anew(home: Path) -> None:
    said: list[str] = []
    lab = Lab(home / "lab" / "three", said.append)
    try:
        lab.up(["cache1"])
        (lab.directory / "lab.json").unlink()
        lab.up(["cache1"])
        assert said == [f"Lab three is made anew: files in {lab.directory} are missing."]
        assert files.are_whole(lab.claim)
    finally:
        lab.down()


def test_a_lab_that_was_half_made_is_made_whole(home: Path) -> None:
    """`make lab` is killed at one step after the other; the last one is not."""
    lab = Lab(home / "lab" / "half")

    def has(name: str) -> bool:
        claim = claims.find(lab.directory)
        return claim is not None and any(claim.store.glob(name))

    try:
        for step in ("claim.json", "host_keys/*", "secret_names", "cache1/upper", "cache1/console.log"):
            argv = [sys.executable, "-m", "tests.lab", "up", "cache1"]
            making = subprocess.Popen(argv, cwd=REPOSITORY, env=of(home, lab), stdout=subprocess.DEVNULL)
            assert becomes_true(functools.partial(has, step), 30)
            making.kill()
            making.wait()
        done = command(home, lab, "up", "cache1")
        assert done.returncode == 0, done.stderr
        assert "1 hosts answer" in done.stdout
    finally:
        lab.down()


def test_a_person_sees_how_hosts_are_and_enters_them(lab: Lab, home: Path, cache: Host) -> None:
    assert f"cache1  {cache.address}" in command(home, lab, "status").stdout
    assert command(home, lab, "enter", "cache1", "hostname").stdout == "cache1\n"
    done = command(home, lab, "freeze", "cache2")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "There is no host cache2 in a lab")
    done = command(home, Lab(home / "lab" / "none"), "status")
    assert (done.returncode, done.stderr) == (1, "There is no lab none: run `make lab`.\n")


def test_a_machine_without_its_programs_is_told_what_to_install(lab: Lab, home: Path) -> None:
    done = command(home, lab, "up", PATH="/nowhere")
    assert "apt-get install --no-install-recommends iproute2 mmdebstrap openssh-client systemd-container" in done.stderr


def test_nothing_is_left_of_a_lab(home: Path) -> None:
    """Of one at work, of one whose keepers were killed, of one that lost its files, and of one that was never whole."""
    lab = Lab(home / "lab" / "four")
    before = traces(lab)
    lab.up(["db1", "cache1"])
    assert ansible(home, lab, "db1", "-m", "ping").returncode == 0  # leaves a connection
    lab.down()
    assert traces(lab) == before
    lab.up(["db1", "cache1"])
    killed(lab.host("db1"), "keeper")
    killed(lab.host("cache1"), "guest/supervisor")
    (lab.directory / "lab.json").unlink()
    lab.down()
    assert traces(lab) == before
    claims.make(lab.directory, Path("/nowhere"))  # killed right after
    lab.down()
    assert traces(lab) == before
    lab.down()
    assert traces(lab) == before


def test_only_known_hosts_are_booted(lab: Lab) -> None:
    with pytest.raises(LabError, match="There is no host cache2 in a lab: edge1, "):
        lab.up(["cache1", "cache2"])


def test_names_of_links_are_short_enough() -> None:
    assert max(len(f"vb-0000-{name}") for name in plan.HOSTS) <= 15


def ansible(home: Path, lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """One task on hosts, by inventories/lab."""
    argv = ["ansible", "-i", "inventories/lab", *words]
    return subprocess.run(argv, cwd=REPOSITORY, env=of(home, lab), capture_output=True, text=True, check=False)


def command(home: Path, lab: Lab, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a person calls."""
    argv = [sys.executable, "-m", "tests.lab", *words]
    environment = {**of(home, lab), **variables}
    return subprocess.run(argv, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def of(home: Path, lab: Lab) -> dict[str, str]:
    """The environment in which a lab is meant."""
    return {**os.environ, "BAZARUTO_HOME": str(home), "BAZARUTO_LAB": lab.directory.name}


def killed(host: Host, part: str) -> None:
    """SIGKILL to its nspawn, or to its keeper."""
    for pid in host.pids(part):
        if identity := processes.identify(pid):
            processes.send(identity, signal.SIGKILL)
            assert not processes.wait_all([identity], time.monotonic() + 10)
    assert becomes_true(lambda: not host.is_kept(), 10)


def traces(lab: Lab) -> set[str]:
    """What is on this machine: mounts, links, cgroups, files, processes; without what other labs have."""
    others = [claim.id for claim in claims.all_claims() if claim.directory != lab.directory]
    directories = (*CGROUPS.glob("**/bazaruto-lab-*"), *Path("/var/lib/bazaruto-lab").glob("*"))
    words = [" ".join(processes.arguments_of(pid)) for pid in processes.everyone()]
    found = {
        *(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()),
        *(str(path) for path in (*Path("/sys/class/net").iterdir(), *directories, *lab.directory.parent.glob("*"))),
        *(line for line in words if any(sign in line for sign in ("systemd-nspawn", "keeper.sh", "/run/bazaruto-lab"))),
    }
    return {trace for trace in found if not any(other in trace for other in others)}
