"""`bazaruto serve`, `worker`, `migrate` and `reindex`: the control plane's own processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from bazaruto import config
from bazaruto.control.cli.printing import Output, OutputOption, print_json


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (serve, worker, migrate, reindex):
        app.command(rich_help_panel="Processes")(command)


def serve() -> None:
    """Serve the HTTP API until SIGTERM."""
    from bazaruto.control import serving

    with refusals():
        raise typer.Exit(serving.serve(settings()))


def worker() -> None:
    """Start and follow runs until SIGTERM; runs outlive it, and the next worker goes on following."""
    from bazaruto.control import worker as working

    with refusals():
        raise typer.Exit(working.main(settings()))


def migrate() -> None:
    """Bring the control plane's database up to date, and make the first admin token when there is none."""
    from bazaruto.control import serving

    with refusals():
        for name in serving.migrate(settings()):
            typer.echo(name)


def reindex(
    after_restore: Annotated[
        str | None, typer.Option(metavar="BACKUP", help="Also end what waited in this backup, and mend the audit.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Enter runs and events that the control database lost, from this node's run directories; a line for each."""
    from bazaruto.control import rebuild
    from bazaruto.control import reindex as entering

    with refusals():
        counts: dict[str, int] = {}
        if after_restore is None:
            lines: Iterable[str] = entering.reindex(settings())
        else:
            rebuilt = rebuild.after_restore(settings(), after_restore)
            lines, counts = rebuilt.lines, dataclasses.asdict(rebuilt.now)
        if output is Output.JSON:
            print_json({"items": list(lines), "next": None, **counts})
            return
        for line in lines:
            typer.echo(line)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What keeps a process or a command from working is one sentence, and exit code 2."""
    import psycopg

    from bazaruto.control.admin_token import CannotWriteToken
    from bazaruto.control.audit.heads import AuditUnwritable
    from bazaruto.control.catalog import CatalogueError
    from bazaruto.control.observe import NotMigratedError
    from bazaruto.database import MigrationFailed
    from bazaruto.server import CannotListen

    try:
        yield
    except (
        AuditUnwritable,
        CannotWriteToken,
        CatalogueError,
        NotMigratedError,
        MigrationFailed,
        CannotListen,
    ) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    except psycopg.OperationalError as error:
        typer.echo(f"The control database cannot be used: {error}".strip(), err=True)
        raise typer.Exit(2) from error


def settings() -> config.Settings:
    loaded = config.load()
    if not loaded.control_database_url:
        raise config.SettingsError(
            "There is no control database: run `bazaruto up`, or set BAZARUTO_CONTROL_DATABASE_URL."
        )
    return loaded
