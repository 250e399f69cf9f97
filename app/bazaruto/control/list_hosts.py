"""A program that prints, as JSON, which hosts a playbook would touch: `python -m … INVENTORY PLAYBOOK [LIMIT]`.

Ansible itself answers, as in `ansible-playbook --list-hosts`, in a process of its own: inventories may run plugins.
Its answer is {"hosts": […]}, {"unmatched": sentence} for a limit that matches nothing, or {"broken": sentence}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class _Unmatched(Exception):
    """A part of the limit matches no host of the inventory."""


def main(arguments: list[str]) -> int:
    """Answer on the standard output; Ansible's warnings go to the standard error."""
    from ansible.errors import AnsibleError

    inventory, playbook, *limit = arguments
    try:
        answer: dict[str, Any] = {"hosts": hosts(inventory, playbook, limit[0] if limit else None)}
    except _Unmatched as error:
        answer = {"unmatched": str(error)}
    except AnsibleError as error:
        answer = {"broken": " ".join(str(error).split())}
    sys.stdout.write(json.dumps(answer))
    return 0


def hosts(source: str, playbook: str, limit: str | None) -> list[str]:
    """The hosts of the playbook's plays, as far as the limit lets them."""
    from ansible import constants
    from ansible.cli import CLI
    from ansible.cli.playbook import PlaybookCLI
    from ansible.plugins.loader import add_all_plugin_dirs

    command = PlaybookCLI(["ansible-playbook", "-i", source, playbook])
    CLI.run(command)  # what its own `run` begins with
    add_all_plugin_dirs(str(Path(playbook).parent))
    loader, inventory, variables = command._play_prereqs()
    if limit is not None:
        # A typing error in a limit spares or touches the wrong hosts; Ansible would only warn.
        constants.HOST_PATTERN_MISMATCH = "error"
        _limit(inventory, limit, constants.LOCALHOST)
    constants.HOST_PATTERN_MISMATCH = "ignore"  # a play without hosts is the play's affair
    return sorted(
        {host.name for pattern in _patterns(playbook, variables, loader) for host in inventory.get_hosts(pattern)}
    )


def _limit(inventory: Any, limit: str, localhost: Iterable[str]) -> None:
    from ansible.errors import AnsibleError

    inventory.subset(limit)
    try:
        matched = inventory.get_hosts("all")
    except AnsibleError as error:
        raise _Unmatched(str(error).rpartition(": ")[2]) from error
    if not matched and limit not in localhost:  # which is there without being in any inventory
        raise _Unmatched(limit)


def _patterns(playbook: str, variables: Any, loader: Any) -> list[Any]:
    """What each play says of its hosts; where that depends on variables, which are not known here: all."""
    from ansible.errors import AnsibleError
    from ansible.playbook import Playbook

    loader.set_basedir(str(Path(playbook).parent))
    try:
        plays = Playbook.load(playbook, variable_manager=variables, loader=loader).get_plays()
    except AnsibleError as error:
        sys.stderr.write(f"{error}\n")
        return ["all"]  # the play will say what is wrong with it
    return ["all" if "{{" in str(play.hosts) or "{%" in str(play.hosts) else play.hosts for play in plays]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
