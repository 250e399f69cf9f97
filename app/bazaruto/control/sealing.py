"""Role variables at rest: sealed between a run's acceptance and its start, so that no secret lies in the database."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from psycopg import Connection

from bazaruto.control.keys import KeyName, Keys, KeyUnusable


class CannotUnsealError(Exception):
    """The sealed variables do not belong to this node's key, or were changed."""


class Seal:
    """Seals and opens with one node's key, which is read again when its file was replaced."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def check(self, connection: Connection[Any]) -> None:
        """Raise KeyUnusable when the key is lost, or not the one that the database knows."""
        self._keys.checked(connection, KeyName.SEALING)

    def close(self, variables: dict[str, Any]) -> bytes:
        """Raises KeyUnusable."""
        return Fernet(self._key()).encrypt(json.dumps(variables).encode())

    def open(self, sealed: bytes) -> dict[str, Any]:
        """Also what was sealed with a key that was replaced since, while that is kept."""
        try:
            kept = [key.material for key in self._keys.kept(KeyName.SEALING)]
            opened = MultiFernet([Fernet(material) for material in (self._key(), *kept)]).decrypt(sealed)
        except KeyUnusable as error:
            raise CannotUnsealError(f"its parameters cannot be opened: {error}") from error
        except InvalidToken as error:
            raise CannotUnsealError(
                "its parameters were sealed with another key than $BAZARUTO_HOME/control/sealing.key"
            ) from error
        variables: dict[str, Any] = json.loads(opened)
        return variables

    def fingerprint(self, value: Mapping[str, Any]) -> bytes:
        """What tells two values apart, and from which, without the key, nobody can guess them. Raises KeyUnusable."""
        canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        derived = hmac.digest(self._key(), b"fingerprints of requests", "sha256")
        return hmac.digest(derived, canonical.encode(), "sha256")

    def _key(self) -> bytes:
        return self._keys.current(KeyName.SEALING).material


def load(home: Path) -> Seal:
    """The node's seal."""
    return Seal(Keys(home))
