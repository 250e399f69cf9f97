"""Say what replacing the live database would lose, before anything is touched."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.bazaruto_backup import contents, statements, storage
from ansible.module_utils.bazaruto_backup.choosing import choose
from ansible.module_utils.bazaruto_backup.connection import Server, one
from ansible.module_utils.bazaruto_restore import replacing, swap

try:
    from psycopg import sql
except ImportError:
    # connection.require_psycopg has the sentence for this
    sql = None

if TYPE_CHECKING:
    import psycopg


def of_restore(options: dict[str, Any]) -> dict[str, Any]:
    """The backup and its age, what the live database has that it has not, and which kept databases would go."""
    names = swap.Names(options["database"], options["run"])
    server = Server(options["connection"], f"bazaruto restore preview {options['run']}")
    backup = _meant(options)
    lines = [_age_line(backup)]
    with server.connect(swap.MAINTENANCE_DATABASE) as session:
        newer = _newer_rows(server, session, names.live, backup["created_at"])
        previous = swap.previous(session, names.live)
    lines.append(_newer_line(names.live, newer, "after the backup", names.kept))
    if options["keep_writes"]:
        lines.append("keep_writes: what is written while the restore runs is taken, and then lost in the same way.")
    else:
        lines.append(
            f"From the copy's start to the swap {names.live} takes no writes: the service answers them with 503."
        )
    dropped = replacing.removable(previous, options["keep_previous"])
    if dropped:
        lines.append(f"These databases, kept by earlier restores, are removed to make room: {', '.join(dropped)}.")
    return {"backup": backup, "lines": lines, "newer_rows": newer, "previous": previous, "kept": names.kept}


def of_undo(options: dict[str, Any]) -> dict[str, Any]:
    """Which database would come back, and what was made since it was replaced."""
    names = swap.Names(options["database"], options["run"])
    server = Server(options["connection"], f"bazaruto restore_undo preview {options['run']}")
    with server.connect(swap.MAINTENANCE_DATABASE) as session:
        previous = swap.previous(session, names.live)
        if not previous:
            return {"lines": [f"There is nothing to undo: no database {names.live}_before_… is kept."], "previous": []}
        run = previous[0].removeprefix(f"{names.live}_before_")
        since = datetime.datetime.strptime(run[:15], "%Y%m%d_%H%M%S").replace(tzinfo=datetime.UTC)
        newer = _newer_rows(server, session, names.live, storage.show_time(since))
    lines = [
        f"{previous[0]}, replaced by the run {run}, becomes {names.live} again.",
        _newer_line(names.live, newer, "since that run began", names.kept),
    ]
    return {"lines": lines, "newer_rows": newer, "previous": previous, "run": run}


def _meant(options: dict[str, Any]) -> dict[str, Any]:
    """The backup: chosen here, or on another host, from where it is brought into the directory."""
    found = options["found"]
    if not found:
        return choose(options["directory"], options["backup"], "restore")
    return {**found, "path": str(Path(options["directory"]) / Path(found["path"]).name)}


def _age_line(backup: dict[str, Any]) -> str:
    if not backup["created_at"]:
        return f"{backup['name']} is an archive of the guide's script: it does not say of when its data is."
    age = datetime.datetime.now(datetime.UTC) - storage.parse_time(backup["created_at"])
    known = "verified by a drill" if backup["status"] == "verified" else f"{backup['status']}: no drill has proven it"
    return f"{backup['name']} is {storage.show_age(age.total_seconds())} old (made {backup['created_at']}, {known})."


def _newer_rows(server: Server, session: psycopg.Connection[Any], live: str, created_at: str) -> dict[str, int] | None:
    """Rows per table made after that moment; None when there is no such database, or no such moment."""
    if not created_at or contents.database_properties(session, live) is None:
        return None
    newer = {}
    with server.connect(live) as inside:
        for schema, table in inside.execute(statements.TABLES_WITH_CREATED_AT).fetchall():
            count = sql.SQL("SELECT count(*) FROM {} WHERE created_at > {}")
            statement = count.format(sql.Identifier(schema, table), sql.Literal(created_at))
            if rows := int(one(inside, statement)[0]):
                newer[contents.table_name(schema, table)] = rows
    return newer


def _newer_line(live: str, newer: dict[str, int] | None, when: str, kept: str) -> str:
    if newer is None:
        return f"What is newer in {live} is not known: there is no such database, or no moment to compare with."
    if not newer:
        return f"No row of {live} was made {when}."
    counts = ", ".join(f"{rows} of {table}" for table, rows in newer.items())
    return f"Rows of {live} made {when}: {counts}. They stay readable in {kept}."
