"""Tells journald, where there is one, in its native protocol."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")


def tell(identifier: str, message: str, fields: Mapping[str, str]) -> None:
    """Send one message with fields of its own; all are single lines. Does nothing without journald. Raises OSError."""
    if not SOCKET.exists():
        return
    everything = {"MESSAGE": message, "SYSLOG_IDENTIFIER": identifier, "PRIORITY": "5", **fields}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.setblocking(False)  # a journald that is stuck holds nobody up
        journal.sendto("".join(f"{name}={value}\n" for name, value in everything.items()).encode(), str(SOCKET))
