#!/usr/bin/python
"""Dump one PostgreSQL database into one sealed file."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: database_dump
short_description: Dump a PostgreSQL database into one sealed file
description:
  - Writes C(bazaruto_YYYYmmdd_HHMMSS.dump) (custom format, for C(pg_restore -j)), its manifest C(….json) and the
    cluster's roles C(….roles.sql) into a directory, all of mode 0600.
  - Rows are counted in the snapshot that the dump is made from, so that they match it under writes.
  - Files without which the database is worth less, such as keys, are packed beside it into C(….files.tar), 0600.
  - The file has another name (C(.partial)) until it is complete, hashed, described and on the disk.
  - What a killed run left is removed. Two runs into one directory or from one database refuse each other.
  - In check mode everything that can refuse a backup is looked at, and nothing is written.
options:
  connection:
    description: How PostgreSQL is reached. The user must be a superuser, since password hashes are dumped too.
    type: dict
    required: true
    suboptions:
      host: {description: Socket directory or host name., type: str, default: /var/run/postgresql}
      port: {description: Port., type: int, default: 5432}
      user: {description: Superuser., type: str, default: postgres}
      passfile: {description: libpq's password file; empty for peer authentication., type: str, default: ""}
      bin_directory: {description: Directory of pg_dump and psql; empty for PATH., type: str, default: ""}
  database:
    description: The database.
    type: str
    required: true
  directory:
    description: Where backups lie.
    type: path
    required: true
  compression_level:
    description: gzip level, 0 to 9.
    type: int
    default: 1
  files:
    description: Files that belong to the database; read after the dump's snapshot was taken.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: "The file; its last part may hold * and ?.", type: path, required: true}
      into: {description: The directory in the archive., type: str, required: true}
      required: {description: Whether its absence is noted as a lack., type: bool, default: false}
      never_executable: {description: Whether it is left out when it may be executed., type: bool, default: false}
  run:
    description: The run this belongs to; written into the manifest and shown to whoever collides with it.
    type: str
    default: ""
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
requirements: ["psycopg >= 3.1", "pg_dump, pg_dumpall and psql at least as new as the server"]
"""

EXAMPLES = r"""
- name: Dump the database
  database_dump:
    connection: {host: /var/run/postgresql}
    database: bazaruto
    directory: /var/backups/bazaruto
"""

RETURN = r"""
backup:
  description: Name, path, size_bytes, sha256, seconds, created_at, rows a table, and the versions that made it.
  returned: always; in check mode with what can be known beforehand
  type: dict
removed:
  description: What killed runs had left.
  returned: always
  type: list
"""

import contextlib
import datetime
import json
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import contents, files, programs, statements, storage
from ansible.module_utils.bazaruto_backup.connection import (
    CONNECTION,
    Server,
    hold_lock,
    one,
    require_psycopg,
    server_version,
)
from ansible.module_utils.bazaruto_backup.refusal import Refused

try:
    import psycopg
except ImportError:
    # connection.require_psycopg has the sentence for this
    psycopg = None

BACKUP_KEY = 7_234_017_283_807_667_311  # the advisory lock of backups, in the database they are made of
STATISTICS_SINCE = 18
LOCK_WAIT_MILLISECONDS = 60_000
ENDINGS = (".dump", ".json", ".roles.sql", files.ENDING)


def main() -> None:
    """Read the arguments, dump, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "connection": CONNECTION,
            "database": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "compression_level": {"type": "int", "default": 1, "choices": list(range(10))},
            "files": {"type": "list", "elements": "dict", "default": [], "options": files.ENTRY},
            "run": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    require_psycopg(module)
    programs.end_with_a_tidy_up()
    try:
        answer = back_up(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    module.exit_json(changed=True, **answer)


def back_up(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The whole job; what PostgreSQL refuses on the way is one sentence."""
    try:
        return _back_up(options, check_mode=check_mode)
    except psycopg.errors.LockNotAvailable as error:
        seconds = LOCK_WAIT_MILLISECONDS / 1000
        raise Refused(
            f"a table is locked for more than {seconds:g} s ({programs.last_words(str(error))}): "
            "end who holds it (pg_locks), then try again"
        ) from error
    except psycopg.Error as error:
        raise Refused(f"the backup of {options['database']} was cut off: {programs.last_words(str(error))}") from error


def _back_up(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """In the order it happens."""
    started = time.monotonic()
    directory = storage.usable(options["directory"], writable=True)
    server = Server(options["connection"], f"bazaruto backup {options['run']}".strip())
    with (
        storage.storage_lock(directory, server.purpose, check_mode=check_mode),
        server.connect(options["database"], autocommit=False) as session,
    ):
        session.execute(f"SET lock_timeout = {LOCK_WAIT_MILLISECONDS}")
        hold_lock(session, BACKUP_KEY, f"a backup of {options['database']}")
        session.commit()
        version, major = server_version(session)
        paths = server.programs(["pg_dump", "pg_dumpall", "psql"], major)
        left = storage.leftovers(directory)
        if not check_mode:
            for path in left:
                path.unlink(missing_ok=True)
        needed = storage.RESERVE_BYTES + sum(size for _schema, _name, size in contents.tables(session))
        storage.refuse_without_space(directory, needed, f"a backup of {options['database']}")
        session.rollback()
        facts = {"server_version": version, "needed_bytes": needed}
        if check_mode:
            return {"backup": facts, "removed": list(map(str, left))}
        manifest = Dump(options, server, paths, directory, facts).make(session, started)
    path = directory / f"{manifest['name']}.dump"
    shown = f"{path.name}: {manifest['size_bytes']} bytes, {sum(manifest['rows'].values())} rows\n"
    kept = ("name", "created_at", "size_bytes", "sha256", "seconds", "rows", "server_version", "pg_dump_version", "run")
    beside = {"files": sorted(manifest["files"]["members"])} if "files" in manifest else {}
    lacks = {key: manifest["files"][key] for key in ("missing", "left_out") if beside and manifest["files"][key]}
    return {
        "backup": {"path": str(path), **{key: manifest[key] for key in kept}, **beside, **lacks},
        "removed": list(map(str, left)),
        "diff": {"before": "", "after": shown, "before_header": str(directory), "after_header": str(directory)},
    }


class Dump:
    """One dump on its way from partial files to a sealed backup."""

    def __init__(
        self, options: dict[str, Any], server: Server, paths: dict[str, str], directory: Path, facts: dict[str, Any]
    ) -> None:
        self.options, self.server, self.paths, self.directory, self.facts = options, server, paths, directory, facts
        # The planner's statistics save the restore an ANALYZE; pg_dump knows them since 18.
        self.statistics = programs.major_version(paths["pg_dump"]) >= STATISTICS_SINCE

    def make(self, session: Any, started: float) -> dict[str, Any]:
        """Dump, describe, seal; on any failure nothing is left but the sentence."""
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        snapshot, created_at = one(session, statements.EXPORT_SNAPSHOT)
        self.name = created_at.astimezone(datetime.UTC).strftime("bazaruto_%Y%m%d_%H%M%S")
        self._refuse_taken_name()
        try:
            described = self._dump(session, snapshot)
            session.rollback()
            self._dump_roles()
            described |= self._pack_files()
            return self._seal(described, created_at, started)
        except BaseException as error:
            self._remove_partials()
            if isinstance(error, OSError):
                raise Refused(f"the backup could not be written into {self.directory}: {error.strerror}") from error
            raise

    def _partial(self, ending: str) -> Path:
        return self.directory / f"{self.name}{ending}.partial"

    def _refuse_taken_name(self) -> None:
        taken = [p for e in ENDINGS if (p := self.directory / f"{self.name}{e}").exists()]
        if taken:
            raise Refused(f"{taken[0]} exists already, made in this same second: it is kept as it is; try again")

    def _dump(self, session: Any, snapshot: str) -> dict[str, Any]:
        """Run pg_dump in the snapshot and meanwhile count in it."""
        argv = [
            *(self.paths["pg_dump"], *self.server.arguments(), f"--dbname={self.options['database']}"),
            *("--format=custom", f"--compress={self.options['compression_level']}", f"--snapshot={snapshot}"),
            *(["--statistics"] if self.statistics else []),
            *(f"--lock-wait-timeout={LOCK_WAIT_MILLISECONDS}", f"--file={self._partial('.dump')}"),
        ]
        try:
            with programs.running(argv, self.server.environment()) as pg_dump:
                described = {
                    "rows": contents.rows_per_table(session),
                    "constraints": contents.rules(session),
                    "roles": contents.roles(session),
                    "database_bytes": one(session, statements.DATABASE_SIZE, self.options["database"])[0],
                    "properties": contents.database_properties(session, self.options["database"]),
                }
                pg_dump.wait()
        except programs.ProgramFailed as error:
            raise Refused(f"the dump of {self.options['database']} failed and was removed: {error}") from error
        return described

    def _dump_roles(self) -> None:
        argv = [
            self.paths["pg_dumpall"],
            *self.server.arguments(),
            "--roles-only",
            f"--file={self._partial('.roles.sql')}",
        ]
        try:
            programs.run(argv, self.server.environment())
        except programs.ProgramFailed as error:
            raise Refused(f"the cluster's roles could not be dumped: {error}") from error

    def _pack_files(self) -> dict[str, Any]:
        """After the snapshot: what a journal beside the database says of later moments is more, never less."""
        if not self.options.get("files"):
            return {}
        partial = self._partial(files.ENDING)
        packed = files.pack(self.options["files"], partial)
        storage.fsync(partial)
        return {"files": {**files.describe(partial, f"{self.name}{files.ENDING}"), **packed}}

    def _seal(self, described: dict[str, Any], created_at: datetime.datetime, started: float) -> dict[str, Any]:
        """Checksum, manifest, everything on the disk, and the dump's name last of all."""
        dump, roles = self._partial(".dump"), self._partial(".roles.sql")
        for path in (dump, roles):
            path.chmod(0o600)
            storage.fsync(path)
        version = programs.run([self.paths["pg_dump"], "--version"], self.server.environment())
        digest = storage.sha256(dump)
        manifest = {
            "format": storage.MANIFEST_FORMAT,
            "name": self.name,
            "kind": "database",
            "database": self.options["database"],
            "host": socket.gethostname(),
            "run": self.options["run"],
            "created_at": storage.show_time(created_at),
            "seconds": round(time.monotonic() - started, 3),
            "size_bytes": dump.stat().st_size,
            "sha256": digest,
            "server_version": self.facts["server_version"],
            "pg_dump_version": version.split()[2],
            "statistics": self.statistics,
            "compression": f"gzip:{self.options['compression_level']}",
            "roles_file": {
                "name": f"{self.name}.roles.sql",
                "size_bytes": roles.stat().st_size,
                "sha256": storage.sha256(roles),
                "note": "holds password hashes: keep it as closed as the dump",
            },
            **described,
        }
        storage.write_private(
            self.directory / f"{self.name}.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        )
        roles.rename(self.directory / f"{self.name}.roles.sql")
        if "files" in manifest:
            self._partial(files.ENDING).rename(self.directory / f"{self.name}{files.ENDING}")
        dump.rename(self.directory / f"{self.name}.dump")
        storage.fsync(self.directory)
        return manifest

    def _remove_partials(self) -> None:
        """Only a partial dump says that this backup never came to be: with it goes what was sealed before it."""
        if not (self.directory / f"{self.name}.dump").exists():
            for ending in ENDINGS[1:]:
                with contextlib.suppress(OSError):
                    (self.directory / f"{self.name}{ending}").unlink()
        for ending in ENDINGS:
            with contextlib.suppress(OSError):
                self._partial(ending).unlink()


if __name__ == "__main__":
    main()
