"""Which hosts a lab has, where each is found in its network, and which of its directories are small disks."""

from __future__ import annotations

import dataclasses
import ipaddress


@dataclasses.dataclass(frozen=True)
class Volume:
    """A directory of a host that lies on a disk of its own, which can be filled: a tmpfs of this machine."""

    name: str
    path: str
    size_mib: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """One host."""

    number: int  # the last part of its address
    volumes: tuple[Volume, ...] = ()


POSTGRESQL = Volume("postgresql", "/var/lib/postgresql", 1024)
BACKUPS = Volume("backups", "/var/backups/bazaruto", 1024)
RUNS = Volume("runs", "/var/lib/bazaruto/control/runs", 256)
HOSTS = {
    "edge1": Plan(11),
    "app1": Plan(21),
    "app2": Plan(22),
    "app3": Plan(23),
    "db1": Plan(31, (POSTGRESQL, BACKUPS)),
    "cache1": Plan(41),
    "mon1": Plan(51),
    "ctl1": Plan(61, (POSTGRESQL, BACKUPS, RUNS)),
}
# This machine's two addresses in the network: SSH comes from one, the rest of the world is the other.
MANAGEMENT, OUTSIDE = 1, 254


def address(network: ipaddress.IPv4Network, number: int) -> str:
    """The address with this number."""
    return str(network[number])
