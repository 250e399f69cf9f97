"""Which labs this machine has: each holds an identity of four characters and a network that no other has."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bazaruto import processes

# Here lie also the hosts' disks: a path without spaces, colons and commas, which overlayfs takes for its own.
STORE = Path("/var/lib/bazaruto-lab")
NETWORKS = ipaddress.IPv4Network("10.192.0.0/10")


@dataclasses.dataclass(frozen=True)
class Claim:
    """What one lab has to itself."""

    id: str  # part of the names of its links, cgroups and machines
    directory: Path  # its small files, for people and Ansible
    network: ipaddress.IPv4Network
    image: Path  # what its hosts boot from, as long as it is there
    boot_id: str  # of this machine: its small disks are memory, and gone with the next start

    @property
    def store(self) -> Path:
        """Its large files."""
        return STORE / self.id

    @property
    def control_paths(self) -> Path:
        """Where Ansible's connections to it have their sockets, whose paths are to be short."""
        return Path("/run/bazaruto-lab", self.id)


def all_claims() -> list[Claim]:
    """Every lab's."""
    return [claim for path in sorted(STORE.glob("[!.]*/claim.json")) if (claim := _read(path))]


def find(directory: Path) -> Claim | None:
    """The claim of the lab whose files are in `directory`."""
    return next((claim for claim in all_claims() if claim.directory == directory), None)


def make(directory: Path, image: Path) -> Claim:
    """Claim what a new lab needs."""
    with _one_at_a_time():
        _sweep()
        others = all_claims()
        taken = {claim.id for claim in others}
        id_ = next(word for word in iter(lambda: secrets.token_hex(2), "") if word not in taken)
        claim = Claim(id_, directory, _free_network(others), image, processes.boot_id())
        partial = STORE / f".{id_}"
        partial.mkdir(mode=0o700, parents=True)
        values = {name: str(value) for name, value in dataclasses.asdict(claim).items()}
        (partial / "claim.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
        partial.rename(claim.store)
        return claim


def give_up(claim: Claim) -> None:
    """Let others have it; its large files go."""
    with _one_at_a_time():
        claim.store.rename(STORE / f".{claim.id}")
        _sweep()
        if not any(STORE.iterdir()):
            STORE.rmdir()


def _sweep() -> None:
    """Remove what is not a claim yet, or no longer: also that of a process that was killed at it."""
    for path in STORE.glob(".*"):
        shutil.rmtree(path)


def _read(path: Path) -> Claim | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None  # given up meanwhile
    network = ipaddress.IPv4Network(values["network"])
    return Claim(values["id"], Path(values["directory"]), network, Path(values["image"]), values["boot_id"])


def _free_network(others: list[Claim]) -> ipaddress.IPv4Network:
    """One that neither another lab nor a route of this machine leads to."""
    said = subprocess.run(["ip", "-json", "-4", "route", "show", "table", "all"], capture_output=True, check=True)
    routes = [route["dst"] for route in json.loads(said.stdout or "[]") if route["dst"] != "default"]
    taken = [claim.network for claim in others]
    taken += [ipaddress.IPv4Network(route, strict=False) for route in routes]
    candidates = (ipaddress.IPv4Network((int(NETWORKS[0]) + 256 * number, 24)) for number in range(2**14))
    return next(candidate for candidate in candidates if not any(candidate.overlaps(other) for other in taken))


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """The lock is a directory that was there before, and stays: no lab leaves a file behind."""
    directory = os.open(STORE.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
