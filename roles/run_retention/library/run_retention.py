#!/usr/bin/python
"""Let old runs of a control node and their events go, by the control plane's own code."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run_retention
short_description: Let old runs of a control node and their events go
description:
  - Calls the control plane's own code on its node, which knows what a run is, and what must not be removed.
  - How the control database is reached stands in the settings and in files they name; no password passes here.
options:
  rules:
    description: succeeded_days, other_days, events_days, keep_newest, keep_at_most.
    type: dict
    required: true
  operations:
    description: The same by operation, for those that have rules of their own.
    type: dict
    default: {}
  home:
    description: The home of the control node.
    type: path
    required: true
  settings_file:
    description: Its settings, where they stand in a file.
    type: path
    default: ""
  backup_directories:
    description: Where manifests and proofs name runs; none for the two of the settings.
    type: list
    elements: path
    default: []
  python:
    description: The Python that the control plane is installed for.
    type: path
    required: true
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Let old runs go
  run_retention:
    rules: {succeeded_days: 90, other_days: 365, events_days: 30, keep_newest: 10, keep_at_most: 0}
    operations: {diagnose: {succeeded_days: 7}}
    home: /var/lib/bazaruto
    settings_file: /etc/bazaruto/control.yml
    python: /opt/bazaruto/control/bin/python
"""

RETURN = r"""
retained:
  description: What went (in check mode, would), by operation too, and what had to stay; bytes before and after.
  returned: success
  type: dict
"""

import json
import os
import subprocess

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Read the arguments, call the program, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "rules": {"type": "dict", "required": True},
            "operations": {"type": "dict", "default": {}},
            "home": {"type": "path", "required": True},
            "settings_file": {"type": "path", "default": ""},
            "backup_directories": {"type": "list", "elements": "path", "default": []},
            "python": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    asked = {name: options[name] for name in ("rules", "operations", "backup_directories")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BAZARUTO_")}
    environment = {**kept, "BAZARUTO_HOME": options["home"], "BAZARUTO_CONFIG": options["settings_file"]}
    try:
        done = subprocess.run(
            [options["python"], "-m", "bazaruto.control.retention"],
            input=json.dumps({**asked, "check": module.check_mode}),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
    except OSError as error:
        module.fail_json(msg=f"{options['python']} cannot be run ({error.strerror}): correct run_retention_python.")
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-1000:]
        module.fail_json(msg=said or f"It ended with code {done.returncode}, and said nothing.")
    retained = json.loads(done.stdout)
    module.exit_json(changed=retained["changed"], retained=retained)


if __name__ == "__main__":
    main()
