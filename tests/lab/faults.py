"""Faults of a host and of its network that tests and people make, and how they end."""

from __future__ import annotations

import shlex
import subprocess

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


def freeze(host: Host, unit: str | None = None) -> None:
    """Let nothing on it run any more (TCP connects, nobody answers), or nothing of one unit."""
    if unit:
        host.run(f"systemctl freeze {shlex.quote(unit)}")
    else:
        host.freeze(True)


def thaw(host: Host, unit: str | None = None) -> None:
    """Let it run on."""
    if unit:
        host.run(f"systemctl thaw {shlex.quote(unit)}")
    else:
        host.freeze(False)


def fill(host: Host, disk: str) -> None:
    """Leave no space on one of its small disks."""
    host.disk(disk).fill()


def free(host: Host, disk: str) -> None:
    """Give the disk its size again."""
    host.disk(disk).free()


def heal(host: Host) -> None:
    """Take away what keeps it from answering: not what was done to single units, nor what its next boot takes away."""
    for disk in host.disks:
        if disk.is_full():
            disk.free()
    if host.runs():
        thaw(host)
    if host.is_kept() and host.leader():
        fast(host)
        join(host)


def state(host: Host) -> str:
    """How it is, in words."""
    if not host.runs():
        words = ["down"]
    elif host.is_frozen():
        words = ["frozen"]
    elif host.is_cut():
        words = ["cut off"]
    else:
        words = ["up" if host.answers() else "does not answer"]
    if host.runs() and not host.is_kept():
        words.append("nobody keeps it: make lab mends that")
    return ", ".join([*words, *(f"{disk.volume.path} is full" for disk in host.disks if disk.is_full())])


def _ends(host: Host) -> list[tuple[list[str], str]]:
    """Both ends of its cable: how to work there, and the device."""
    leader = host.leader()
    if leader is None:
        raise LabError(f"{host.name} does not run: start it first.")
    return [([], host.link), (["nsenter", f"--net=/proc/{leader}/ns/net"], "host0")]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
