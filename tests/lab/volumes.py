"""A host's small disk: a tmpfs of this machine that outlives the host's boots, and harms nobody when it is full."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

from tests.lab.plan import Volume

LEFT_BYTES = 64 * 1024  # what a full disk still has


@dataclasses.dataclass(frozen=True)
class Disk:
    """A volume of one host, mounted here and bound into it."""

    volume: Volume
    directory: Path

    def is_mounted(self) -> bool:
        return self.directory.is_mount()

    def mount(self) -> None:
        """Make it, empty, unless it is there."""
        if not self.is_mounted():
            self.directory.mkdir(parents=True, exist_ok=True)
            options = f"mode=755,size={self.volume.size_mib}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "bazaruto-lab", self.directory], check=True)

    def unmount(self) -> None:
        """Its data is gone."""
        while self.is_mounted():
            subprocess.run(["umount", "--lazy", self.directory], check=True)

    def fill(self) -> None:
        """From now on there is no space on it."""
        used = os.statvfs(self.directory)
        bytes_ = (used.f_blocks - used.f_bfree) * used.f_frsize + LEFT_BYTES
        self._resize(str(bytes_))

    def is_full(self) -> bool:
        """Whether it was filled."""
        return self.is_mounted() and self._size() < self.volume.size_mib << 20

    def free(self) -> None:
        """It has its size again."""
        self._resize(f"{self.volume.size_mib}m")

    def _size(self) -> int:
        found = os.statvfs(self.directory)
        return found.f_blocks * found.f_frsize

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.directory], check=True)
