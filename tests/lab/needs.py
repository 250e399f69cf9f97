"""What the lab needs of this machine, and the sentence that says what is missing."""

from __future__ import annotations

import os
import shutil

PACKAGE_OF = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
}
MAY = "mkdir /mnt/x; mount -t tmpfs none /mnt"


def missing() -> str | None:
    """Why no host can be booted here; None when they can."""
    if os.geteuid() != 0:
        return "it boots hosts, which only root can: use sudo"
    lacking = sorted(package for program, package in PACKAGE_OF.items() if not shutil.which(program))
    if lacking:
        return f"{', '.join(lacking)} is not installed: apt-get install --no-install-recommends {' '.join(lacking)}"
    return None
