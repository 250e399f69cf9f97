#!/usr/bin/python
"""Lay one backup of the store out on a host that restores or proves it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_stage
short_description: Lay one backup of the store out on another host
description:
  - Runs where backups are kept. Makes a directory of the other host hold one backup with all that belongs to it, its
    proof too, and nothing else; by rsync over SSH, so that what is there already is not sent again.
  - Whoever reads it there holds it against its manifest once more.
options:
  directory: {description: The store., type: path, required: true}
  name:
    description: The backup's name, or that of an archive C(NAME.sql.gz); empty to leave nothing there.
    type: str
    required: true
  into: {description: "The directory, below the one the account is restricted to.", type: str, default: staged}
  host: {description: "The other host's name, for messages.", type: str, required: true}
  address: {description: Where it is reached., type: str, required: true}
  user: {description: "The account there whose key is restricted to the backups' directory.", type: str, required: true}
  key: {description: "The private key's file.", type: path, required: true}
  known_hosts: {description: The file of known host keys., type: path, required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
requirements: ["rsync, here and there", "rrsync as forced command there"]
"""

EXAMPLES = r"""
- name: Lay the backup out on mon1
  backup_stage:
    directory: /var/backups/bazaruto
    name: bazaruto_20261123_154142
    host: mon1
    address: 192.0.2.50
    user: postgres
    key: /var/lib/bazaruto-backup/.ssh/id_ed25519
    known_hosts: /var/lib/bazaruto-backup/.ssh/known_hosts
"""

RETURN = r"""
staged:
  description: What was sent or removed, as rsync says it (in check mode, would be).
  returned: success
  type: list
"""

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import programs, storage
from ansible.module_utils.bazaruto_backup.refusal import Refused
from ansible.module_utils.bazaruto_store.link import LINK, Link


def main() -> None:
    """Read the arguments, lay it out, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "into": {"type": "str", "default": "staged"},
            **LINK,
        },
        supports_check_mode=True,
    )
    programs.end_with_a_tidy_up()
    try:
        staged = stage(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"the store {module.params['directory']} could not be read: {error}.")
    header = f"{module.params['host']}:{module.params['into']}"
    diff = {"before": "", "after": "".join(f"{line}\n" for line in staged), "after_header": header}
    module.exit_json(changed=bool(staged), staged=staged, diff={**diff, "before_header": header})


def stage(options: dict[str, Any], *, check_mode: bool) -> list[str]:
    """Send it, while retention cannot let it go."""
    store = storage.usable(options["directory"], writable=False)
    names = belonging(store, options["name"]) if options["name"] else []
    with storage.opened_for_use(store / names[0]) if names else contextlib.nullcontext():
        return Link(options).stage(names, store, options["into"], check_mode=check_mode)


def belonging(store: Path, name: str) -> list[str]:
    """The backup's own file first, then what lies beside it."""
    if storage.IMPORT_NAME.fullmatch(name):
        return [name]
    backup = storage.read(store, name)
    return [str(path.relative_to(store)) for path in (backup.path, *backup.companions) if path.exists()]


if __name__ == "__main__":
    main()
