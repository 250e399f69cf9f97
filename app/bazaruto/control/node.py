"""The name of this control node."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path


def node_name(home: Path) -> str:
    """The control node this home is: made once, so that a changed host name orphans no run."""
    path = home / "control" / "node"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{socket.gethostname()}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8")
