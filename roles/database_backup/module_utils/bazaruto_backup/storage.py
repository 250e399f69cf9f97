"""The directory backups lie in: their names, manifests, proofs, locks, and the space that is left."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.bazaruto_backup.refusal import Refused

NAME = re.compile(r"bazaruto_\d{8}_\d{6}")
IMPORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}\.sql\.gz")
_PARTIAL = re.compile(rf"({NAME.pattern})\.(dump|json|roles\.sql|files\.tar)\.partial")
_LOCK = ".bazaruto_backup.lock"
_BESIDE = (".json", ".roles.sql", ".files.tar")  # what lies beside a dump and goes with it
MANIFEST_FORMAT = 1
MANIFEST_KEYS = {
    "format": int,
    "name": str,
    "created_at": str,
    "database": str,
    "size_bytes": int,
    "sha256": str,
    "server_version": str,
    "database_bytes": int,
    "rows": dict,
    "constraints": dict,
    "roles": list,
    "properties": dict,
}
_PROPERTY_KEYS = {
    *("owner", "encoding", "collate", "ctype", "locale_provider", "locale", "connection_limit", "comment"),
    *("tablespace", "has_grants", "grants", "settings"),
}
RESERVE_BYTES = 4 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Backup:
    """One backup as it lies in the storage; file and manifest may each be gone."""

    name: str
    directory: Path
    status: str  # unverified, verified, failed, missing
    why: str  # one sentence for failed and missing
    manifest: dict[str, Any] | None
    proof: dict[str, Any] | None

    @property
    def path(self) -> Path:
        """The dump."""
        return self.directory / f"{self.name}.dump"

    @property
    def companions(self) -> list[Path]:
        """What lies beside the dump and goes with it."""
        beside = [self.directory / f"{self.name}{ending}" for ending in _BESIDE]
        return [*beside, proof_path(self.directory, self.name)]

    @property
    def created_at(self) -> datetime.datetime:
        """When the data was as it is in the dump; without a manifest what the name says."""
        if self.manifest:
            with contextlib.suppress(ValueError):
                return parse_time(self.manifest["created_at"])
        return datetime.datetime.strptime(self.name, "bazaruto_%Y%m%d_%H%M%S").replace(tzinfo=datetime.UTC)


def usable(directory: str, *, writable: bool) -> Path:
    """The storage directory; refuses one that is missing, elsewhere, open to others or not writable."""
    path = Path(directory)
    if not path.is_absolute():
        raise Refused(f"the backup directory {directory!r} is not an absolute path: write it from / on")
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise Refused(
            f"the backup directory {path} does not exist: make it, mode 0700, for the user of backups"
        ) from None
    except OSError as error:
        raise Refused(f"the backup directory {path} cannot be looked at: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode):
        raise Refused(f"the backup directory {path} is a link to {path.readlink()}: name the directory itself")
    if not stat.S_ISDIR(found.st_mode):
        raise Refused(f"the backup directory {path} is not a directory: name another")
    if found.st_mode & stat.S_IWOTH:
        raise Refused(f"everybody may write into the backup directory {path}: chmod o-w it first")
    if not os.access(path, os.R_OK | os.X_OK):
        raise Refused(f"the backup directory {path} cannot be read by this user: correct its owner or mode")
    # Root may write past a mode; a directory that even its owner may not write was made read-only on purpose.
    if writable and (not os.access(path, os.W_OK) or not found.st_mode & 0o222):
        raise Refused(f"the backup directory {path} is read-only for this user: correct its mode, owner or mount")
    return path


def refuse_without_space(path: Path, needed: int, what: str) -> int:
    """The bytes free at `path`; refuses fewer than needed."""
    free = free_bytes(path)
    if free < needed:
        raise Refused(f"{what} needs {needed} bytes in {path}, {free} are free: free some, or use another directory")
    return free


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write there."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def storage_lock(directory: Path, who: str, *, check_mode: bool) -> Iterator[None]:
    """Hold the storage for one backup; refuses when a living process has it. In check mode nothing is written."""
    path = directory / _LOCK
    flags = os.O_RDONLY if check_mode else os.O_RDWR | os.O_CREAT
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise Refused(f"the lock {path} cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB if check_mode else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 500, 0).decode("utf-8", "replace").strip() or "it does not say who"
            raise Refused(f"another backup is already writing into {directory} ({holder}): wait for its end") from None
        if not check_mode:
            os.ftruncate(descriptor, 0)
            line = f"{who}, process {os.getpid()} on {socket.gethostname()}, since {utc_now()}\n"
            os.pwrite(descriptor, line.encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_for_use(path: Path) -> Iterator[int]:
    """Keep a file from being let go by retention while it is read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


def in_use(path: Path) -> bool:
    """Whether a restore or drill reads this file now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def leftovers(directory: Path) -> list[Path]:
    """What killed backups left, only to be asked under the storage's lock: no living one writes then."""
    found = []
    for path in sorted(directory.iterdir()):
        match = _PARTIAL.fullmatch(path.name)
        if not match:
            continue
        found.append(path)
        if match[2] == "dump":  # sealed in the order manifest, roles, files, dump: without its dump these are nothing
            beside = [directory / f"{match[1]}{ending}" for ending in _BESIDE]
            found += [other for other in beside if other.exists()]
    return found


def backups(directory: Path) -> list[Backup]:
    """Every backup of ours in the storage, the newest first."""
    names = {
        match[0]
        for path in directory.iterdir()
        if path.suffix in {".dump", ".json"} and (match := NAME.fullmatch(path.stem))
    }
    return [read(directory, name) for name in sorted(names, reverse=True)]


def read(directory: Path, name: str) -> Backup:
    """One backup, with what is known of it."""
    manifest, why = read_manifest(directory, name)
    proof = _json(proof_path(directory, name))
    status, why = _status(directory, name, manifest, why, proof)
    return Backup(name, directory, status, why, manifest, proof)


def read_manifest(directory: Path, name: str) -> tuple[dict[str, Any] | None, str]:
    """The manifest beside a dump, or None and what is wrong with it."""
    path = directory / f"{name}.json"
    manifest = _json(path)
    if manifest is None:
        return None, f"its manifest {path.name} is {'not readable' if path.exists() else 'not there'}"
    wrong = [key for key, kind in MANIFEST_KEYS.items() if not isinstance(manifest.get(key), kind)]
    wrong += sorted(f"properties.{key}" for key in _PROPERTY_KEYS - set(manifest.get("properties") or ()))
    wrong += [] if all(isinstance(role, str) and role for role in manifest.get("roles") or ()) else ["roles"]
    if wrong:
        return None, f"its manifest {path.name} lacks {', '.join(wrong)}"
    if manifest["format"] > MANIFEST_FORMAT:
        return None, f"its manifest has format {manifest['format']}, known is {MANIFEST_FORMAT}: use a newer release"
    if manifest["name"] != name:
        return None, f"its manifest {path.name} is that of {manifest['name']}"
    return manifest, ""


def proof_path(directory: Path, name: str) -> Path:
    """Where a drill writes what it found."""
    return directory / "proofs" / f"{name}.json"


def write_private(path: Path, content: str) -> None:
    """Write a file that only its user reads, whole or not at all, and on the disk when this returns."""
    partial = path.with_name(f"{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Put a file, or a directory's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The file's checksum, read from its start to its end."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def utc_now() -> str:
    """Now, as it is shown everywhere."""
    return show_time(datetime.datetime.now(datetime.UTC))


def show_time(moment: datetime.datetime) -> str:
    """A moment in UTC, ISO 8601, with Z."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime.datetime:
    """The moment that show_time wrote."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def show_age(seconds: float) -> str:
    """An age as a person says it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the caller says what its absence means
    return content if isinstance(content, dict) else None


def _status(
    directory: Path, name: str, manifest: dict[str, Any] | None, why: str, proof: dict[str, Any] | None
) -> tuple[str, str]:
    try:
        found = (directory / f"{name}.dump").stat()
    except FileNotFoundError:
        return "missing", f"{name}.dump is gone, only its manifest is left"
    if manifest is None:
        return "failed", why
    if found.st_size != manifest["size_bytes"]:
        return "failed", f"it has {found.st_size} bytes, its manifest says {manifest['size_bytes']}"
    if lost := _lost_beside(directory, manifest):
        return "failed", lost
    return _proven(proof, manifest, found) if proof else ("unverified", "")


def _lost_beside(directory: Path, manifest: dict[str, Any]) -> str:
    """What is wrong, at a glance, with the files that the manifest says lie beside the dump."""
    described = manifest.get("files")
    if not described:
        return ""
    path = directory / str(described.get("name"))
    if not path.is_file():
        return f"{path.name}, which belongs to it, is gone"
    size = path.stat().st_size
    return "" if size == described.get("size_bytes") else f"{path.name} has {size} bytes, not those of its manifest"


def _proven(proof: dict[str, Any], manifest: dict[str, Any], found: os.stat_result) -> tuple[str, str]:
    """What a proof says of the file as it is now; a file touched since is unknown again, not known bad."""
    if proof.get("status") != "verified":
        return "failed", str(proof.get("error") or "a drill could not restore it")
    if proof.get("sha256") != manifest["sha256"]:
        return "failed", "its manifest was changed since it was verified"
    if (proof.get("size_bytes"), proof.get("mtime_ns")) != (found.st_size, found.st_mtime_ns):
        return "unverified", "its file was touched since it was verified: drill it again"
    return "verified", ""
