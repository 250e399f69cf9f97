"""A wrong wall clock for single units of a host, by a preload; the kernel's clock is shared, and left alone."""

from __future__ import annotations

import shlex
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.waiting import becomes_true

SOURCE = Path(__file__).parents[1] / "faults" / "clock_shift.c"
PLACE = "/usr/local/lib/bazaruto-lab"
LIBRARY = "clock_shift.so"
TAKEN_SECONDS = 5.0


def shift(host: Host, unit: str, seconds: int) -> None:
    """Let a unit's processes see another time; 0 gives the true one back. The first and the last time restart it."""
    unit = unit if unit.endswith(".service") else f"{unit}.service"
    if unit.startswith("postgresql"):
        raise LabError(f"{unit} keeps the true time: a database that has seen the future cannot go back.")
    preloaded = host.run(f"test -e {_drop_in(unit)}", check=False).returncode == 0
    if seconds == 0:
        if preloaded:
            _remove(host, unit)
        return
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # as it is here, it will be there, and the unit's user reads it
        Path(directory, unit).write_bytes(struct.pack("l", seconds))
        if not preloaded:
            _build(Path(directory, LIBRARY))
        # Over the file, not in its place: running processes have mapped it.
        host.copy(Path(directory), PLACE, "--overwrite")
    if not preloaded:
        _preload(host, unit)


def _preload(host: Host, unit: str) -> None:
    lines = f"[Service]\nEnvironment=LD_PRELOAD={PLACE}/{LIBRARY} CLOCK_SHIFT_FILE={PLACE}/{unit}\n"
    path = _drop_in(unit)
    host.run(f"mkdir -p $(dirname {path}) && printf %s {shlex.quote(lines)} >{path} && systemctl daemon-reload")
    host.run(f"systemctl restart {unit}")
    maps = f"grep -q {LIBRARY} /proc/$(systemctl show -P MainPID {unit})/maps"
    # A unit is started before its program is: it loads the library a little later.
    if not becomes_true(lambda: host.run(maps, check=False).returncode == 0, TAKEN_SECONDS):
        _remove(host, unit)
        raise LabError(f"{unit} on {host.name} does not take another clock: programs in Go, for one, load no library.")


def _remove(host: Host, unit: str) -> None:
    path = _drop_in(unit)
    host.run(f"rm -f {path} {PLACE}/{unit} && rmdir --ignore-fail-on-non-empty $(dirname {path})")
    host.run(f"systemctl daemon-reload && systemctl restart {unit}")


def _drop_in(unit: str) -> str:
    return f"/etc/systemd/system/{unit}.d/lab-clock.conf"


def _build(library: Path) -> None:
    if not shutil.which("cc"):
        raise LabError("A clock is shifted by a small library that is built here: apt-get install gcc libc6-dev.")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
