"""Content that cannot change: what is launched runs from a read-only snapshot of playbooks, roles and inventories.

A snapshot is named for the digest of what is in it, lies in $BAZARUTO_HOME/control/content, and is made once, whole or
not at all. Editing the source, or checking another commit out, touches no run that was accepted before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from bazaruto import logs
from bazaruto.config import Settings
from bazaruto.control import catalog, checkout, content_files, installed
from bazaruto.control.content_files import LINK, ContentError, File, Fingerprint
from bazaruto.control.engine import rundir

__all__ = ["Content", "ContentError", "Release", "Snapshot", "UnknownContentError"]

log = logs.get(__name__)
NAME_LENGTH = 16  # hex digits of the digest in a snapshot's name
SETTLED_NS = 2_000_000_000  # a file changed less long ago may change again without a trace in its times
READS = 5  # how often content that changes while it is read is read anew
BESIDE = 100  # snapshots of one digest, all but the last damaged
REMEMBERED = 16  # snapshots whose catalogue a process keeps
LEFTOVER_SECONDS = 3600  # an unfinished snapshot this old is nobody's


class UnknownContentError(Exception):
    """The node has no content with the digest that a run was accepted with."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Content as it was; nobody changes it any more."""

    directory: Path
    digest: str  # SHA-256 of all paths, modes and bytes
    catalogue: catalog.Catalogue  # of the snapshot


@dataclasses.dataclass(frozen=True)
class Release(Snapshot):
    """The snapshot of what the source has now."""

    revision: str | None  # commit of the source, a checkout or installed from one; None where there is none
    dirty: bool  # differs from that commit, or could not be compared with it


@dataclasses.dataclass(frozen=True)
class _Seen:
    """The source at one moment, and what was made of it."""

    root: Path
    files: Fingerprint
    commit: tuple[object, ...]  # marks of the checkout; empty where there is none
    settled: bool  # every file is old enough for its times to tell the next change
    release: Release


class Content:
    """One content directory, and the snapshots of it. May be shared by threads."""

    def __init__(self, source: Path, store: Path) -> None:
        self._source = source
        self._store = store
        self._making = threading.Lock()
        self._seen: _Seen | None = None
        self._snapshots: dict[str, tuple[Snapshot, Fingerprint]] = {}

    @classmethod
    def of(cls, settings: Settings) -> Content:
        """The content of this node."""
        return cls(settings.content_directory, settings.home / "control" / "content")

    @property
    def source(self) -> Path:
        """Where people edit, and start playbooks by hand."""
        return self._source

    def current(self) -> Release:
        """What the source has now. Raises CatalogueError or ContentError while that cannot be launched.

        Asked for each launch, so that neither a change nor its mending needs a restart.
        """
        seen = self._seen
        if seen is not None and seen.settled and self._is_as_seen(seen):
            return seen.release
        with self._making:
            return self._look_again()

    def operation(self, name: str) -> catalog.Operation | None:
        """An operation as it was last known, for what is only shown; None when there is none."""
        if self._seen is None:
            with contextlib.suppress(catalog.CatalogueError, ContentError):
                self.current()
        return self._seen.release.catalogue.operations.get(name) if self._seen else None

    def at(self, digest: str) -> Snapshot:
        """The very content that a run was accepted with; made from the source where that is the same."""
        trouble = "its own is another"
        try:
            with self._making:
                snapshot = self._stored(digest)
            if snapshot is None:
                snapshot = self.current()
            if snapshot.digest == digest:
                return snapshot
        except (catalog.CatalogueError, ContentError) as error:
            trouble = f"it cannot be used: {error}"
        raise UnknownContentError(
            f"this node does not have the content {digest[:NAME_LENGTH]} that the run was accepted with ({trouble}): "
            f"bring {self._source} to the same revision, or launch the operation again"
        )

    def _is_as_seen(self, seen: _Seen) -> bool:
        root = _resolved(self._source)
        same = root == seen.root and _commit_marks(root) == seen.commit
        return same and content_files.fingerprint(root) == seen.files and self._is_whole(seen.release)

    def _look_again(self) -> Release:
        """Read the source, and give the release it is: the known one when nothing changed after all."""
        for _ in range(READS):
            started = time.time_ns()
            root = _resolved(self._source)
            commit, marks = _commit_marks(root), content_files.fingerprint(root)
            try:
                files = content_files.read(root, marks)
            except FileNotFoundError:
                continue
            if (root, commit, marks) == (_resolved(self._source), _commit_marks(root), content_files.fingerprint(root)):
                break
        else:
            raise ContentError(f"The content in {self._source} changes while it is read: try again when it is at rest.")
        release = self._release(root, commit, files)
        settled = content_files.newest(marks) < started - SETTLED_NS
        self._seen = _Seen(root, marks, commit, settled, release)
        return release

    def _release(self, root: Path, commit: tuple[object, ...], files: Mapping[str, File]) -> Release:
        digest, seen = content_files.digest(files), self._seen
        known = seen is not None and (seen.release.digest, seen.commit, seen.root) == (digest, commit, root)
        if known and seen is not None and self._is_whole(seen.release):
            return seen.release
        snapshot = self._stored(digest) or self._make(files, digest)
        lies_in = checkout.find(root)
        revision, dirty = lies_in.state(files) if lies_in else installed.state(root, digest) or (None, False)
        return Release(snapshot.directory, digest, snapshot.catalogue, revision, dirty)

    def _is_whole(self, snapshot: Snapshot) -> bool:
        """Whether nobody touched a snapshot since its digest was compared."""
        known = self._snapshots.get(snapshot.digest)
        if known is None or known[0].directory != snapshot.directory:
            return False
        try:
            return content_files.whole_fingerprint(snapshot.directory) == known[1]
        except OSError:
            return False

    def _stored(self, digest: str) -> Snapshot | None:
        """The snapshot with this digest, compared when this process uses it first and when it was touched."""
        known = self._snapshots.get(digest)
        if known is not None and self._is_whole(known[0]):
            return known[0]
        for directory in self._places(digest):
            if not directory.is_dir():
                return None
            marks = content_files.whole_fingerprint(directory)
            if _digest_of(directory) == digest:
                self._remember(Snapshot(directory, digest, self._catalogue(directory)), marks)
                return self._snapshots[digest][0]
            log.warn("a snapshot of the content was changed, and is not used", directory=str(directory))
        return None

    def _remember(self, snapshot: Snapshot, marks: Fingerprint) -> None:
        self._snapshots[snapshot.digest] = snapshot, marks
        for digest in list(self._snapshots)[:-REMEMBERED]:
            del self._snapshots[digest]

    def _places(self, digest: str) -> list[Path]:
        """Where a snapshot may lie: a damaged one stays, since runs may read it, and a new one is made beside it."""
        first = self._store / digest[:NAME_LENGTH]
        return [first, *(first.with_name(f"{first.name}.{number}") for number in range(2, BESIDE))]

    def _make(self, files: Mapping[str, File], digest: str) -> Snapshot:
        """Write a snapshot and give it its name in one step; what may not be launched gets none."""
        try:
            self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._remove_leftovers()
            partial = Path(tempfile.mkdtemp(prefix=f".{digest[:NAME_LENGTH]}.", dir=self._store))
            try:
                _write(partial, files)
                self._check(partial)
                self._name(partial, digest)
            finally:
                _remove(partial)
        except OSError as error:
            raise ContentError(f"The content cannot be copied to {self._store}: {error}.") from error
        snapshot = self._stored(digest)
        if snapshot is None:
            raise ContentError(f"The copy of the content in {self._store} does not stay as it was written: look there.")
        return snapshot

    def _check(self, partial: Path) -> None:
        """Refuse links that leave the content, and a catalogue with mistakes, in the words of the source."""
        for path in partial.rglob("*"):
            if path.is_symlink() and not _leads_inside(path, partial):
                where, target = self._source / path.relative_to(partial), path.readlink()
                raise ContentError(
                    f"The symbolic link {where} leads to {target}, which is not there or outside of the content: "
                    f"put the file itself there, or a relative link to one in {', '.join(content_files.PARTS)}."
                )
        self._catalogue(partial)

    def _catalogue(self, directory: Path) -> catalog.Catalogue:
        """A snapshot's catalogue; its mistakes are named where they are mended."""
        try:
            return catalog.load(directory)
        except catalog.CatalogueError as error:
            raise catalog.CatalogueError(str(error).replace(str(directory), str(self._source))) from error

    def _name(self, partial: Path, digest: str) -> None:
        """Rename to the first free place; a process that was faster has made the same."""
        _seal(partial)
        for place in self._places(digest):
            try:
                partial.rename(place)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                if _digest_of(place) == digest:
                    return
            else:
                rundir.sync_directory(self._store)
                return

    def _remove_leftovers(self) -> None:
        for path in self._store.glob(".*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                    _remove(path)


def _resolved(source: Path) -> Path:
    """The directory itself: a `current` link that is moved meanwhile must not give half of each."""
    return Path(os.path.realpath(source))


def _commit_marks(root: Path) -> tuple[object, ...]:
    found = checkout.find(root)
    return found.marks() if found else ()


def _digest_of(directory: Path) -> str:
    """The digest of all that lies in a snapshot; "" when it cannot be read."""
    try:
        return content_files.digest(content_files.read(directory, content_files.whole_fingerprint(directory)))
    except (OSError, ContentError):
        return ""


def _leads_inside(link: Path, root: Path) -> bool:
    if link.readlink().is_absolute():
        return False
    try:
        return link.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # it leads nowhere, or round in a circle
        return False


def _write(directory: Path, files: Mapping[str, File]) -> None:
    """Write all files, and wait until they are on the disk."""
    for name, file in files.items():
        path = directory / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if file.mode == LINK:
            path.symlink_to(os.fsdecode(file.data))
            continue
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, file.mode & 0o777)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.data)
            stream.flush()
            os.fsync(stream.fileno())


def _seal(directory: Path) -> None:
    """Let nobody add, remove or rename anything in it."""
    for path, _, _ in os.walk(directory, topdown=False):
        rundir.sync_directory(Path(path))
        Path(path).chmod(0o500)


def _remove(directory: Path) -> None:
    if not directory.exists():
        return  # never made
    for path, _, _ in os.walk(directory):
        Path(path).chmod(0o700)
    shutil.rmtree(directory)
