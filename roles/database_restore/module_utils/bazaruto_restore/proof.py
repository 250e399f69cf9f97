"""Prove a backup, level by level: its checksum, its table of contents, a full restore, rows, rules, invariants."""

from __future__ import annotations

import dataclasses
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.bazaruto_backup import contents, files, programs, storage
from ansible.module_utils.bazaruto_backup.refusal import Refused

try:
    import psycopg
    from psycopg import sql
except ImportError:
    # connection.require_psycopg has the sentence for this
    psycopg = None

if TYPE_CHECKING:
    from ansible.module_utils.bazaruto_backup.connection import Server

# From the weakest to the strongest; each includes those before it.
LEVELS = ("none", "checksum", "list", "restored", "rows", "constraints", "invariants")
_INVARIANT = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_NAMED_IN_A_SENTENCE = 3
# What pg_restore says when the machine is at fault and not the file.
_MACHINE_FAULTS = (
    "No space left on device",
    "could not extend file",
    "server closed the connection",
    "terminating connection",
    "the database system is",
    "out of memory",
    "could not connect",
    "connection to server",
    "extension control file",
    "is not available",
)


class Faulty(Exception):
    """The backup itself is not what it says; the text says in which way."""


@dataclasses.dataclass
class Proof:
    """What was found out about one backup, in the order it was."""

    level: str = "none"
    checks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rows: dict[str, int] = dataclasses.field(default_factory=dict)

    def passed(self, name: str, detail: str, level: str | None = None) -> None:
        """Note a check that held, and the level of proof that is reached with it."""
        self.checks.append({"name": name, "ok": True, "detail": detail})
        self.level = level or self.level

    def failed(self, name: str, detail: str) -> Faulty:
        """Note a check that did not hold."""
        self.checks.append({"name": name, "ok": False, "detail": detail})
        return Faulty(detail)


def check_file(proof: Proof, directory: Path, name: str) -> dict[str, Any]:
    """Size and checksum against the manifest; returns the manifest."""
    manifest, why = storage.read_manifest(directory, name)
    if manifest is None:
        raise proof.failed("manifest", why)
    path = directory / f"{name}.dump"
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise proof.failed("checksum", f"{path.name} is not a regular file")
    if found.st_size != manifest["size_bytes"]:
        detail = (
            f"{path.name} has {found.st_size} bytes, its manifest says {manifest['size_bytes']}: it was cut or changed"
        )
        raise proof.failed("checksum", detail)
    digest = storage.sha256(path)
    if digest != manifest["sha256"]:
        raise proof.failed("checksum", f"{path.name} has the checksum {digest}, its manifest says {manifest['sha256']}")
    proof.passed("checksum", f"{found.st_size} bytes, sha256 {digest}", "checksum")
    _check_files(proof, directory, manifest)
    return manifest


def _check_files(proof: Proof, directory: Path, manifest: dict[str, Any]) -> None:
    """What was packed beside the dump is what the manifest says, file by file."""
    if not (described := manifest.get("files")):
        return
    if wrong := files.fault(directory, manifest):
        raise proof.failed("files", wrong)
    lacks = f"; not there to be packed: {', '.join(described['missing'])}" if described["missing"] else ""
    proof.passed("files", f"{', '.join(sorted(described['members'])) or 'none'}{lacks}")


def check_list(proof: Proof, path: Path, manifest: dict[str, Any], pg_restore: str, server: Server) -> None:
    """The archive's table of contents, and that it lists the tables of the manifest."""
    try:
        listed = programs.run([pg_restore, "--list", str(path)], server.environment())
    except programs.ProgramFailed as error:
        raise proof.failed("list", f"{path.name} {_why_unreadable(error.said)}") from error
    tables = [line for line in listed.splitlines() if " TABLE DATA " in line]
    missing = [
        name
        for name in sorted(manifest["rows"])
        if not any(" TABLE DATA {} {} ".format(*contents.schema_and_table(name)) in line for line in tables)
    ]
    if missing:
        raise proof.failed("list", f"{path.name} holds no data of {_some(missing)}, of which its manifest counts rows")
    if len(tables) != len(manifest["rows"]):
        detail = f"{path.name} holds data of {len(tables)} tables, its manifest counts rows of {len(manifest['rows'])}"
        raise proof.failed("list", detail)
    proof.passed("list", f"{len(tables)} tables with data", "list")


def restored(proof: Proof, error: programs.ProgramFailed | None, path: Path) -> None:
    """Note what came of a full restore; a fault of the machine is not held against the file."""
    if error is None:
        proof.passed("restored", "every statement succeeded", "restored")
        return
    if any(fault in error.said for fault in _MACHINE_FAULTS):
        raise Refused(f"the restore of {path.name} was cut off, which says nothing about the file: {error}") from error
    raise proof.failed("restored", f"{path.name} could not be restored: {error}")


def check_contents(
    proof: Proof, session: psycopg.Connection[Any], path: Path, manifest: dict[str, Any], invariants: str
) -> None:
    """Rows and rules of a restored database against the manifest, then what must hold whatever a manifest says."""
    proof.rows = count_rows(session)
    wrong = _differences(manifest["rows"], proof.rows)
    if wrong:
        raise proof.failed("rows", f"rows restored differ from rows dumped: {_some(wrong)}")
    proof.passed("rows", f"{sum(proof.rows.values())} rows in {len(proof.rows)} tables", "rows")
    rules = contents.rules(session)
    if wrong := _differences(manifest["constraints"], rules):
        raise proof.failed("constraints", f"constraints restored differ from those dumped: {_some(wrong)}")
    proof.passed("constraints", f"{len(rules)} constraints, unique indexes and triggers", "constraints")
    if described := manifest.get("files"):
        _offer_files(session, files.read(path.with_name(described["name"])))
    check_invariants(proof, session, invariants)


def _offer_files(session: psycopg.Connection[Any], packed: dict[str, bytes]) -> None:
    """As a table of this session alone, so that invariants can hold files and database against each other."""
    session.execute("CREATE TEMPORARY TABLE backup_files (name text PRIMARY KEY, content bytea NOT NULL)")
    for name, content in packed.items():
        session.execute("INSERT INTO backup_files VALUES (%s, %s)", [name, content])


def count_rows(session: psycopg.Connection[Any]) -> dict[str, int]:
    """Count a restored database's rows by reading the tables.

    The statistics come from a vacuumed database and promise index-only scans that would fetch each row by itself: 2.4
    million rows took 3 to 6 times as long.
    """
    session.execute("SET enable_indexonlyscan = off")
    return contents.rows_per_table(session)


def check_invariants(proof: Proof, session: psycopg.Connection[Any], invariants: str) -> None:
    """Ask every rule of the domain; all are asked, also after one that does not hold."""
    broken = []
    for name, question in read_invariants(invariants):
        holds, detail = _ask(session, question)
        proof.checks.append({"name": name, "ok": holds, "detail": detail})
        if not holds:
            broken.append(f"{name.replace('_', ' ')}: {detail}")
    if broken:
        raise Faulty(f"what must hold in this database does not: {_some(broken)}")
    proof.level = "invariants"


def read_invariants(text: str) -> list[tuple[str, str]]:
    """Name and statement of every `-- name:` block."""
    parts = _INVARIANT.split(text)[1:]
    found = [(name, body.strip().rstrip(";")) for name, body in zip(parts[::2], parts[1::2], strict=True)]
    if not found:
        raise Refused("there is not one invariant to ask: each begins with a line `-- name: what_must_hold`")
    return found


def _ask(session: psycopg.Connection[Any], question: str) -> tuple[bool, str]:
    statement = sql.SQL("SELECT count(*), (array_agg(what::text ORDER BY what))[1:3] FROM ({}\n) AS broken (what)")
    try:
        with session.transaction():
            session.execute("SET TRANSACTION READ ONLY")
            row = session.execute(statement.format(sql.SQL(question))).fetchone()
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        return False, f"it cannot even be asked ({programs.last_words(str(error), 200)})"
    count, examples = row or (0, [])
    return (True, "holds") if not count else (False, f"{count} break it, such as {', '.join(examples)}")


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    wrong = []
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            wrong.append(
                f"{name} ({expected.get(name, 'nothing')} in the manifest, {found.get(name, 'nothing')} restored)"
            )
    return wrong


def _some(items: list[str]) -> str:
    shown = "; ".join(items[:_NAMED_IN_A_SENTENCE])
    more = len(items) - _NAMED_IN_A_SENTENCE
    return f"{shown}; and {more} more" if more > 0 else shown


def _why_unreadable(said: str) -> str:
    if "unsupported version" in said:
        return f"was written by a newer pg_dump than this pg_restore can read ({programs.last_words(said, 200)})"
    if "does not appear to be a valid" in said or "did not find magic string" in said:
        return f"is no archive of pg_dump ({programs.last_words(said, 200)})"
    if "too short" in said or "unexpected end of file" in said or "end of file" in said:
        return f"is empty or cut off ({programs.last_words(said, 200)})"
    if "text format dump" in said:
        return "is a plain SQL dump, which is imported as NAME.sql.gz"
    return f"cannot be read by pg_restore ({programs.last_words(said, 300)})"
