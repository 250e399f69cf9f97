#!/usr/bin/python
"""Look at a host before anything is touched, and name everything that would stop its roles half-way."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: site_host
short_description: Name what would stop a host's roles half-way
description:
  - Looks at the host's release, its free space, and who holds apt's locks. Fails with one sentence for each that is
    wrong. Needs root, and changes nothing.
options:
  debian_releases:
    description: The releases of Debian that are taken.
    type: list
    elements: str
    required: true
  free_mib:
    description: How many MiB must be free at which path, or at what of it exists.
    type: dict
    default: {}
  lock_seconds:
    description: How long to wait for another apt or dpkg to end.
    type: int
    default: 60
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Look at the host
  site_host:
    debian_releases: ["12"]
    free_mib: {/: 1024, /var/lib/postgresql: 512}
"""

RETURN = r"""
problems:
  description: One sentence for each.
  returned: always
  type: list
  elements: str
"""

import contextlib
import fcntl
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock")
LOOK_SECONDS = 0.5

ARGUMENTS: dict[str, Any] = {
    "debian_releases": {"type": "list", "elements": "str", "required": True},
    "free_mib": {"type": "dict", "default": {}},
    "lock_seconds": {"type": "int", "default": 60},
}


def problems(values: dict[str, Any]) -> list[str]:
    """One sentence for everything that is wrong here."""
    releases = list(_release(Path("/etc/os-release"), values["debian_releases"]))
    return releases or [*_space(values["free_mib"]), *_locks(values["lock_seconds"])]


def _release(path: Path, wanted: list[str]) -> Iterator[str]:
    """Another release: its packages and files are others, and nothing else about it needs to be said."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    said = {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}
    if said.get("ID") != "debian" or said.get("VERSION_ID") not in wanted:
        runs = said.get("PRETTY_NAME") or "something without /etc/os-release"
        yield f"It runs {runs}, and the roles are written for Debian {', '.join(wanted)}: install that."


def _space(wanted: dict[str, Any]) -> Iterator[str]:
    for path, mib in sorted(wanted.items()):
        place = next(each for each in (Path(path), *Path(path).parents) if each.exists())
        free = shutil.disk_usage(place).free // 2**20
        if free < int(mib):
            yield f"{path} has {free} MiB free, and {mib} MiB are needed: free some, or give it a larger disk."


def _locks(seconds: int) -> Iterator[str]:
    holder = _holder()
    until = time.monotonic() + seconds
    while holder and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        holder = _holder()
    if holder:
        yield f"apt was at work there for {seconds} s ({holder}): wait until it has ended, then run this again."


def _holder() -> str | None:
    """Which process holds one of the locks that apt and dpkg take."""
    for path in LOCKS:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                pid = _locked_by(descriptor)
            finally:
                os.close(descriptor)
            if pid:
                return f"{path} is held by pid {pid}, {_name(pid)}"
    return None


def _locked_by(descriptor: int) -> int:
    """Asks with F_GETLK, which takes nothing: the lock of a whole file, as apt takes it; 0 for nobody."""
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "which has ended meanwhile"


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    found = problems(module.params)
    if found:
        module.fail_json(msg="Nothing was touched on any host. " + " ".join(found), problems=found)
    module.exit_json(problems=[])


if __name__ == "__main__":
    main()
