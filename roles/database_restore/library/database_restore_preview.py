#!/usr/bin/python
"""Say what a restore, or its undo, would lose."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: database_restore_preview
short_description: Choose the backup, and say what replacing the live database would lose
description:
  - Chooses the backup of a restore, reads how old it is and counts the rows of the live database that are newer;
    changes nothing.
options:
  connection:
    description: How PostgreSQL is reached, as a superuser.
    type: dict
    required: true
    suboptions:
      host: {description: Socket directory or host name., type: str, default: /var/run/postgresql}
      port: {description: Port., type: int, default: 5432}
      user: {description: Superuser., type: str, default: postgres}
      passfile: {description: libpq's password file; empty for peer authentication., type: str, default: ""}
      bin_directory: {description: Directory of PostgreSQL's programs; empty for PATH., type: str, default: ""}
  database:
    description: The live database.
    type: str
    required: true
  run:
    description: "The run, C(YYYYmmdd-HHMMSS) or C(YYYYmmdd-HHMMSS-xxxxxx): it becomes part of database names."
    type: str
    required: true
  of:
    description: What is to be previewed.
    type: str
    choices: [restore, undo]
    default: restore
  directory:
    description: Where backups lie; needed for a restore.
    type: path
  backup:
    description: >-
      For a restore, the backup's name, or the full name of an archive C(NAME.sql.gz), without a path; empty for the
      newest verified one.
    type: str
    default: ""
  found:
    description: What C(backup_find) said of the backup on the host where it was chosen; it will lie in O(directory).
    type: dict
    default: {}
  keep_writes:
    description: Whether the restore would let writes go on.
    type: bool
    default: false
  keep_previous:
    description: How many databases that earlier restores replaced stay.
    type: int
    default: 1
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
requirements: ["psycopg >= 3.1"]
"""

EXAMPLES = r"""
- name: Say what the restore would lose
  database_restore_preview:
    connection: {host: /var/run/postgresql}
    database: bazaruto
    run: 20261123-154142
    directory: /var/backups/bazaruto
    backup: bazaruto_20261123_120000
"""

RETURN = r"""
backup:
  description: The chosen backup, as C(backup_find) returns it.
  returned: for a restore
  type: dict
lines:
  description: Sentences for a person.
  returned: success
  type: list
newer_rows:
  description: Rows a table of the live database that are newer; null when there is nothing to compare.
  returned: success
  type: dict
previous:
  description: Databases that earlier restores replaced, the newest first.
  returned: success
  type: list
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import programs
from ansible.module_utils.bazaruto_backup.connection import CONNECTION, require_psycopg
from ansible.module_utils.bazaruto_backup.refusal import Refused
from ansible.module_utils.bazaruto_restore import preview

try:
    import psycopg
except ImportError:
    # connection.require_psycopg has the sentence for this
    psycopg = None


def main() -> None:
    """Read the arguments, look, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "connection": CONNECTION,
            "database": {"type": "str", "required": True},
            "run": {"type": "str", "required": True},
            "of": {"type": "str", "choices": ["restore", "undo"], "default": "restore"},
            "directory": {"type": "path"},
            "backup": {"type": "str", "default": ""},
            "found": {"type": "dict", "default": {}},
            "keep_writes": {"type": "bool", "default": False},
            "keep_previous": {"type": "int", "default": 1},
        },
        required_if=[("of", "restore", ["directory"])],
        supports_check_mode=True,
    )
    require_psycopg(module)
    try:
        look = preview.of_undo if module.params["of"] == "undo" else preview.of_restore
        answer = look(module.params)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except psycopg.Error as error:
        module.fail_json(msg=f"the live database could not be looked at: {programs.last_words(str(error))}.")
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
