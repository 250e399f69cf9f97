"""Faults of a host and of its network that tests and people make, and how they end."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.host import Host


def cut(host: Host) -> None:
    """No packet reaches the host any more, or leaves it; until `join`, or its next boot."""
    _ip("link", "set", host.link, "down")


def join(host: Host) -> None:
    """Packets reach it again."""
    _ip("link", "set", host.link, "up")


def slow(host: Host, kilobits_per_second: int) -> None:
    """So much passes in a second, each way; until `fast`, or its next boot."""
    shape = ("root", "tbf", "rate", f"{kilobits_per_second}kbit", "burst", "16kb", "latency", "400ms")
    for end, device in _ends(host):
        subprocess.run([*end, "tc", "qdisc", "replace", "dev", device, *shape], check=True)


def fast(host: Host) -> None:
    """Its network is as it was."""
    for end, device in _ends(host):
        shown = subprocess.run([*end, "tc", "qdisc", "show", "dev", device], capture_output=True, text=True, check=True)
        if "tbf" in shown.stdout:
            subprocess.run([*end, "tc", "qdisc", "delete", "dev", device, "root"], check=True)


def heal(host: Host) -> None:
    """Take away what keeps it from answering."""
    if not host.runs():
        return
    host.freeze(False)
    for disk in host.disks:
        if disk.is_mounted():
            disk.free()
    if Path("/sys/class/net", host.link).exists() and host.leader():
        fast(host)
        join(host)


def _ends(host: Host) -> list[tuple[list[str], str]]:
    """Both ends of its cable: how to work there, and the device."""
    leader = host.leader()
    if leader is None:
        raise LabError(f"{host.name} does not run: start it first.")
    return [([], host.link), (["nsenter", f"--net=/proc/{leader}/ns/net"], "host0")]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
