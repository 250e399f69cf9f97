#!/usr/bin/python
"""Keep beside a backup what a drill on another host has found."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_proof
short_description: Keep beside a backup what a drill on another host has found
description:
  - Runs where backups are kept, and writes C(proofs/NAME.json), which makes the backup verified, or failed.
  - A proof of other bytes than those that are kept here is refused.
options:
  directory: {description: The store., type: path, required: true}
  proof: {description: "What the module restore_drill has found.", type: dict, required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Keep the proof
  backup_proof:
    directory: /var/backups/bazaruto
    proof: "{{ hostvars.mon1.restore_drill_proof }}"
"""

RETURN = r"""
status:
  description: What the backup is now (in check mode, would be).
  returned: success
  type: str
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import storage
from ansible.module_utils.bazaruto_backup.refusal import Refused

LISTED_MODE = 0o640  # the control plane lists it


def main() -> None:
    """Read the arguments, keep the proof, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={"directory": {"type": "path", "required": True}, "proof": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    proof = module.params["proof"]
    try:
        before, after = keep(module.params["directory"], proof, check_mode=module.check_mode)
    except (Refused, OSError) as error:
        module.fail_json(msg=f"{error}.")
    header = f"{proof['backup']}: "
    module.exit_json(changed=True, status=after, diff={"before": f"{header}{before}\n", "after": f"{header}{after}\n"})


def keep(directory: str, proof: dict[str, Any], *, check_mode: bool) -> tuple[str, str]:
    """What the backup was, and what it is by this proof."""
    store = storage.usable(directory, writable=True)
    name = str(proof.get("backup"))
    if not storage.NAME.fullmatch(name):
        raise Refused(f"{name!r} is not the name of a backup: give what the module restore_drill has returned")
    backup = storage.read(store, name)
    sha256 = (backup.manifest or {}).get("sha256")
    if backup.status == "missing" or proof.get("sha256") != sha256:
        raise Refused(
            f"the proof is of a file with the checksum {proof.get('sha256')}, but {name} in {store} has {sha256}: "
            "drill it again"
        )
    if check_mode:
        return backup.status, str(proof["status"])
    path = storage.proof_path(store, name)
    storage.write_private(path, json.dumps(proof, indent=1, sort_keys=True) + "\n")
    path.chmod(LISTED_MODE)
    return backup.status, storage.read(store, name).status


if __name__ == "__main__":
    main()
