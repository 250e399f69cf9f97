"""The control node's keys: files of mode 0600 in $BAZARUTO_HOME/control/, known to the database by their fingerprints.

A key is made when the database knows none of its name. One that is lost, or another than before, is said, and never
silently made anew: what was sealed or signed with the old one would become worthless without a word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet
from psycopg import Connection

from bazaruto.database import statements

SQL = statements(__package__, "keys.sql")


class KeyName(enum.StrEnum):
    """Which key."""

    SEALING = "sealing.key"  # seals the variables of runs that wait
    AUDIT = "audit.key"  # chains the entries of the audit


class KeyUnusable(Exception):
    """A key is lost, or not the one that was used before; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A key as it lies in its file."""

    name: KeyName
    material: bytes
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class KeyState:
    """How a key stands: what the database knows, and what is in the file."""

    name: KeyName
    fingerprint: str | None  # recorded; None before the first use
    since: datetime.datetime | None
    problem: str | None  # why it cannot be used


class Keys:
    """One control node's keys. May be shared by threads; a file that was replaced is read again."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "control"
        self._read: dict[KeyName, tuple[tuple[int, int, int], Key]] = {}

    def path(self, name: KeyName) -> Path:
        return self.directory / name

    def current(self, name: KeyName) -> Key:
        """The key in the file. Raises KeyUnusable when there is none, or what is there is no key."""
        path = self.path(name)
        try:
            found = path.stat()
            signature = (found.st_ino, found.st_mtime_ns, found.st_size)
            known = self._read.get(name)
            if known is None or known[0] != signature:
                known = self._read[name] = signature, _key(name, path.read_bytes())
        except OSError as error:
            raise KeyUnusable(f"{path} cannot be read ({error.strerror}): {_remedy(name)}") from error
        return known[1]

    def kept(self, name: KeyName) -> list[Key]:
        """Keys that were replaced, as far as their files were kept beside it."""
        return [_key(name, path.read_bytes()) for path in sorted(self.directory.glob(f"{name}.????????????????"))]

    def checked(self, connection: Connection[Any], name: KeyName) -> Key:
        """The key, when it is the one that the database knows. Raises KeyUnusable."""
        row = connection.execute(SQL.current_key, {"name": name}).fetchone()
        return self.matching(name, row["fingerprint"] if row else None)

    def matching(self, name: KeyName, fingerprint: str | None) -> Key:
        """The key, when it has this fingerprint. Raises KeyUnusable."""
        key = self.current(name)
        if fingerprint is None:
            raise KeyUnusable(f"The database does not know {name} yet: run `bazaruto migrate` on this control node.")
        if key.fingerprint != fingerprint:
            raise KeyUnusable(
                f"{self.path(name)} is another key ({key.fingerprint}) than the one in use ({fingerprint}): "
                + _remedy(name)
            )
        return key

    def establish(self, connection: Connection[Any]) -> None:
        """Make and record keys the database knows nothing of; one it knows is never made anew."""
        connection.execute(SQL.one_at_a_time)
        for name in KeyName:
            if connection.execute(SQL.current_key, {"name": name}).fetchone() is None:
                if not self.path(name).exists():
                    write_key(self.path(name))
                values = {"name": name, "fingerprint": self.current(name).fingerprint}
                connection.execute(SQL.insert_key, values)

    def states(self, connection: Connection[Any]) -> list[KeyState]:
        """How each key stands."""
        found = []
        for name in KeyName:
            row = connection.execute(SQL.current_key, {"name": name}).fetchone()
            problem = None
            try:
                self.matching(name, row["fingerprint"] if row else None)
            except KeyUnusable as error:
                problem = str(error)
            found.append(KeyState(name, row["fingerprint"] if row else None, row["since"] if row else None, problem))
        return found


def _key(name: KeyName, material: bytes) -> Key:
    material = material.strip()
    try:
        Fernet(material)
    except ValueError as error:
        raise KeyUnusable(f"{name} is no key, but {len(material)} bytes of something else: {_remedy(name)}") from error
    return Key(name, material, hashlib.sha256(b"fingerprint of a key\0" + material).hexdigest()[:16])


def _remedy(name: KeyName) -> str:
    return f"put it back from a backup, or give it up with `bazaruto keys replace {name} --reason WHY`"


def write_key(path: Path) -> None:
    """Make a key, whole or not at all; when another process was first, its key is the one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(Fernet.generate_key())
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
