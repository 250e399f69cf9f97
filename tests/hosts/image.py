"""Make, once, the directory that test hosts boot from: Debian 12 with systemd, sshd and PostgreSQL.

`python -m tests.hosts.image`; `make test-hosts` calls it. BAZARUTO_HOSTS_IMAGE says where, outside the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

IMAGE = Path(os.environ.get("BAZARUTO_HOSTS_IMAGE", "/var/cache/bazaruto-hosts/bookworm"))
SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "python3", "sudo", "openssh-server", "iproute2", "procps", "ca-certificates"),
    *("postgresql-15", "python3-psycopg"),
)
NEEDED = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "ip": "iproute2", "ssh": "openssh-client"}
BRIDGE = (["ip", "link", "add", f"bzt{os.getpid()}", "type", "bridge"], ["ip", "link", "del", f"bzt{os.getpid()}"])
NOT_WANTED = (
    *(
        "console-getty.service",
        "getty.target",
        "systemd-firstboot.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
    ),
    *("e2scrub_all.timer", "fstrim.timer"),
)
COMPLETE = "etc/bazaruto-test-image"  # written last: what the image holds


def missing() -> str | None:
    """Why no host can be booted here; None when one can."""
    if os.geteuid() != 0:
        return "hosts are booted by root only"
    lacking = sorted(package for program, package in NEEDED.items() if not shutil.which(program))
    if lacking:
        return f"{', '.join(lacking)} is not installed: apt-get install {' '.join(lacking)}"
    if not is_complete():
        return f"there is no image {IMAGE} with what the tests need: run `make test-hosts`, which makes it"
    for words in (["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], *BRIDGE):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"root may not do here what booting a host takes: {' '.join(words)}: {done.stderr.strip()}"
    return None


def is_complete() -> bool:
    """Whether the image is there, and of this file's packages."""
    mark = IMAGE / COMPLETE
    return mark.is_file() and mark.read_text(encoding="utf-8") == _contents()


def make() -> None:
    """Make the image anew, unless it is there."""
    if is_complete():
        return
    partial = IMAGE.with_name(IMAGE.name + ".partial")
    for old in (partial, IMAGE):
        if old.exists():
            shutil.rmtree(old)
    partial.parent.mkdir(parents=True, exist_ok=True)
    include = f"--include={','.join(PACKAGES)}"
    subprocess.run(["mmdebstrap", "--variant=minbase", include, SUITE, str(partial)], check=True)
    _configure(partial)
    (partial / COMPLETE).write_text(_contents(), encoding="utf-8")
    partial.rename(IMAGE)


def _configure(root: Path) -> None:
    """What makes of a base system one that boots in a second, with nothing in it that only people need."""
    for unit in NOT_WANTED:
        path = root / "etc/systemd/system" / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    link = wants / "systemd-networkd.service"
    if not link.is_symlink():
        link.symlink_to("/lib/systemd/system/systemd-networkd.service")
    (root / "etc/machine-id").write_text("", encoding="utf-8")
    (root / "etc/ssh/sshd_config.d/test.conf").write_text("UseDNS no\nPasswordAuthentication no\n", encoding="utf-8")


def _contents() -> str:
    return f"{SUITE}\n{' '.join(PACKAGES)}\n"


if __name__ == "__main__":
    if (reason := missing()) and not reason.startswith("there is no image"):
        sys.exit(f"No test hosts here: {reason}.")
    make()
