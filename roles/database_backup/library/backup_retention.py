#!/usr/bin/python
"""Let old backups go, and never the last good one."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_retention
short_description: Remove old backups, and never the last good one
description:
  - Removes C(bazaruto_….dump) older than O(days) together with manifest, roles and proof.
  - Never removed are the newest verified backup, the O(keep) newest that did not fail, and one that a restore or
    drill reads at this moment.
options:
  directory:
    description: Where backups lie.
    type: path
    required: true
  days:
    description: Age in days from which a backup may go.
    type: int
    default: 30
  keep:
    description: How many backups stay whatever their age.
    type: int
    default: 3
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Let old backups go
  backup_retention:
    directory: /var/backups/bazaruto
    days: 30
"""

RETURN = r"""
removed:
  description: Names of the backups that are gone (in check mode, that would be).
  returned: success
  type: list
kept_though_old:
  description: Names of backups older than O(days) that stayed, each with the reason.
  returned: success
  type: dict
"""

import datetime
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import storage
from ansible.module_utils.bazaruto_backup.refusal import Refused


def main() -> None:
    """Read the arguments, remove what may go, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "days": {"type": "int", "default": 30},
            "keep": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    days, keep = module.params["days"], module.params["keep"]
    if days < 1 or keep < 1:
        module.fail_json(msg=f"days ({days}) and keep ({keep}) must be at least 1.")
    try:
        directory = storage.usable(module.params["directory"], writable=True)
        with storage.storage_lock(directory, "retention of old backups", check_mode=module.check_mode):
            found = storage.backups(directory)
            now = datetime.datetime.now(datetime.UTC)
            removable, kept = decide(found, now=now, days=days, keep=keep)
            if not module.check_mode:
                for backup in removable:
                    _remove(backup, directory)
    except (Refused, OSError) as error:
        module.fail_json(msg=f"{error}.")
    gone = [backup.name for backup in removable]
    before = "".join(f"{backup.name}\n" for backup in found)
    after = "".join(f"{backup.name}\n" for backup in found if backup not in removable)
    module.exit_json(changed=bool(gone), removed=gone, kept_though_old=kept, diff={"before": before, "after": after})


def decide(
    found: list[storage.Backup], *, now: datetime.datetime, days: int, keep: int
) -> tuple[list[storage.Backup], dict[str, str]]:
    """Which backups (given newest first) may go, and why old ones stay."""
    good = [backup for backup in found if backup.status in {"verified", "unverified"}]
    newest = {backup.name for backup in good[:keep]}
    verified = next((backup.name for backup in found if backup.status == "verified"), None)
    removable, kept = [], {}
    for backup in found:
        if now - backup.created_at < datetime.timedelta(days=days):
            continue
        if backup.name == verified:
            kept[backup.name] = "the newest verified one"
        elif backup.name in newest:
            kept[backup.name] = f"one of the {keep} newest"
        elif storage.in_use(backup.path):
            kept[backup.name] = "a restore or drill reads it"
        else:
            removable.append(backup)
    return removable, kept


def _remove(backup: storage.Backup, directory: Path) -> None:
    """The dump first: what is left of a removal that was killed is then shown as missing, never as a backup."""
    for path in (backup.path, *backup.companions):
        path.unlink(missing_ok=True)
    storage.fsync(directory)


if __name__ == "__main__":
    main()
