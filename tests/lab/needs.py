"""What the lab needs of this machine, and the sentence that says what is missing."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

from tests.lab import cgroups

PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
}
INOTIFY_OF_A_HOST = 8  # that many watchers its systemd has, of those this machine allows root
# Each is tried and leaves nothing. The overlay lies where the hosts' disks will.
TRIALS = (
    """unshare -m sh -c 'd=$(mktemp -d /var/lib/bazaruto-trial-XXXX); trap "cd /; umount $d; rmdir $d" EXIT
       mount -t tmpfs none $d; mkdir $d/a'""",
    """unshare -m sh -c 'd=$(mktemp -d /var/lib/bazaruto-trial-XXXX); cd $d; mkdir l u w m; trap "cd /; rm -rf $d" EXIT
       mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m; umount m'""",
    "ip link add bz-$$ type bridge && ip link delete bz-$$",
)


def root() -> str | None:
    """Why this user cannot have a lab."""
    return None if os.geteuid() == 0 else "its hosts are booted by root: use sudo"


def missing() -> str | None:
    """Why no host can be booted here; None when they can."""
    if reason := root():
        return reason
    lacking = sorted(package for program, package in PACKAGES.items() if not shutil.which(program))
    if lacking:
        return f"install what is missing: apt-get install --no-install-recommends {' '.join(lacking)}"
    if cgroups.tree() is None:
        return "this machine has no cgroup2 mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    for trial in TRIALS:
        done = subprocess.run(["sh", "-ec", trial], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"root may not do here what booting a host takes: {' '.join(done.stderr.split())}"
    return None


def watchers(hosts: int) -> str | None:
    """Why so many more hosts would end while they boot, and say nothing; None when they do not."""
    libc = ctypes.CDLL(None, use_errno=True)
    taken: list[int] = []
    try:
        while len(taken) < hosts * INOTIFY_OF_A_HOST:
            watcher = libc.inotify_init1(os.O_CLOEXEC)
            if watcher < 0:
                return "this machine's other hosts have used up its watchers: sysctl fs.inotify.max_user_instances=1024"
            taken.append(watcher)
    finally:
        for watcher in taken:
            os.close(watcher)
    return None
