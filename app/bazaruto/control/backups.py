"""The backups in the storage, each with what is proven of it. The files are the truth; nothing is cached."""

from __future__ import annotations

import datetime
import enum
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psycopg import Connection
from pydantic import BaseModel, Field

from bazaruto.database import statements

SQL = statements(__package__, "backups.sql")
NAME = re.compile(r"bazaruto_\d{8}_\d{6}")


_SETTINGS = {"database": "backup_directory", "control": "control_backup_directory"}


class StorageUnreadableError(Exception):
    """The backup directory cannot be listed."""


class BackupStatus(enum.StrEnum):
    """What is known of a backup."""

    UNVERIFIED = "unverified"  # its size is right; no drill has restored it, or not since it was touched
    VERIFIED = "verified"  # a drill restored it, and it has not changed since
    FAILED = "failed"  # not what its manifest says, or a drill could not restore it
    MISSING = "missing"  # its manifest is there, its file is not


class Kind(enum.StrEnum):
    """What was backed up. Each kind has a directory of its own."""

    DATABASE = "database"  # the service's
    CONTROL = "control"  # the control plane's own, with its keys


class Backup(BaseModel):
    """One backup of a database."""

    name: str
    kind: Kind = Kind.DATABASE
    created_at: datetime.datetime | None
    size_bytes: int | None
    sha256: str | None
    status: BackupStatus
    status_reason: str | None = Field(description="Why it is failed, missing, or unverified again")
    verified_at: datetime.datetime | None
    proof: dict[str, Any] | None = Field(description="What the last drill found")
    rows: dict[str, int] | None = Field(description="Rows by table, counted in the dump's own snapshot")
    run: str | None = Field(description="The run that made it")
    files: list[str] | None = Field(description="What was packed beside a control backup: its keys and their company")

    @property
    def place(self) -> str:
        """Where it stands in the list of all."""
        return f"{self.name} {self.kind}"


def made_in(connection: Connection[Any], found: Sequence[Backup], environments: Sequence[str]) -> list[Backup]:
    """Those that a run in one of these environments made; where the run is not known, nobody knows that."""
    runs = [backup.run for backup in found if backup.run]
    rows = connection.execute(SQL.runs_within, {"ids": runs, "environments": list(environments)})
    known = {row["id"] for row in rows}
    return [backup for backup in found if backup.run in known]


def page(directories: Mapping[Kind, Path], before: str | None, limit: int) -> tuple[list[Backup], str | None]:
    """Backups of these kinds, newest first, and the place to ask before for the next page."""
    places = {f"{name} {kind}": (kind, name) for kind, path in directories.items() for name in _names(kind, path)}
    asked = sorted((place for place in places if before is None or place < before), reverse=True)
    shown = [read(directories[kind], name, kind) for kind, name in (places[place] for place in asked[:limit])]
    return shown, asked[limit - 1] if len(asked) > limit else None


def read(directory: Path, name: str, kind: Kind = Kind.DATABASE) -> Backup:
    """One backup as it lies there now."""
    manifest, proof = _json(directory / f"{name}.json"), _json(directory / "proofs" / f"{name}.json")
    try:
        file: os.stat_result | None = (directory / f"{name}.dump").stat()
    except FileNotFoundError:
        file = None
    status, reason = _judge(name, file, manifest, proof)
    if file and manifest and (lost := _lost_beside(directory, manifest)):
        status, reason = BackupStatus.FAILED, lost
    known, proven = manifest or {}, proof or {}
    return Backup(
        name=name,
        kind=kind,
        created_at=_moment(known.get("created_at")) or _moment_of_name(name),
        size_bytes=file.st_size if file else _whole(known.get("size_bytes")),
        sha256=known.get("sha256") if isinstance(known.get("sha256"), str) else None,
        status=status,
        status_reason=reason or _lacks(known),
        verified_at=_moment(proven.get("verified_at")) if status is BackupStatus.VERIFIED else None,
        proof=proof,
        rows=_rows(known.get("rows")),
        run=str(known["run"]) if known.get("run") else None,
        files=sorted(_packed(known).get("members") or ()) if _packed(known) else None,
    )


def _packed(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the manifest says of files packed beside the dump; nothing for most."""
    packed = manifest.get("files")
    return packed if isinstance(packed, Mapping) else {}


def _lost_beside(directory: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong, at a glance, with the archive of these files; a drill looks into it."""
    packed = _packed(manifest)
    if not packed:
        return None
    archive = directory / str(packed.get("name"))
    try:
        size = archive.stat().st_size
    except OSError:
        return f"{archive.name}, which belongs to it, is gone"
    return None if size == packed.get("size_bytes") else f"{archive.name} has {size} bytes, not those of its manifest"


def _lacks(manifest: Mapping[str, Any]) -> str | None:
    """What was lost already when the backup was made."""
    missing = _packed(manifest).get("missing")
    return f"{', '.join(missing)} was not there when it was made" if isinstance(missing, list) and missing else None


def _judge(
    name: str, file: os.stat_result | None, manifest: Mapping[str, Any] | None, proof: Mapping[str, Any] | None
) -> tuple[BackupStatus, str | None]:
    if file is None:
        return BackupStatus.MISSING, f"{name}.dump is gone, only its manifest is left"
    if manifest is None or manifest.get("name") != name:
        return BackupStatus.FAILED, f"its manifest {name}.json is not there or cannot be read"
    if file.st_size != manifest.get("size_bytes"):
        return BackupStatus.FAILED, f"it has {file.st_size} bytes, its manifest says {manifest.get('size_bytes')}"
    if proof is None:
        return BackupStatus.UNVERIFIED, None
    return _judge_proof(file, manifest, proof)


def _judge_proof(
    file: os.stat_result, manifest: Mapping[str, Any], proof: Mapping[str, Any]
) -> tuple[BackupStatus, str | None]:
    """What a drill found holds for the very file it read; a file touched since is unknown again, not known bad."""
    if proof.get("status") != "verified":
        return BackupStatus.FAILED, str(proof.get("error") or "a drill could not restore it")
    if proof.get("sha256") != manifest.get("sha256"):
        return BackupStatus.FAILED, "its manifest was changed since it was verified"
    if (proof.get("size_bytes"), proof.get("mtime_ns")) != (file.st_size, file.st_mtime_ns):
        return BackupStatus.UNVERIFIED, "its file was touched since it was verified: drill it again"
    return BackupStatus.VERIFIED, None


def _names(kind: Kind, directory: Path) -> set[str]:
    if kind is Kind.CONTROL and not directory.exists():
        return set()  # nobody has backed up this control plane yet
    try:
        return {
            path.stem for path in directory.iterdir() if path.suffix in (".dump", ".json") and NAME.fullmatch(path.stem)
        }
    except OSError as error:
        raise StorageUnreadableError(
            f"The backup directory {directory} cannot be read: {error.strerror}. Mend it, or set {_SETTINGS[kind]}."
        ) from error


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # its absence is what the status then says
    return value if isinstance(value, dict) else None


def _moment(value: object) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None  # a manifest is only believed where it can be read
    return moment.astimezone(datetime.UTC) if moment else None


def _moment_of_name(name: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(name, "bazaruto_%Y%m%d_%H%M%S").replace(tzinfo=datetime.UTC)
    except ValueError:
        return None  # 99 o'clock: the name was not given by us


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _rows(value: object) -> dict[str, int] | None:
    if not isinstance(value, Mapping):
        return None
    return {str(table): count for table, count in value.items() if isinstance(count, int)}
