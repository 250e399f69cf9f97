"""Launches that may be sent twice: one Idempotency-Key and one body are one run, however often they arrive.

The unique key in PostgreSQL decides: of launches at the same moment the second waits until the first is durable.
"""

from __future__ import annotations

import dataclasses
import hmac
import re
from collections.abc import Mapping
from typing import Any

from psycopg import Connection
from pydantic import BaseModel, Field

from bazaruto.control.sealing import Seal
from bazaruto.database import statements

SQL = statements(__package__, "idempotency.sql")
HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"  # header of an answer that launched nothing
KEY = re.compile(r"[\x20-\x7e]{1,255}")
KEPT_SECONDS = 48 * 3600.0  # promised are 24 h


class KeyHeader(BaseModel):
    """What makes a launch safe to be sent again."""

    idempotency_key: str | None = Field(
        default=None,
        alias=HEADER,
        pattern=f"^{KEY.pattern}$",
        description="of a launch: sent again with the same body, it is the same run; with another body it is refused",
    )


class WrongKey(Exception):
    """The key cannot be taken; the text says why."""


class AlreadyLaunched(Exception):
    """Another request with this key has launched its run meanwhile: nothing of this one may stay."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch that carries a key."""

    requested_by: str  # keys of different people have nothing to do with each other
    key: str
    fingerprint: bytes  # of what is asked for; keyed, since it may hold a secret that could be guessed

    def earlier(self, connection: Connection[Any]) -> str | None:
        """The run that this launch has already, or None. Raises WrongKey when the key was used for something else."""
        row = connection.execute(SQL.launch_of_key, dataclasses.asdict(self)).fetchone()
        if row is None:
            return None
        if not hmac.compare_digest(bytes(row["fingerprint"]), self.fingerprint):
            if row["of_another_key"]:
                raise WrongKey(
                    f"was used before sealing.key was replaced, for run {row['run']}: whether this is the same launch "
                    "cannot be told any more; look at that run, then take another key"
                )
            raise WrongKey("was used for another launch before: the same key means the same launch")
        run: str = row["run"]
        return run

    def keep(self, connection: Connection[Any], run: str) -> None:
        """Bind the key to a run in the run's own transaction. Raises AlreadyLaunched when it is bound by now."""
        if connection.execute(SQL.insert_key, {**dataclasses.asdict(self), "run": run}).fetchone() is None:
            raise AlreadyLaunched
        connection.execute(SQL.forget_old_keys, {"seconds": KEPT_SECONDS})


def launch_of(key: str | None, seal: Seal, requested_by: str, asked: Mapping[str, Any]) -> Launch | None:
    """The launch a key makes of what is asked for; None without a key. Raises WrongKey for what is no key."""
    if key is None:
        return None
    if not KEY.fullmatch(key):
        raise WrongKey("must be 1 to 255 printable ASCII characters")
    return Launch(requested_by, key, seal.fingerprint(asked))
