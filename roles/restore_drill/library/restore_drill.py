#!/usr/bin/python
"""Prove a backup by restoring it into a throw-away cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: restore_drill
short_description: Prove a backup by restoring it into a throw-away cluster
description:
  - Reads the backup from the storage and never the live database, which may be stopped meanwhile.
  - Checks checksum, the files packed beside the dump, table of contents, a full restore, rows, constraints, and the
    domain's invariants. What was found is written to C(proofs/NAME.json) beside the backup; from then on the backup is
    verified, or failed.
  - The cluster has no network, no worker, no delivery; it is removed in any case, and so is what a killed drill left.
  - A fault of the machine (no space, no initdb) fails the task, and says nothing about the backup.
options:
  directory:
    description: Where backups lie.
    type: path
    required: true
  name:
    description: The backup.
    type: str
    required: true
  invariants:
    description: SQL, each statement after a line C(-- name:), that returns what must not be in the database.
    type: str
    required: true
  scratch_directory:
    description: Where the throw-away cluster is made.
    type: path
    required: true
  bin_directory:
    description: Directory of initdb, postgres and pg_restore; empty for that of PATH, or Debian's newest.
    type: str
    default: ""
  server_command_prefix:
    description: Words in front of the server's command, for root, as whom PostgreSQL does not run.
    type: list
    elements: str
    default: []
  server_user:
    description: The user whom these words make it run as.
    type: str
    default: ""
  jobs:
    description: Parallel jobs of pg_restore; 0 for one a processor.
    type: int
    default: 0
  run:
    description: The run this belongs to.
    type: str
    required: true
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
requirements: ["psycopg >= 3.1", "PostgreSQL's server and client programs, at least as new as the backup"]
"""

EXAMPLES = r"""
- name: Prove a backup
  restore_drill:
    directory: /var/backups/bazaruto
    name: bazaruto_20261123_120000
    invariants: "{{ lookup('ansible.builtin.file', 'invariants.sql') }}"
    scratch_directory: /var/tmp/bazaruto-drill
    run: 20261123-154142
"""

RETURN = r"""
drill:
  description: What the proof says - status, level, checks, rows, seconds, error - and where it lies.
  returned: success, also when the backup failed
  type: dict
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import contents, programs, storage
from ansible.module_utils.bazaruto_backup.connection import Server, identifier, require_psycopg
from ansible.module_utils.bazaruto_backup.refusal import Refused
from ansible.module_utils.bazaruto_drill import scratch
from ansible.module_utils.bazaruto_restore import loading, proof

try:
    import psycopg
    from psycopg import sql
except ImportError:
    # connection.require_psycopg has the sentence for this
    psycopg = None

DATABASE = "drill"


def main() -> None:
    """Read the arguments, drill, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "invariants": {"type": "str", "required": True},
            "scratch_directory": {"type": "path", "required": True},
            "bin_directory": {"type": "str", "default": ""},
            "server_command_prefix": {"type": "list", "elements": "str", "default": []},
            "server_user": {"type": "str", "default": ""},
            "jobs": {"type": "int", "default": 0},
            "run": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    require_psycopg(module)
    programs.end_with_a_tidy_up()
    try:
        drill, before = prove(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except (OSError, psycopg.Error) as error:
        module.fail_json(msg=f"the drill could not be held: {error}.")
    after = f"{drill['backup']}: {drill['status']}\n"
    module.exit_json(changed=True, drill=drill, diff={"before": f"{drill['backup']}: {before}\n", "after": after})


def prove(options: dict[str, Any], *, check_mode: bool) -> tuple[dict[str, Any], str]:
    """The whole drill; returns what it found, and what was known of the backup before."""
    directory = storage.usable(options["directory"], writable=True)
    before = storage.read(directory, options["name"])
    base = Path(options["scratch_directory"])
    with storage.opened_for_use(before.path) as descriptor:
        if check_mode:
            cluster = scratch.Scratch(options, base)
            _refuse_small_disk(base, before.manifest or {})
            foreseen = {
                "status": before.status,
                "level": "none",
                "checks": [],
                "rows": {},
                "seconds": 0.0,
                "error": None,
            }
            left = [path.name for path in scratch.leftovers(cluster.directory.parent)]
            return {"backup": before.name, "leftovers_removed": left, **foreseen}, before.status
        with scratch.only_drill(base) as left:
            found = _record(options, before, descriptor, base)
        _write_proof(directory, before.name, found)
    return {**found, "leftovers_removed": left, "proof": str(storage.proof_path(directory, before.name))}, before.status


def _record(options: dict[str, Any], backup: storage.Backup, descriptor: int, base: Path) -> dict[str, Any]:
    """Drill, and say what came of it in the form of a proof."""
    started, seen = time.monotonic(), os.fstat(descriptor)
    proven, error = proof.Proof(), None
    try:
        _drill(options, backup, proven, base)
    except proof.Faulty as fault:
        error = f"{fault}"
    now = backup.path.stat()
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (seen.st_ino, seen.st_size, seen.st_mtime_ns):
        raise Refused(f"{backup.path.name} was changed while it was being proven: drill it again")
    at = storage.utc_now()
    return {
        "backup": backup.name,
        "status": "failed" if error else "verified",
        "level": proven.level,
        "sha256": (backup.manifest or {}).get("sha256"),
        "size_bytes": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
        "checked_at": at,
        "verified_at": None if error else at,
        "seconds": round(time.monotonic() - started, 3),
        "rows": proven.rows,
        "checks": proven.checks,
        "error": error,
        "run": options["run"],
    }


def _drill(options: dict[str, Any], backup: storage.Backup, proven: proof.Proof, base: Path) -> None:
    """The file first, which is cheap; then a cluster, a full restore, and what is in it."""
    cluster = scratch.Scratch(options, base)
    pg_restore = programs.find("pg_restore", cluster.bin_directory)
    manifest = proof.check_file(proven, backup.directory, backup.name)
    proof.check_list(proven, backup.path, manifest, pg_restore, Server({"passfile": ""}, "bazaruto drill"))
    _refuse_older_server(cluster, manifest)
    _refuse_small_disk(base, manifest)
    with cluster.running() as server:
        _prepare(server, manifest)
        failure = None
        try:
            loading.load_archive(
                server, pg_restore, backup.path, DATABASE, [f"--jobs={loading.jobs_or_cpus(options['jobs'])}"]
            )
        except programs.ProgramFailed as error:
            failure = error
        proof.restored(proven, failure, backup.path)
        with server.connect(DATABASE) as session:
            proof.check_contents(proven, session, backup.path, manifest, options["invariants"])


def _prepare(server: Server, manifest: dict[str, Any]) -> None:
    """An empty database like the one that was dumped, and the roles its objects belong to: names only, no passwords."""
    properties = manifest["properties"]
    roles = {*manifest["roles"], properties["owner"]} - {scratch.SUPERUSER}
    try:
        with server.connect("postgres") as session:
            for role in sorted(roles):
                session.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(identifier(role)))
            contents.create_database(session, DATABASE, {**properties, "tablespace": "pg_default"})
    except psycopg.Error as error:
        said = programs.last_words(str(error))
        raise Refused(f"the throw-away cluster cannot take a database like {manifest['database']}: {said}") from error


def _refuse_older_server(cluster: scratch.Scratch, manifest: dict[str, Any]) -> None:
    ours = programs.major_version(programs.find("postgres", cluster.bin_directory))
    theirs = manifest["server_version"].split(".")[0]
    if theirs.isdigit() and int(theirs) > ours:
        raise Refused(
            f"the backup is from PostgreSQL {theirs}, postgres in {cluster.bin_directory} is version {ours}: "
            f"install PostgreSQL {theirs} and set restore_drill_bin_directory"
        )


def _refuse_small_disk(base: Path, manifest: dict[str, Any]) -> None:
    needed = scratch.INITIAL_BYTES + int(1.3 * manifest.get("database_bytes", 0))
    there = base if base.exists() else base.parent
    if not there.is_dir():
        raise Refused(
            f"there is no directory {there} to make the drill's {base} in: make it, or set restore_drill_directory"
        )
    storage.refuse_without_space(there, needed, "the drill's throw-away cluster")


def _write_proof(directory: Path, name: str, found: dict[str, Any]) -> None:
    path = storage.proof_path(directory, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    storage.write_private(path, json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
