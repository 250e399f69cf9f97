"""Role variables at rest: sealed between a run's acceptance and its start, so that no secret lies in the database.

The key is a file of the control node, 0600: $BAZARUTO_HOME/control/sealing.key.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken


class CannotUnsealError(Exception):
    """The sealed variables do not belong to this node's key, or were changed."""


class Seal:
    """Seals and opens with one node's key."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(key)
        self._fingerprint_key = hmac.digest(key, b"fingerprints of requests", "sha256")

    def close(self, variables: dict[str, Any]) -> bytes:
        return self._fernet.encrypt(json.dumps(variables).encode())

    def open(self, sealed: bytes) -> dict[str, Any]:
        try:
            variables: dict[str, Any] = json.loads(self._fernet.decrypt(sealed))
        except InvalidToken as error:
            raise CannotUnsealError(
                "its parameters were sealed with another key than $BAZARUTO_HOME/control/sealing.key"
            ) from error
        return variables

    def fingerprint(self, value: Mapping[str, Any]) -> bytes:
        """What tells two values apart, and from which, without the key, nobody can guess them."""
        canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hmac.digest(self._fingerprint_key, canonical.encode(), "sha256")


def load(home: Path) -> Seal:
    """The node's seal; the key is made at the first use, whole or not at all."""
    path = home / "control" / "sealing.key"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _make_key(path)
    return Seal(path.read_bytes())


def _make_key(path: Path) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(Fernet.generate_key())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(partial, path)
    except FileExistsError:
        pass  # another process was first; its key is the one
    finally:
        partial.unlink()
