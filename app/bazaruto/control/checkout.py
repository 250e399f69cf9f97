"""The git checkout that content may lie in: which commit it is at, and whether the content differs from it.

Git only reads objects here and the repository is named to it, so that nothing of the repository's own configuration
(hooks, filters, file system monitors) is executed and it does not matter whose the checkout is. Files are compared
byte by byte with the commit's, not with the index: the answer is about the very bytes that are run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from bazaruto import logs
from bazaruto.control.content_files import EXECUTABLE, LINK, PARTS, ContentError, File, belongs

log = logs.get(__name__)
TIMEOUT_SECONDS = 20.0  # of one git command
ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
SUBMODULE = "160000"
LINK_IN_GIT, EXECUTABLE_IN_GIT = "120000", "100755"


class _GitFailed(Exception):
    """git is not there, or said no."""


@dataclasses.dataclass(frozen=True)
class Checkout:
    """Where the parts of a checkout are."""

    directory: Path  # of the content: the root of the checkout, or below it
    root: Path
    git: Path  # of this worktree: HEAD, index
    common: Path  # of all worktrees: refs, packed-refs

    def marks(self) -> tuple[object, ...]:
        """What a commit, a checkout or a changed rule of what to ignore changes. Cheap, and needs no git."""
        head = _text(self.git / "HEAD")
        branch = self.common / head.removeprefix("ref: ") if head.startswith("ref: ") else None
        below = self.directory.relative_to(self.root).parts
        ignoring = [self.root.joinpath(*below[:depth], ".gitignore") for depth in range(len(below) + 1)]
        watched = [self.common / "packed-refs", self.common / "reftable" / "tables.list"]
        watched += [self.common / "info" / "exclude", *ignoring]
        return (str(self.git), head, _text(branch) if branch else "", *map(_mark, watched))

    def state(self, files: Mapping[str, File]) -> tuple[str | None, bool]:
        """The commit and whether these files differ from it; (None, False) when they are in no repository after all.

        When that cannot be found out they count as different: a record must not claim a revision that nobody ran.
        """
        try:
            return self._state(files)
        except _GitFailed as error:
            commit = self._commit_without_git()
            if commit is None:
                raise ContentError(f"{self.directory} is a git checkout, but its commit is unknown: {error}") from error
            log.warn("content cannot be compared with its commit, and counts as changed", error=str(error))
            return commit, True

    def _state(self, files: Mapping[str, File]) -> tuple[str | None, bool]:
        commit = self._run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", may_fail=True).decode().strip()
        if not commit:
            return None, True  # a repository without a commit yet
        committed = self._tree(commit)
        added = [path for path in files if path not in committed]
        unignored = len(added) > len(self._ignored(added))
        if not committed and not unignored:
            return None, False  # a repository that ignores all of this: it says nothing about it
        return commit, unignored or any(not _same(files.get(path), *entry) for path, entry in committed.items())

    def _tree(self, commit: str) -> dict[str, tuple[str, str]]:
        """Mode and object id of every file of the content in a commit; submodules' files included."""
        found: dict[str, tuple[str, str]] = {}
        for line in filter(None, self._run("ls-tree", "-r", "-z", commit, "--", *PARTS).split(b"\0")):
            entry, _, raw = line.partition(b"\t")
            mode, _, identity = entry.decode().split()
            path = os.fsdecode(raw)
            if mode == SUBMODULE:
                inner = _at(self.directory / path)
                below = inner._whole_tree(identity) if inner else {"": (mode, identity)}
                found |= {f"{path}/{name}".rstrip("/"): each for name, each in below.items()}
            elif belongs(path):
                found[path] = (mode, identity)
        return found

    def _whole_tree(self, commit: str) -> dict[str, tuple[str, str]]:
        lines = self._run("ls-tree", "-r", "-z", commit).split(b"\0")
        entries = [line.partition(b"\t") for line in lines if line]
        named = {os.fsdecode(path): entry.decode().split() for entry, _, path in entries}
        return {path: (mode, identity) for path, (mode, _, identity) in named.items() if belongs(path)}

    def _ignored(self, paths: Iterable[str]) -> list[bytes]:
        asked = b"".join(os.fsencode(path) + b"\0" for path in paths)
        return self._run("check-ignore", "-z", "--stdin", input=asked, may_fail=True).split(b"\0")[:-1] if asked else []

    def _run(self, *words: str, input: bytes = b"", may_fail: bool = False) -> bytes:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CONFIG_HOME") if name in os.environ}
        named = [f"--git-dir={self.git}", f"--work-tree={self.root}", "-c", "core.fsmonitor=false"]
        try:
            done = subprocess.run(
                ["git", *named, "-c", "core.hooksPath=/dev/null", *words],
                cwd=self.directory,
                env={**kept, **ENVIRONMENT},
                input=input,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _GitFailed(f"git cannot be run: {error}") from error
        if done.returncode > (1 if may_fail else 0) or done.returncode < 0:
            raise _GitFailed(f"git {words[0]} failed: {done.stderr.decode(errors='replace').strip()[:300]}")
        return done.stdout

    def _commit_without_git(self) -> str | None:
        head = _text(self.git / "HEAD")
        if not head.startswith("ref: "):
            return head or None
        name = head.removeprefix("ref: ")
        packed = (line.partition(" ") for line in _text(self.common / "packed-refs").splitlines())
        return _text(self.common / name) or next((commit for commit, _, each in packed if each == name), None)


def find(directory: Path) -> Checkout | None:
    """The checkout that a directory lies in."""
    for root in (directory, *directory.parents):
        git = _git_directory(root)
        if git is not None:
            return _checkout(directory, root, git)
    return None


def _at(root: Path) -> Checkout | None:
    """The checkout that has its root here: a submodule that was fetched."""
    git = _git_directory(root)
    return None if git is None else _checkout(root, root, git)


def _checkout(directory: Path, root: Path, git: Path) -> Checkout:
    common = _text(git / "commondir")
    return Checkout(directory, root, git, (git / common).resolve() if common else git)


def _git_directory(root: Path) -> Path | None:
    """`.git` itself, or where the file of that name leads (of a worktree or submodule)."""
    found = root / ".git"
    if _text(found).startswith("gitdir: "):
        found = root / _text(found).removeprefix("gitdir: ")
    return found.resolve() if _text(found / "HEAD") else None


def _same(file: File | None, mode: str, identity: str) -> bool:
    """Whether a file is the blob that a commit has."""
    if file is None:
        return False
    if (file.mode == LINK) != (mode == LINK_IN_GIT) or (file.mode == EXECUTABLE) != (mode == EXECUTABLE_IN_GIT):
        return False
    algorithm = "sha1" if len(identity) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(file.data) + file.data).hexdigest() == identity


def _text(path: Path) -> str:
    """The text of a small file; "" when it is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_ctime_ns
