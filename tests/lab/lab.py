"""A lab: its hosts side by side on one bridge, made, mended and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bazaruto import processes
from tests.lab import claims, faults, files, image, needs, plan
from tests.lab.claims import Claim
from tests.lab.errors import LabError
from tests.lab.host import Host

REPOSITORY = Path(__file__).parents[2]


def directory_of(name: str | None = None) -> Path:
    """Where the small files of the lab with this name are; without one, BAZARUTO_LAB says it."""
    home = Path(os.environ.get("BAZARUTO_HOME") or REPOSITORY / "var")
    return home.resolve() / "lab" / (name or os.environ.get("BAZARUTO_LAB") or "default")


class Lab:
    """The lab whose small files are in a directory."""

    def __init__(self, directory: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.directory = directory.resolve()
        self._say = say

    @property
    def claim(self) -> Claim:
        if claim := claims.find(self.directory):
            return claim
        raise LabError(f"There is no lab {self.directory.name}: run `make lab`.")

    def host(self, name: str) -> Host:
        """One of its hosts, whether it runs or not."""
        if name not in plan.HOSTS:
            raise LabError(f"There is no host {name} in a lab: {', '.join(plan.HOSTS)}.")
        return Host(self.claim, name)

    def hosts(self) -> list[Host]:
        """All that it can have."""
        return [Host(self.claim, name) for name in plan.HOSTS]

    def up(self, names: Iterable[str] = ()) -> list[Host]:
        """Boot these hosts, or all. What runs is left; what died or is half made is mended; faults are taken away."""
        for name in names:
            if name not in plan.HOSTS:
                raise LabError(f"There is no host {name} in a lab: {', '.join(plan.HOSTS)}.")
        with self._alone():
            self._make_whole()
            hosts = [self.host(name) for name in names or plan.HOSTS]
            if reason := needs.watchers(sum(not host.is_kept() for host in hosts)):
                raise LabError(f"Not all hosts can be booted: {reason}.")
            with ThreadPoolExecutor(len(hosts)) as pool:
                list(pool.map(_raise, hosts))
        return hosts

    def down(self) -> None:
        """Leave nothing of it: no process, mount, link, file."""
        with self._alone():
            if claim := claims.find(self.directory):
                _end(claim)
            if self.directory.exists():
                shutil.rmtree(self.directory)
            with contextlib.suppress(OSError):  # another lab's files are in it
                self.directory.parent.rmdir()

    def _make_whole(self) -> None:
        """Claim, files and bridge."""
        claim = claims.find(self.directory)
        if claim and (reason := _ruined(claim)):
            self._say(f"Lab {self.directory.name} is made anew: {reason}.")
            _end(claim)
            claim = None
        if claim is None:
            image.make()
            claim = claims.make(self.directory, image.path())
            files.write(claim)
            claim.control_paths.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_secrets(claim)
        _make_bridge(claim)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time at the labs of this directory."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        parent = os.open(self.directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(parent, fcntl.LOCK_EX)
            yield
        finally:
            os.close(parent)


def _raise(host: Host) -> None:
    faults.heal(host)
    host.start()


def _ruined(claim: Claim) -> str | None:
    """Why what is left of a lab cannot be mended."""
    if claim.boot_id != processes.boot_id():
        return "this machine was started since, and its small disks are gone"
    if not files.are_whole(claim):
        return f"files in {claim.directory} are missing"
    if not claim.image.is_dir():
        return f"its image {claim.image} is gone"
    return None


def _make_bridge(claim: Claim) -> None:
    bridge = f"bz-{claim.id}"
    if not Path("/sys/class/net", bridge).exists():
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    prefix = claim.network.prefixlen
    for number in (plan.MANAGEMENT, plan.OUTSIDE):  # the first is where this machine's packets come from
        address = f"{plan.address(claim.network, number)}/{prefix}"
        subprocess.run(["ip", "address", "replace", address, "dev", bridge], check=True)
    subprocess.run(["ip", "link", "set", bridge, "up"], check=True)


def _end(claim: Claim) -> None:
    hosts = [Host(claim, name) for name in plan.HOSTS]
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(Host.remove, hosts))
    for socket in claim.control_paths.glob("*"):  # Ansible's masters outlive their play
        subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "lab"], capture_output=True, check=False)
    if claim.control_paths.exists():
        shutil.rmtree(claim.control_paths)
    with contextlib.suppress(OSError):  # another lab's are in it, or there were none
        claim.control_paths.parent.rmdir()
    links = [host.link for host in hosts] + [f"bz-{claim.id}"]
    for link in links:
        if Path("/sys/class/net", link).exists():
            subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
    claims.give_up(claim)
