"""`bazaruto serve`, `worker` and `migrate`: the control plane's own processes."""

from __future__ import annotations

import typer

from bazaruto import config

Refusal = typer.Exit(2)


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (serve, worker, migrate):
        app.command(rich_help_panel="Processes")(command)


def serve() -> None:
    """Serve the HTTP API until SIGTERM."""
    from bazaruto.control import serving

    raise typer.Exit(serving.serve(_settings()))


def worker() -> None:
    """Start and follow runs until SIGTERM; runs outlive it, and the next worker goes on following."""
    from bazaruto.control import worker as working

    raise typer.Exit(working.main(_settings()))


def migrate() -> None:
    """Bring the control plane's database up to date, and make the first admin token when there is none."""
    from bazaruto.control import serving

    for name in serving.migrate(_settings()):
        typer.echo(name)


def _settings() -> config.Settings:
    settings = config.load()
    if not settings.control_database_url:
        raise config.SettingsError(
            "There is no control database: run `bazaruto up`, or set BAZARUTO_CONTROL_DATABASE_URL."
        )
    return settings
