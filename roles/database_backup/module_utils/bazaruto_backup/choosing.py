"""Choose one backup from the storage, by name or by what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.module_utils.bazaruto_backup import storage
from ansible.module_utils.bazaruto_backup.refusal import Refused


def choose(directory_name: str, name: str, purpose: str) -> dict[str, Any]:
    """The backup that is meant, as facts."""
    directory = storage.usable(directory_name, writable=False)
    if name and storage.IMPORT_NAME.fullmatch(name):
        return _archive(directory, name, purpose)
    found = _named(directory, name.removesuffix(".dump")) if name else _newest(directory, purpose)
    if found.status == "missing":
        raise Refused(f"the backup {found.name} cannot be used: {found.why}")
    if purpose == "restore" and found.status == "failed":
        raise Refused(f"the backup {found.name} is failed ({found.why}): choose another one")
    manifest = found.manifest or {}
    known = {key: manifest.get(key) for key in ("size_bytes", "sha256", "rows", "database", "run")}
    return {
        "name": found.name,
        "path": str(found.path),
        "kind": "dump",
        "status": found.status,
        "created_at": storage.show_time(found.created_at),
        **known,
    }


def _named(directory: Path, name: str) -> storage.Backup:
    if not storage.NAME.fullmatch(name):
        raise Refused(
            f"{name!r} is not the name of a backup: write bazaruto_YYYYmmdd_HHMMSS, or NAME.sql.gz for an archive of "
            f"the guide's script; without a path, it is looked for in {directory}"
        )
    found = storage.read(directory, name)
    if found.status == "missing" and found.manifest is None:
        raise Refused(f"there is no backup {name} in {directory}: `ls {directory}` shows what is there")
    return found


def _newest(directory: Path, purpose: str) -> storage.Backup:
    wanted = {"verified"} if purpose == "restore" else {"verified", "unverified", "failed"}
    all_of_them = storage.backups(directory)
    for found in all_of_them:
        if found.status in wanted:
            return found
    if purpose == "restore" and all_of_them:
        raise Refused(
            f"none of the {len(all_of_them)} backups in {directory} is verified: prove one with "
            "playbooks/restore_drill.yml, or name the one you want all the same"
        )
    raise Refused(f"there is no backup in {directory}: make one with playbooks/backup.yml")


def _archive(directory: Path, name: str, purpose: str) -> dict[str, Any]:
    path = directory / name
    if purpose == "drill":
        raise Refused(f"{name} is an archive of the guide's script, without a manifest to prove it against: restore it")
    if path.is_symlink() or not path.is_file():
        raise Refused(f"there is no archive {name} in {directory}: copy it there first")
    return {
        "name": name,
        "path": str(path),
        "kind": "sql.gz",
        "status": "unverified",
        "created_at": "",
        "size_bytes": path.stat().st_size,
        "sha256": storage.sha256(path),
        "rows": {},
        "database": None,
        "run": None,
    }
