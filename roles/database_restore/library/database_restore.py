#!/usr/bin/python
"""Restore a backup into a new database, prove it there, and swap it with the live one."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: database_restore
short_description: Restore a backup into a new database and swap it with the live one
description:
  - One process does it all, because its sessions hold what must vanish with it - the lock of restores, and the hold on
    the service's writes - should it be killed.
  - The new database is proven (checksum, table of contents, full restore, rows, constraints, invariants) before it
    takes the live one's name in one transaction. The one that was live is kept as C(NAME_before_RUN).
  - What a killed restore left (C(NAME_restore_…)) is removed.
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
  path:
    description: >-
      The backup, a C(.dump) with its manifest beside it, or an archive C(.sql.gz) of the guide's script, which goes
      into an empty database only.
    type: path
    required: true
  invariants:
    description: SQL, each statement after a line C(-- name:), that returns what must not be in the database.
    type: str
    required: true
  jobs:
    description: Parallel jobs of pg_restore; 0 for one a processor.
    type: int
    default: 0
  keep_writes:
    description: Let the service write while the restore runs; all of that is lost at the swap.
    type: bool
    default: false
  hold_timeout:
    description: Seconds to wait for transactions that write when the hold begins.
    type: int
    default: 60
  hold_jobs:
    description: Call C(hold_jobs()) in the restored database before it goes live, when it has that function.
    type: bool
    default: true
  keep_previous:
    description: How many databases that earlier restores replaced stay; older ones are dropped with the copy.
    type: int
    default: 1
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
requirements: ["psycopg >= 3.1", "pg_restore, psql and vacuumdb at least as new as the server"]
"""

EXAMPLES = r"""
- name: Restore
  database_restore:
    connection: {host: /var/run/postgresql}
    database: bazaruto
    run: 20261123-154142
    path: /var/backups/bazaruto/bazaruto_20261123_120000.dump
    invariants: "{{ lookup('ansible.builtin.file', 'invariants.sql') }}"
"""

RETURN = r"""
restore:
  description: >-
    database, kept, rows, level, checks, held_jobs, seconds, swap_seconds, previous, dropped, leftovers_removed.
  returned: success
  type: dict
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import programs
from ansible.module_utils.bazaruto_backup.connection import CONNECTION, require_psycopg
from ansible.module_utils.bazaruto_backup.refusal import Refused
from ansible.module_utils.bazaruto_restore import swap
from ansible.module_utils.bazaruto_restore.replacing import Restore

try:
    import psycopg
except ImportError:
    # connection.require_psycopg has the sentence for this
    psycopg = None


def main() -> None:
    """Read the arguments, restore, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "connection": CONNECTION,
            "database": {"type": "str", "required": True},
            "run": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "invariants": {"type": "str", "required": True},
            "jobs": {"type": "int", "default": 0},
            "keep_writes": {"type": "bool", "default": False},
            "hold_timeout": {"type": "int", "default": 60},
            "hold_jobs": {"type": "bool", "default": True},
            "keep_previous": {"type": "int", "default": 1},
        },
        supports_check_mode=True,
    )
    require_psycopg(module)
    programs.end_with_a_tidy_up()
    if module.params["keep_previous"] < 0 or module.params["jobs"] < 0:
        module.fail_json(msg="keep_previous and jobs must be at least 0.")
    try:
        answer = replace(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except psycopg.Error as error:
        live = module.params["database"]
        module.fail_json(msg=f"the restore was cut off, {live} is as it was: {programs.last_words(str(error))}.")
    kept = f"{answer['kept']} (what was {answer['database']})\n" if answer["kept"] else ""
    after = f"{answer['database']} (from {answer['source']})\n{kept}"
    module.exit_json(changed=True, restore=answer, diff={"before": f"{answer['database']}\n", "after": after})


def replace(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The whole job; in check mode up to where something would be touched."""
    started = time.monotonic()
    restore = Restore(options)
    with restore.admitted() as session:
        left = restore.check(session)
        done: dict[str, Any] = {"kept": restore.names.kept if restore.live_exists else None, "dropped": []}
        if not check_mode:
            done = restore.run(session, left)
        previous = swap.previous(session, restore.names.live)
    return {
        "database": restore.names.live,
        "source": restore.path.name,
        "level": restore.proof.level,
        "checks": restore.proof.checks,
        "rows": restore.proof.rows or restore.manifest.get("rows", {}),
        "held_jobs": restore.held_jobs,
        "leftovers_removed": left,
        "previous": previous,
        "seconds": round(time.monotonic() - started, 3),
        **done,
    }


if __name__ == "__main__":
    main()
