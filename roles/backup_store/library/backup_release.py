#!/usr/bin/python
"""Let go of the backups that a store has taken."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_release
short_description: Let go of the backups that a store has taken
description:
  - Runs where backups are made. Removes those that the store says it has, with the very checksum of the manifest here;
    all others stay.
options:
  directory: {description: Where backups were made., type: path, required: true}
  stored: {description: Checksum by name of what the store has., type: dict, required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Let go of what is stored
  backup_release:
    directory: /var/backups/bazaruto
    stored: {bazaruto_20261123_154142: 3b1f…}
"""

RETURN = r"""
released:
  description: Names of the backups that are gone from here (in check mode, that would be).
  returned: success
  type: list
kept:
  description: Names of those that stay, since the store has not got them.
  returned: success
  type: list
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import storage
from ansible.module_utils.bazaruto_backup.refusal import Refused


def main() -> None:
    """Read the arguments, let go, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={"directory": {"type": "path", "required": True}, "stored": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    try:
        released, kept = release(module.params["directory"], module.params["stored"], check_mode=module.check_mode)
    except (Refused, OSError) as error:
        module.fail_json(msg=f"{error}.")
    before = "".join(f"{name}\n" for name in sorted([*released, *kept]))
    diff = {"before": before, "after": "".join(f"{name}\n" for name in sorted(kept))}
    module.exit_json(changed=bool(released), released=released, kept=kept, diff=diff)


def release(directory_name: str, stored: dict[str, str], *, check_mode: bool) -> tuple[list[str], list[str]]:
    """Which went, and which stay; the dump first, so that half a removal is never taken for a backup."""
    directory = storage.usable(directory_name, writable=True)
    released, kept = [], []
    with storage.storage_lock(directory, "letting go of what is stored", check_mode=check_mode):
        for backup in storage.backups(directory):
            if not backup.manifest or stored.get(backup.name) != backup.manifest["sha256"]:
                kept.append(backup.name)
                continue
            released.append(backup.name)
            for path in () if check_mode else (backup.path, *backup.companions):
                path.unlink(missing_ok=True)
        if released and not check_mode:
            storage.fsync(directory)
    return released, kept


if __name__ == "__main__":
    main()
