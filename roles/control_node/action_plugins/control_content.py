"""Take content from where the playbook lies, and have the host install it; sent only where the host lacks it.

What belongs to the content and its digest are those of the control plane (bazaruto.control.content_files), so that a
run started there is known to be of this very revision. Nothing but Ansible is needed here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

PARTS = ("ansible.cfg", "collections", "inventories", "playbooks", "roles")
LEFT_OUT = frozenset({".git", ".ansible", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
LEFT_OUT_ENDINGS = (".pyc", ".swp", ".swo", "~")
LINK, PLAIN, EXECUTABLE = 0o120000, 0o100400, 0o100500
GIT_SECONDS = 20

Files = dict[str, tuple[int, bytes]]  # path → mode, and its bytes or where the link leads


class ActionModule(ActionBase):
    """The part that runs where the playbook is played."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host whether it has this content; if not, send it."""
        super().run(tmp, task_vars)
        source = Path(self._task.args["source"]).resolve()
        files = read(source)
        if not any(name.startswith("playbooks/") for name in files):
            raise AnsibleActionFail(f"{source} is no content: name the directory that playbooks/ and roles/ are in.")
        content = digest(files)
        commit, dirty = revision(source, content)
        options = {"directory": self._task.args["directory"], "digest": content, "commit": commit, "dirty": dirty}
        answer = self._ask(options, task_vars)
        if answer.get("failed") or not answer["missing"] or self._task.check_mode:
            return answer
        try:
            return self._ask({**options, "archive": self._send(pack(files))}, task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _ask(self, options: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module("control_content", options, task_vars=task_vars)
        return answer

    def _send(self, archive: bytes) -> str:
        """The archive's path on the host."""
        there = self._make_tmp_path()
        with tempfile.NamedTemporaryFile(dir=constants.DEFAULT_LOCAL_TMP) as here:
            here.write(archive)
            here.flush()
            sent: str = self._transfer_file(here.name, self._connection._shell.join_path(there, "content.tar.gz"))
        self._fixup_perms2((there, sent))
        return sent


def read(source: Path) -> Files:
    """All files of the content; what no snapshot of the control plane takes is refused."""
    found: Files = {}
    for path in sorted(_paths(source)):
        status = path.lstat()
        name = str(path.relative_to(source))
        if stat.S_ISLNK(status.st_mode):
            found[name] = (LINK, os.fsencode(path.readlink()))
        elif stat.S_ISREG(status.st_mode):
            found[name] = (EXECUTABLE if status.st_mode & stat.S_IXUSR else PLAIN, path.read_bytes())
        else:
            raise AnsibleActionFail(f"{path} is neither a file, a directory nor a symbolic link: remove it.")
    return found


def digest(files: Files) -> str:
    """SHA-256 over paths, modes and bytes."""
    together = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        mode, data = files[name]
        together.update(b"%s\0%o\0%d\0" % (os.fsencode(name), mode, len(data)))
        together.update(data)
    return together.hexdigest()


def pack(files: Files) -> bytes:
    """The same files, the same archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, (mode, data) in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if mode == EXECUTABLE else 0o644
            if mode == LINK:
                entry.type, entry.linkname = tarfile.SYMTYPE, os.fsdecode(data)
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def revision(source: Path, content: str) -> tuple[str | None, bool]:
    """The commit, and whether the content differs from it; None in a snapshot, whose revision only the host knows."""
    if (source / "REVISION").is_file():
        said = json.loads((source / "REVISION").read_text(encoding="utf-8"))
        return said["commit"], said["dirty"] or said["digest"] != content
    commit = _git(source, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return None, False
    return commit, _git(source, "status", "--porcelain", "--", *PARTS) != ""


def _git(source: Path, *words: str) -> str | None:
    """What git says; None where it says no, or is not there."""
    harmless = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    try:
        done = subprocess.run(
            ["git", *harmless, "--no-optional-locks", *words],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _paths(source: Path) -> Iterator[Path]:
    for part in PARTS:
        if (source / part).is_symlink() or (source / part).is_file():
            yield source / part
        for directory, below, files in os.walk(source / part):
            links = [name for name in below if (Path(directory) / name).is_symlink()]
            below[:] = [name for name in below if not _left_out(name) and name not in links]
            yield from (Path(directory) / name for name in [*files, *links] if not _left_out(name))


def _left_out(name: str) -> bool:
    return name in LEFT_OUT or name.startswith(".#") or name.endswith(LEFT_OUT_ENDINGS)
