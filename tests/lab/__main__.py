"""The lab's hosts, and what can go wrong with them: `python -m tests.lab COMMAND`; docs/lab.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab import clock, faults, needs
from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.lab import Lab, directory_of

PYTHON = "python -m tests.lab"


def up(lab: Lab, hosts: list[str]) -> None:
    """boot the hosts, or only these; what died is mended, faults are taken away"""
    if reason := needs.missing():
        raise LabError(f"There can be no lab here: {reason}.")
    begun = time.monotonic()
    raised = lab.up(hosts)
    print(f"Lab {lab.directory.name}: {len(raised)} hosts answer after {time.monotonic() - begun:.1f} s.")
    for host in raised:
        print(f"  {host.name:7} {host.address}")
    bin_ = Path(sys.executable).parent
    shown = os.path.relpath(bin_) if bin_.is_relative_to(Path.cwd()) else str(bin_)
    print(f"Enter one:      {shown}/{PYTHON} enter {raised[0].name}")
    print(f"Build the site: {shown}/ansible-playbook -i inventories/lab playbooks/site.yml")
    print("Remove all:     make lab-down")


def down(lab: Lab) -> None:
    """remove all of it: processes, mounts, links, files"""
    lab.down()
    print(f"Nothing of the lab {lab.directory.name} is left.")


def status(lab: Lab) -> None:
    """say how each host is"""
    for host in lab.hosts():
        print(f"{host.name:7} {host.address:15} {faults.state(host)}")


def enter(lab: Lab, host: str, words: list[str]) -> None:
    """a shell on a host, or a command there"""
    argv = lab.host(host).ssh(*words)
    os.execvp(argv[0], argv)


# Of one host: what it does, and the words after the host's name.
ON_HOST: dict[str, tuple[str, Callable[..., None], dict[str, dict[str, Any]]]] = {
    "start": ("boot it; what it had written is still there", Host.start, {}),
    "stop": ("power it off cleanly", Host.stop, {}),
    "kill": ("end it at once, as a loss of power does", Host.kill, {}),
    "cut": ("let no packet reach it, until join or its next boot", faults.cut, {}),
    "join": ("let packets reach it again", faults.join, {}),
    "freeze": ("let nothing on it run, or nothing of one unit", faults.freeze, {"unit": {"nargs": "?"}}),
    "thaw": ("let it run on", faults.thaw, {"unit": {"nargs": "?"}}),
    "fill": ("leave no space on one of its small disks", faults.fill, {"disk": {}}),
    "free": ("give the disk its size again", faults.free, {"disk": {}}),
    "slow": (
        "let so much pass its network in a second, each way, until fast or its next boot",
        faults.slow,
        {"kilobits_per_second": {"type": int}},
    ),
    "fast": ("give its network its speed again", faults.fast, {}),
    "clock": (
        "let a unit's processes see a time so many seconds later, or earlier; 0: the true one",
        clock.shift,
        {"unit": {}, "seconds": {"type": int}},
    ),
}


def main() -> None:
    """Do what was asked, or say in one sentence why not."""
    given = vars(_parser().parse_args())
    do, name = given.pop("do"), given.pop("on_host", None)
    if reason := needs.root():
        sys.exit(f"There can be no lab here: {reason}.")
    try:
        lab = Lab(directory_of(), print)
        do(lab.host(name) if name else lab, **given)
    except LabError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode() if isinstance(error.stderr, bytes) else error.stderr
        sys.exit(f"{' '.join(map(str, error.cmd))} failed: {(said or 'see above').strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PYTHON, description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for do in (up, down, status, enter):
        command = commands.add_parser(do.__name__, help=do.__doc__)
        command.set_defaults(do=do)
        if do is up:
            command.add_argument("hosts", nargs="*")
        if do is enter:
            command.add_argument("host")
            command.add_argument("words", nargs=argparse.REMAINDER)
    for name, (text, do_on_host, words) in ON_HOST.items():
        command = commands.add_parser(name, help=text)
        command.set_defaults(do=do_on_host)
        command.add_argument("on_host", metavar="host")
        for word, options in words.items():
            command.add_argument(word, **options)
    return parser


if __name__ == "__main__":
    main()
