"""Tells systemd that a process serves, for units with Type=notify; without systemd it says nothing."""

from __future__ import annotations

import os
import socket


def ready() -> None:
    """`systemctl start` ends now; until then whoever asked for the start waits."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        notifier.send(b"READY=1")
