"""What one entry of the audit is, and how it is chained to the one before: HMAC-SHA256 over all that it says."""

from __future__ import annotations

import dataclasses
import datetime
import hmac
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from bazaruto.redaction import redacted

BEGINNING = bytes(32)  # what the first entry follows
LONGEST_TEXT = 200  # characters of a name
LONGEST_DETAIL = 2000
LONGEST_PARAMETERS = 16_384
ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry, as the columns of audit_entries have it."""

    seq: int
    at: datetime.datetime
    node: str
    actor: str
    token: str | None
    address: str | None
    request_id: str | None
    action: str
    target: str | None
    environment: str | None
    operation: str | None
    parameters: str | None  # JSON, letter by letter
    outcome: str
    detail: str | None
    key: str
    previous: bytes


CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
COLUMNS = tuple(field.name for field in dataclasses.fields(Entry))


def mac(key: bytes, entry: Entry) -> bytes:
    """What proves the entry and its place."""
    values = {
        **vars(entry),
        "at": entry.at.astimezone(datetime.UTC).isoformat(timespec="microseconds"),
        "previous": entry.previous.hex(),
    }
    return hmac.digest(key, entry.previous + CANONICAL.encode(values).encode(), "sha256")


def of_row(row: Mapping[str, Any]) -> Entry:
    """The entry of a row whose `parameters` are text."""
    return Entry(**{**{name: row[name] for name in COLUMNS}, "previous": bytes(row["previous"])})


def text(value: str | None, longest: int = LONGEST_TEXT) -> str | None:
    """A text that every terminal and database can hold: bounded, what is odd spelled out, no secret in it."""
    if value is None:
        return None
    plain = ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", redacted(value[: 4 * longest]))
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def parameters(values: Mapping[str, Any] | None) -> str | None:
    """Parameters as JSON, secrets already out; what is too long to keep is cut, and says so."""
    if values is None:
        return None
    written = json.dumps(_plain(values), ensure_ascii=False)
    if len(written) <= LONGEST_PARAMETERS:
        return written
    cut = {str(text(str(name))): "… too long to be kept" for name in list(values)[:50]}
    return json.dumps(cut, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return text(value, LONGEST_DETAIL)
    if isinstance(value, Mapping):
        return {str(text(str(name))): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return (
        value
        if isinstance(value, int | None) or (isinstance(value, float) and math.isfinite(value))
        else text(str(value))
    )
