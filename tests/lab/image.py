"""Make, once, what the lab's hosts boot from: a bare Debian 12 as a provider delivers it.

`python -m tests.lab.image`; `make lab` and `make test-hosts` call it. Everything that hosts install lies in it as a
local apt repository, the only source they have, so that they really install, without a network. Images lie in
/var/cache/bazaruto-hosts (BAZARUTO_HOSTS_IMAGE), outside the repository; another list of packages is another image.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab import claims

IMAGES = Path(os.environ.get("BAZARUTO_HOSTS_IMAGE", "/var/cache/bazaruto-hosts"))
SUITE = "bookworm"
# What a provider's Debian has.
BASE = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "python3-apt", "sudo", "openssh-server"),
    *("iproute2", "procps", "ca-certificates", "apt-utils", "netbase", "tzdata"),
)
# What roles and tests install on hosts; with all that these need.
PACKAGES = (
    *("nginx", "nginx-light", "certbot", "python3-certbot-nginx"),
    *("postgresql-15", "postgresql-client-15", "python3-psycopg2", "python3-psycopg", "pgbackrest", "redis-server"),
    *("prometheus", "prometheus-alertmanager", "prometheus-node-exporter", "prometheus-postgres-exporter"),
    *("prometheus-redis-exporter", "prometheus-nginx-exporter"),
    *("nftables", "chrony", "unattended-upgrades", "polkitd", "dbus-user-session", "logrotate"),
    *("python3-venv", "python3-cryptography", "rsync", "age", "zstd", "acl", "curl", "openssl", "ssl-cert"),
    *("strace", "netcat-openbsd", "jq"),
)
NOT_WANTED = (
    *("console-getty.service", "getty.target", "systemd-firstboot.service", "apt-daily.timer"),
    *("apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer"),
)
REPOSITORY = "var/lib/lab-packages"
USER = "debian"
FILES = {
    "etc/machine-id": "",
    "etc/dpkg/dpkg.cfg.d/lab": "force-unsafe-io\n",
    "etc/apt/sources.list": f"deb [trusted=yes] file:/{REPOSITORY} ./\n",
    "etc/ssh/sshd_config.d/lab.conf": "UseDNS no\nPasswordAuthentication no\n",
    f"etc/sudoers.d/{USER}": f"{USER} ALL=(ALL) NOPASSWD: ALL\n",
}
COMPLETE = "etc/bazaruto-lab-image"  # written last
# Runs as root beside the new system, $1 its root: with this machine's apt, so with its proxies and mirrors.
FETCH = f"""
set -e
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get --yes -qq --no-install-recommends --download-only install {" ".join(PACKAGES)}
mkdir -p "$1/{REPOSITORY}"
mv "$1"/var/cache/apt/archives/*.deb "$1/{REPOSITORY}/"
"""
# Inside the new system, when mmdebstrap has removed its own lists and sources.
FINISH = f"""
set -e
cd /{REPOSITORY}
apt-ftparchive packages . > Packages
apt-ftparchive -o APT::FTPArchive::Release::Origin=lab release . > /tmp/Release
mv /tmp/Release Release
apt-get -qq update
useradd --create-home --shell /bin/bash {USER}
chmod 0440 /etc/sudoers.d/{USER}
rm -f /etc/ssh/ssh_host_*
systemctl -q enable systemd-networkd.service
systemctl -q mask {" ".join(NOT_WANTED)}
"""


def path() -> Path:
    """Where the image of this file's packages is, or will be."""
    content = "\n".join((SUITE, *BASE, "", *PACKAGES, FETCH, FINISH, *FILES, *FILES.values()))
    return IMAGES / f"{SUITE}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def is_complete() -> bool:
    """Whether it is there."""
    return (path() / COMPLETE).is_file()


def make() -> None:
    """Make the image unless it is there, and remove those that no list of packages and no lab asks for any more."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (IMAGES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete():
            return
        used = {claim.image for claim in claims.all_claims()}
        for old in IMAGES.glob(f"{SUITE}*"):
            if old not in used:
                shutil.rmtree(old)
        partial = path().with_name(path().name + ".partial")
        _unpack(partial)
        for name, content in FILES.items():
            (partial / name).write_text(content, encoding="utf-8")
        subprocess.run(["chroot", partial, "sh", "-c", FINISH], check=True)
        (partial / COMPLETE).write_text("", encoding="utf-8")
        partial.rename(path())


def _unpack(root: Path) -> None:
    include = f"--include={','.join(BASE)}"
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as hook:
        hook.write(FETCH)
        hook.flush()
        fetch = f'--customize-hook=sh {hook.name} "$1"'
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", include, fetch, SUITE, root], check=True)


if __name__ == "__main__":
    from tests.lab import needs

    if reason := needs.missing():
        sys.exit(f"There can be no lab here: {reason}.")
    make()
