"""Boot a real systemd host from the image, reach it over SSH, and take it away again.

`systemd-nspawn` on an overlay of the image, with an address of its own on a bridge. Where this machine has no plain
cgroup2 tree, the host gets a mount namespace that has one. A cgroup of its own holds all of a host: writing to its
`cgroup.kill` and `cgroup.freeze` is how a host is lost, frozen and removed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.hosts.image import IMAGE

BOOT_SECONDS = 30.0
# Runs in a mount namespace of its own: $1 the cgroup's name, the rest is the command.
ENTER_CGROUP = """
set -e
if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
  umount -R /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mkdir -p /sys/fs/cgroup/$1
echo $$ > /sys/fs/cgroup/$1/cgroup.procs
shift
exec "$@"
"""


class HostDidNotBootError(Exception):
    """The host did not answer over SSH in time; the text is what its console said."""


class Host:
    """One host, booted when the block is entered and gone when it is left."""

    def __init__(self, directory: Path, binds: Mapping[Path, str] | None = None) -> None:
        number = os.getpid()
        self.name = f"h{number}"
        self.bridge = f"bz{number}"
        self._network = f"10.{200 + number % 50}.{number // 50 % 250}"
        self.address = f"{self._network}.2"
        self.key = directory / "key"
        self.known_hosts = directory / "known_hosts"
        self._directory = directory
        self._root = directory / "root"
        self._console = directory / "console.log"
        self._binds = dict(binds or {})  # directory here → read-only place in the host
        self._cgroup_name = f"bazaruto-{self.name}"

    def __enter__(self) -> Host:
        try:
            self._make_network()
            self._make_root()
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._cgroup().exists():
            self.kill()
        subprocess.run(["umount", "--lazy", str(self._root)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)
        for path in (
            Path("/run/systemd/nspawn") / name for name in (f"unix-export/{self.name}", f"propagate/{self.name}")
        ):
            shutil.rmtree(path, ignore_errors=True)  # nspawn leaves them when it is killed

    def boot(self) -> float:
        """Start the host and wait until it answers over SSH: after how many seconds."""
        begun = time.monotonic()
        argv = [
            *("systemd-nspawn", "--quiet", "-D", str(self._root), "--boot", "--register=no", "--keep-unit"),
            *(f"--network-bridge={self.bridge}", "-M", self.name, f"--hostname={self.name}", "--resolv-conf=off"),
            *("--timezone=off", "--link-journal=no", "--system-call-filter=bpf", "--console=pipe"),
            *(f"--bind-ro={source}:{target}" for source, target in self._binds.items()),
        ]
        with self._console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", ENTER_CGROUP, "enter", self._cgroup_name, *argv],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        if not until(lambda: self.run("true", check=False).returncode == 0, BOOT_SECONDS):
            raise HostDidNotBootError(self._console.read_text(errors="replace")[-2000:])
        return time.monotonic() - begun

    def run(self, command: str, *, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host, over SSH, as root."""
        argv = ["ssh", *shlex.split(self.ssh_options), "-o", "ConnectTimeout=2", f"root@{self.address}", command]
        return subprocess.run(argv, capture_output=True, text=True, check=check, timeout=seconds)

    def units(self, pattern: str) -> list[str]:
        """The units that run on the host, by a pattern of their names."""
        said = self.run(f"systemctl list-units --plain --no-legend --full {shlex.quote(pattern)}").stdout
        return [line.split()[0] for line in said.splitlines()]

    @property
    def ssh_options(self) -> str:
        """How SSH reaches the host: its own key, and a host key that is known."""
        return f"-i {self.key} -o IdentitiesOnly=yes -o UserKnownHostsFile={self.known_hosts} -o BatchMode=yes"

    def kill(self) -> None:
        """The host is gone at once, as by a loss of power."""
        cgroup = self._cgroup()
        (cgroup / "cgroup.kill").write_text("1")
        until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), 10)
        self._nspawn.wait()
        for directory, _, _ in os.walk(cgroup, topdown=False):
            Path(directory).rmdir()

    def cut(self) -> None:
        """No packet reaches the host any more."""
        self._ip("link", "set", f"vb-{self.name}", "down")

    def join(self) -> None:
        """Packets reach it again."""
        self._ip("link", "set", f"vb-{self.name}", "up")

    def freeze(self, frozen: bool) -> None:
        """Nothing on the host runs any more: TCP connects, nobody answers."""
        (self._cgroup() / "cgroup.freeze").write_text("1" if frozen else "0")

    def _cgroup(self) -> Path:
        base = Path("/sys/fs/cgroup")
        return (base / "unified" if (base / "unified").is_dir() else base) / self._cgroup_name

    def _make_network(self) -> None:
        self._ip("link", "add", self.bridge, "type", "bridge")
        self._ip("address", "add", f"{self._network}.1/24", "dev", self.bridge)
        self._ip("link", "set", self.bridge, "up")

    def _make_root(self) -> None:
        upper, work = self._directory / "upper", self._directory / "work"
        for path in (upper, work, self._root):
            path.mkdir(parents=True)
        layers = f"lowerdir={IMAGE},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(self._root)], check=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        ssh = self._root / "root/.ssh"
        ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
        (ssh / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        (self._root / "etc/hostname").write_text(f"{self.name}\n")
        (self._root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        host_key = (self._root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        self.known_hosts.write_text(f"{self.address},{self.name} {host_key[0]} {host_key[1]}\n")
        network = self._root / "etc/systemd/network/10-host0.network"
        network.write_text(f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\nLinkLocalAddressing=no\n")

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True)


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is true; False when the time is over."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
