"""One host of a lab: made, booted, asked, and lost."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import uuid
from pathlib import Path

from bazaruto import processes
from tests.lab import image, plan
from tests.lab.cgroups import Cgroup
from tests.lab.claims import Claim
from tests.lab.errors import LabError
from tests.lab.volumes import Disk
from tests.lab.waiting import becomes_true, until

BOOT_SECONDS = 60.0
STOP_SECONDS = 90.0
KEEPER = Path(__file__).with_name("keeper.sh")


class Host:
    """One of `plan.HOSTS`, in one lab."""

    def __init__(self, claim: Claim, name: str) -> None:
        self.name = name
        self.address = plan.address(claim.network, plan.HOSTS[name].number)
        self.link = f"vb-{claim.id}-{name}"  # this machine's end of its cable; 15 characters at most
        self.console = claim.store / name / "console.log"
        self.disks = [Disk(volume, claim.store / name / volume.name) for volume in plan.HOSTS[name].volumes]
        self._claim = claim
        self._directory = claim.store / name
        self._made = self._directory / "made"  # written last
        self._cgroup = Cgroup(f"bazaruto-lab-{claim.id}-{name}")

    @property
    def ssh_options(self) -> str:
        """How SSH reaches it as anybody who has its key authorized: that key, and host keys that are known."""
        files = (("IdentityFile", "key"), ("UserKnownHostsFile", "known_hosts"))
        words = [f'{option}="{self._claim.directory / name}"' for option, name in files]
        words += ["IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "BatchMode=yes"]
        return shlex.join(word for option in words for word in ("-o", option))

    def run(self, command: str, *, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell command on it as root, over SSH."""
        words = self.ssh("sudo", "sh", "-c", shlex.quote(command))
        return subprocess.run(words, capture_output=True, text=True, check=check, timeout=seconds)

    def ssh(self, *words: str) -> list[str]:
        """The command line that runs words on it as its administrator."""
        return ["ssh", "-F", str(self._claim.directory / "ssh_config"), self.name, *words]

    def copy(self, source: Path, target: str, *options: str) -> None:
        """Put what is in a directory here into one there, as root's, with tar's options for it."""
        packed = subprocess.run(["tar", "-C", source, "-cf", "-", "."], capture_output=True, check=True).stdout
        words = ["mkdir", "-p", target, "&&", "sudo", "tar", "-C", target, "--no-same-owner", *options, "-xf", "-"]
        subprocess.run(self.ssh("sudo", *words), input=packed, capture_output=True, check=True, timeout=60)

    def disk(self, name: str) -> Disk:
        """One of its small disks, by its name."""
        if found := next((disk for disk in self.disks if disk.volume.name == name), None):
            return found
        known = ", ".join(disk.volume.name for disk in self.disks) or "none"
        raise LabError(f"{self.name} has no small disk {name}; it has {known}.")

    def units(self, pattern: str) -> list[str]:
        """The units that it runs, by a pattern of their names."""
        said = self.run(f"systemctl list-units --plain --no-legend --full {shlex.quote(pattern)}").stdout
        return [line.split()[0] for line in said.splitlines()]

    def is_frozen(self) -> bool:
        """Whether nothing on it runs though it is there."""
        return self._cgroup.is_frozen()

    def is_cut(self) -> bool:
        """Whether its cable is off."""
        flags = Path("/sys/class/net", self.link, "flags")
        return flags.exists() and not int(flags.read_text(encoding="ascii"), 16) & 1

    def is_kept(self) -> bool:
        """Whether it runs, with a keeper that boots it again."""
        return self._cgroup.populated("keeper") and bool(self.pids("guest/supervisor"))

    def runs(self) -> bool:
        """Whether any process of it is there."""
        return self._cgroup.populated()

    def answers(self) -> bool:
        """Whether its administrator can log in."""
        try:
            with socket.create_connection((self.address, 22), timeout=0.5) as connection:
                connection.settimeout(1)
                if not connection.recv(4):
                    return False
        except OSError:
            return False
        return self.run("true", check=False).returncode == 0

    def start(self) -> None:
        """Boot it unless it runs, and return when it answers; what it had written is still there."""
        if not self.is_kept():
            self._cgroup.kill()
            self._prepare()
            self._spawn()
        gone = "its keeper has ended"
        if not becomes_true(lambda: self.answers() or not self._cgroup.populated(), BOOT_SECONDS):
            gone = f"it does not answer after {BOOT_SECONDS:g} s"
        elif self._cgroup.populated():
            return
        said = self.console.read_text(encoding="utf-8", errors="replace")[-1000:]
        raise LabError(f"{self.name} did not boot: {gone}. The end of {self.console}:\n{said}")

    def stop(self) -> None:
        """Power it off cleanly."""
        for pid in self.pids("guest/supervisor"):
            if identity := processes.identify(pid):
                processes.send(identity, signal.SIGTERM)
        until(lambda: not self._cgroup.populated(), STOP_SECONDS, f"{self.name} has not powered off")
        self._cgroup.kill()

    def kill(self) -> None:
        """It is gone at once, as by a loss of power."""
        self._cgroup.kill()

    def freeze(self, frozen: bool = True) -> None:
        """Nothing on it runs any more: TCP connects, nobody answers. Or it runs on."""
        self._cgroup.freeze(frozen)

    def remove(self) -> None:
        """Leave nothing of it."""
        self._cgroup.kill()
        for disk in self.disks:
            disk.unmount()
        if self._directory.exists():
            shutil.rmtree(self._directory)

    def leader(self) -> int | None:
        """Its systemd, as this machine counts processes."""
        return next(iter(self.pids("guest/payload/init.scope")), None)

    def pids(self, part: str) -> list[int]:
        """The processes of a part of its cgroup: `keeper`, `guest/supervisor` (nspawn), and below `guest/payload`."""
        return self._cgroup.processes(part)

    def _spawn(self) -> None:
        root = self._directory / "root"
        nspawn = [
            *("systemd-nspawn", "--quiet", "-D", str(root), "--boot", "--register=no", "--keep-unit"),
            *(f"--network-bridge=bz-{self._claim.id}", "-M", self.link.removeprefix("vb-"), f"--hostname={self.name}"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--system-call-filter=bpf"),
            *("--console=pipe", *(f"--bind={disk.directory}:{disk.volume.path}" for disk in self.disks)),
        ]
        keeper = ["sh", str(KEEPER), self._cgroup.name, str(self._claim.image), str(self._directory), self.link]
        processes.spawn_daemon(
            self._cgroup.enter(["unshare", "-m", *keeper, *nspawn]),
            env={"PATH": os.environ["PATH"]},
            log_path=self.console,
            cwd=Path("/"),
        )
        begun = becomes_true(lambda: bool(self.pids("guest/supervisor")), BOOT_SECONDS)
        if not begun:
            raise LabError(f"{self.name} did not boot: {self.console.read_text(encoding='utf-8')[-1000:]}")

    def _prepare(self) -> None:
        """Its disks, and what a provider writes into a new machine."""
        if self._made.exists() and not all(disk.is_mounted() for disk in self.disks):
            self.remove()  # its data is gone: the rest of it would be half a host
        for disk in self.disks:
            disk.mount()
        if self._made.exists():
            return
        for name in ("upper", "work", "root"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        public_key = (self._claim.directory / "key.pub").read_text(encoding="utf-8")
        host_key = self._claim.store / "host_keys" / self.name
        network = f"[Match]\nName=host0\n[Network]\nAddress={self.address}/{self._claim.network.prefixlen}\n"
        self._place("etc/hostname", f"{self.name}\n")
        self._place("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        self._place("etc/machine-id", f"{uuid.uuid4().hex}\n")
        self._place("etc/systemd/network/10-host0.network", f"{network}LinkLocalAddressing=no\n")
        self._place("etc/ssh/ssh_host_ed25519_key", host_key.read_text(encoding="utf-8"), mode=0o600)
        self._place("etc/ssh/ssh_host_ed25519_key.pub", host_key.with_suffix(".pub").read_text(encoding="utf-8"))
        self._place(f"home/{image.USER}/.ssh/authorized_keys", public_key, mode=0o600)
        self._made.touch()

    def _place(self, name: str, content: str, mode: int = 0o644) -> None:
        """Write one file over the image; directories are as in the image, and new ones as the one that they are in."""
        path, lower = self._directory / "upper" / name, self._claim.image
        for parent in reversed(Path(name).parents):
            target, source = self._directory / "upper" / parent, lower / parent
            target.mkdir(exist_ok=True)
            like = source.stat() if source.exists() else target.parent.stat()
            target.chmod(like.st_mode if source.exists() else 0o700)
            os.chown(target, like.st_uid, like.st_gid)
        path.write_text(content, encoding="utf-8")
        path.chmod(mode)
        os.chown(path, path.parent.stat().st_uid, path.parent.stat().st_gid)
