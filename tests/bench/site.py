"""How long plays of a whole site take on a lab: from nothing, again, and with our settings beside Ansible's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import needs
from tests.lab.lab import Lab, directory_of

from .figures import Figure, alternate

ROOT = Path(__file__).resolve().parents[2]
LAB = "bench"
PROGRAM = Path(sys.executable).parent / "ansible-playbook"
# Where things are; how Ansible works with them stays its own affair.
STOCK = {
    "ANSIBLE_CONFIG": os.devnull,
    "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
    "ANSIBLE_BECOME_PLUGINS": str(ROOT / "playbooks" / "become_plugins"),
    "ANSIBLE_VAULT_PASSWORD_FILE": str(ROOT / "inventories" / "vault-password"),
    "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
}


def measure(pairs: int) -> list[Figure]:
    """Seconds of site.yml on eight hosts, three of them of the application. None where no lab can be."""
    if reason := needs.missing():
        print(f"plays: left out, as there can be no lab here: {reason}")
        return []
    subprocess.run(["make", "-s", "bundle"], cwd=ROOT, check=True)
    lab = Lab(directory_of(LAB))
    try:
        lab.up()
        first, again = _play({}), _play({})
        ours, stock = alternate(pairs, lambda: _play({}), lambda: _play(STOCK))
    finally:
        lab.down()
    return [
        Figure("site.yml on a settled site ÷ with stock settings", ours, stock, "s", "<= 0.5"),
        Figure("site.yml, the second run ÷ from nothing", again, first, "s", ""),
    ]


def _play(settings: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [PROGRAM, "-i", ROOT / "inventories" / "lab", ROOT / "playbooks" / "site.yml"],
        cwd=ROOT,
        env={**os.environ, "BAZARUTO_LAB": LAB, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the site was not built: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - started
