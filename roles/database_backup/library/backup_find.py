#!/usr/bin/python
"""Choose one backup from the storage, by name or by what it is for."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_find
short_description: Choose one backup from the storage
description:
  - Looks up a backup by name, or the newest one that will do; changes nothing.
  - The guide's own archives (C(NAME.sql.gz)) are found by their full name, for a restore only.
options:
  directory:
    description: Where backups lie.
    type: path
    required: true
  name:
    description: A backup's name, with or without C(.dump), or the full name of an archive C(NAME.sql.gz). No path.
    type: str
    default: ""
  purpose:
    description: >-
      V(restore) takes the newest verified backup when none is named, and refuses a failed one; V(drill) takes the
      newest, whatever is known of it.
    type: str
    choices: [restore, drill]
    required: true
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Choose the newest verified backup
  backup_find:
    directory: /var/backups/bazaruto
    purpose: restore
"""

RETURN = r"""
backup:
  description: name, path, kind (C(dump) or C(sql.gz)), status, created_at, size_bytes, sha256, rows.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup.choosing import choose
from ansible.module_utils.bazaruto_backup.refusal import Refused


def main() -> None:
    """Read the arguments, choose, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "default": ""},
            "purpose": {"type": "str", "required": True, "choices": ["restore", "drill"]},
        },
        supports_check_mode=True,
    )
    try:
        chosen = choose(module.params["directory"], module.params["name"], module.params["purpose"])
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=False, backup=chosen)


if __name__ == "__main__":
    main()
