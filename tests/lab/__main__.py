"""`python -m tests.lab`: the lab's hosts, and what can go wrong with them, for people."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.lab import needs
from tests.lab.errors import LabError
from tests.lab.lab import Lab, directory_of


def main() -> None:
    """Do what was asked, or say in one sentence why not."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="boot the hosts, or only these; mend what died")
    up.add_argument("hosts", nargs="*")
    commands.add_parser("down", help="remove all of it")
    enter = commands.add_parser("enter", help="a shell on a host, or a command")
    enter.add_argument("host")
    enter.add_argument("words", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if reason := needs.missing():
        sys.exit(f"There can be no lab here: {reason}.")
    lab = Lab(directory_of(), print)
    try:
        if given.command == "up":
            begun = time.monotonic()
            hosts = lab.up(given.hosts)
            print(f"{len(hosts)} hosts are up after {time.monotonic() - begun:.1f} s:")
            for host in hosts:
                print(f"  {host.name:7} {host.address}")
        elif given.command == "down":
            lab.down()
        else:
            words = lab.host(given.host).ssh(*given.words)
            os.execvp(words[0], words)
    except LabError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
