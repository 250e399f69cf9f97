"""Files that are nothing without a database, nor it without them: packed beside its dump, and held to the manifest."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

from ansible.module_utils.bazaruto_backup import storage
from ansible.module_utils.bazaruto_backup.refusal import Refused

ENDING = ".files.tar"
ENTRY = {
    "path": {"type": "path", "required": True},
    "into": {"type": "str", "required": True},
    "required": {"type": "bool", "default": False},
    "never_executable": {"type": "bool", "default": False},
}


def pack(entries: list[dict[str, Any]], partial: Path) -> dict[str, Any]:
    """Write the archive of what these entries name, and describe it as a manifest does."""
    members: dict[str, Any] = {}
    missing: list[str] = []
    left_out: dict[str, str] = {}
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for entry in entries:
            found = named_by(Path(entry["path"]))
            if entry["required"] and not found:
                missing.append(f"{entry['into']}/{Path(entry['path']).name}")
            for path in found:
                member = f"{entry['into']}/{path.name}"
                if entry["never_executable"] and path.stat().st_mode & 0o111:
                    left_out[member] = "it is a script, which may hold the key to more than this"
                else:
                    members[member] = {**_add(archive, member, path), "path": str(path)}
    return {"members": members, "missing": missing, "left_out": left_out}


def describe(archive: Path, name: str) -> dict[str, Any]:
    """The archive itself, as a manifest has it."""
    return {
        "name": name,
        "size_bytes": archive.stat().st_size,
        "sha256": storage.sha256(archive),
        "note": "holds keys: whoever reads it opens and forges what they protect",
    }


def named_by(path: Path) -> list[Path]:
    """The regular files a path means, whose last part may hold * and ?; what is being written is none."""
    if not path.name or not path.parent.is_dir():
        return []
    found = sorted(path.parent.glob(path.name))
    return [one for one in found if one.suffix != ".partial" and stat.S_ISREG(one.stat().st_mode)]


def fault(directory: Path, manifest: dict[str, Any]) -> str:
    """What is wrong with the archive a manifest speaks of; empty when nothing is, or it speaks of none."""
    described = manifest.get("files")
    if not described:
        return ""
    path = directory / described["name"]
    if not path.is_file():
        return f"{path.name}, which belongs to it, is gone"
    if storage.sha256(path) != described["sha256"]:
        return f"{path.name} has another checksum than its manifest says: it was changed"
    try:
        contents = read(path)
    except (tarfile.TarError, OSError) as error:
        return f"{path.name} cannot be read: {error}"
    members = described["members"]
    differ = [name for name in sorted(members.keys() | contents.keys()) if not _same(members, contents, name)]
    return f"{path.name} holds other files than its manifest says: {', '.join(differ)}" if differ else ""


def read(path: Path) -> dict[str, bytes]:
    """The files of an archive by their names in it."""
    found = {}
    with tarfile.open(path, mode="r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                raise Refused(f"{path.name} holds {member.name}, which is no file: nothing of ours packed that")
            found[member.name] = file.read()
    return found


def _add(archive: tarfile.TarFile, member: str, path: Path) -> dict[str, Any]:
    """What is read is what is hashed: the file may grow meanwhile."""
    content = path.read_bytes()
    about = tarfile.TarInfo(member)
    about.size, about.mode, about.mtime = len(content), 0o600, int(path.stat().st_mtime)
    archive.addfile(about, io.BytesIO(content))
    return {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _same(members: dict[str, Any], contents: dict[str, bytes], name: str) -> bool:
    if name not in members or name not in contents:
        return False
    return bool(members[name]["sha256"] == hashlib.sha256(contents[name]).hexdigest())
