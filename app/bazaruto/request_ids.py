"""Request ids: made here, or taken over from a proxy of ours when they look like one."""

from __future__ import annotations

import random
import re

_OURS = re.compile(r"req_[A-Za-z0-9]{8,64}")


def new_request_id() -> str:
    """Unique enough to find one request's lines; no secret."""
    return f"req_{random.getrandbits(80):020x}"


def accepted(candidate: str) -> str:
    """The candidate when it is an id of our form, else a new one."""
    return candidate if _OURS.fullmatch(candidate) else new_request_id()
