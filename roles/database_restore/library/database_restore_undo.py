#!/usr/bin/python
"""Swap the live database back with the one that the last restore replaced."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: database_restore_undo
short_description: Undo the last restore
description:
  - The newest C(NAME_before_…) becomes the live database again, in one transaction; the one that was live is kept as
    C(NAME_before_RUN). So undoing twice leads back.
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
  hold_timeout:
    description: Seconds to wait for transactions that write when the hold begins.
    type: int
    default: 60
  hold_jobs:
    description: Call C(hold_jobs()) in the database that comes back, when it has that function.
    type: bool
    default: true
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
requirements: ["psycopg >= 3.1"]
"""

EXAMPLES = r"""
- name: Undo the last restore
  database_restore_undo:
    connection: {host: /var/run/postgresql}
    database: bazaruto
    run: 20261123-160000
"""

RETURN = r"""
undo:
  description: restored (the database that came back), kept, held_jobs, seconds, swap_seconds, previous.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import programs
from ansible.module_utils.bazaruto_backup.connection import CONNECTION, require_psycopg
from ansible.module_utils.bazaruto_backup.refusal import Refused
from ansible.module_utils.bazaruto_restore import replacing

try:
    import psycopg
except ImportError:
    # connection.require_psycopg has the sentence for this
    psycopg = None


def main() -> None:
    """Read the arguments, swap back, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "connection": CONNECTION,
            "database": {"type": "str", "required": True},
            "run": {"type": "str", "required": True},
            "hold_timeout": {"type": "int", "default": 60},
            "hold_jobs": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    require_psycopg(module)
    programs.end_with_a_tidy_up()
    try:
        answer = replacing.undo(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except psycopg.Error as error:
        said = programs.last_words(str(error))
        module.fail_json(msg=f"the undo was cut off, {module.params['database']} is as it was: {said}.")
    live = module.params["database"]
    kept = f"{answer['kept']} (what was {live})\n" if answer["kept"] else ""
    diff = {"before": f"{live}\n{answer['restored']}\n", "after": f"{live} (what was {answer['restored']})\n{kept}"}
    module.exit_json(changed=True, undo=answer, diff=diff)


if __name__ == "__main__":
    main()
