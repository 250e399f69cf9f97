"""The environment of everything that belongs to a run: what is named here, and nothing of who started it besides."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# All that is inherited. BAZARUTO_CONFIG is a path: of the settings, for what works on the control plane itself.
# BAZARUTO_LAB is the name of a lab: inventories/lab finds by it which hosts are meant.
KEPT = ("BAZARUTO_CONFIG", "BAZARUTO_LAB", "HOME", "SSH_AUTH_SOCK", "TMPDIR", "TZ", "USER", "LOGNAME")


def environment(home: Path, content_directory: Path, run: str) -> dict[str, str]:
    """The variables, with Ansible's settings taken from the content."""
    configuration = content_directory / "ansible.cfg"
    return {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "BAZARUTO_HOME": str(home),
        "BAZARUTO_RUN_ID": run,
        "PYTHONDONTWRITEBYTECODE": "1",  # a run changes nothing in its snapshot of the content
        **({"ANSIBLE_CONFIG": str(configuration)} if configuration.is_file() else {}),
    }
