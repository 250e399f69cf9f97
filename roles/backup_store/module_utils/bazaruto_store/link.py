"""The one way to another host: rsync over SSH, with a key of its own, to a host whose key is known."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from ansible.module_utils.bazaruto_backup import programs
from ansible.module_utils.bazaruto_backup.refusal import Refused

LINK = {
    "host": {"type": "str", "required": True},
    "address": {"type": "str", "required": True},
    "user": {"type": "str", "required": True},
    "key": {"type": "path", "required": True, "no_log": False},
    "known_hosts": {"type": "path", "required": True},
}
# A connection that is cut shows by silence only: these end it, and the next run goes on where it ended.
_SSH = (
    *("-F", "/dev/null", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"),
    *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
_SILENCE_SECONDS = 60
_LISTED = re.compile(r"^-[rwx-]{9}\S* +([\d,]+) \S+ \S+ (\S+)$", re.MULTILINE)


class Link:
    """Another host, as its restricted account lets us in: paths are those below its one directory."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.host, self.address, self.user = options["host"], options["address"], options["user"]
        self._key, self._known_hosts = options["key"], options["known_hosts"]
        self._rsync = programs.find("rsync", "")

    def list(self, pattern: str) -> dict[str, int]:
        """Bytes by name of the files there that fit a pattern of rsync."""
        said = self._run(["--list-only", "--dirs", f"--include=/{pattern}", "--exclude=*", self._remote("/")], "list")
        return {name: int(size.replace(",", "")) for size, name in _LISTED.findall(said)}

    def fetch(self, names: list[str], into: Path) -> None:
        """Bring these files here; what a cut connection left is gone on with."""
        self._run(["--partial-dir=.arriving", *_only(names), self._remote("/"), f"{into}/"], "fetch")

    def stage(self, names: list[str], source: Path, into: str, *, check_mode: bool) -> list[str]:
        """Make a directory there hold these files and no others; returns what was, or would be, changed."""
        how = ["--delete", "--delete-excluded", "--perms", "--chmod=D0700,F0600", "--out-format=%i %n"]
        dry = ["--dry-run"] if check_mode else []
        said = self._run([*how, *dry, *_only(names), f"{source}/", self._remote(f"/{into}/")], "stage")
        return [line for line in said.splitlines() if line.startswith(("<", "*deleting"))]

    def _remote(self, path: str) -> str:
        return f"{self.user}@{self.address}:{path}"

    def _run(self, words: list[str], what: str) -> str:
        ssh = ["ssh", *_SSH, "-i", self._key, "-o", f"UserKnownHostsFile={self._known_hosts}"]
        argv = [self._rsync, "--rsh", shlex.join(ssh), f"--timeout={_SILENCE_SECONDS}", *words]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        try:
            return programs.run(argv, environment)
        except programs.ProgramFailed as error:
            raise Refused(
                f"{self.host} ({self.address}) could not be reached as {self.user} to {what} backups, or was cut off "
                f"in the middle: {programs.last_words(error.said)}. What has arrived is kept apart, and the next run "
                "goes on with it; a host that refuses the key is mended by playbooks/backup_store.yml"
            ) from error


def _only(names: list[str]) -> list[str]:
    """These files, with their times to the nanosecond: a proof holds for the very file it names."""
    directories = sorted({f"--include=/{Path(name).parent}/" for name in names if "/" in name})
    files = [f"--include=/{name}" for name in names]
    return ["--recursive", "--times", "--omit-dir-times", *directories, *files, "--exclude=*"]
