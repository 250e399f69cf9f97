"""`bazaruto up`, `down`, `status` and `env`: this machine's own installation, on the command line."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bazaruto import config
from bazaruto.control.cli.printing import Output, OutputOption, print_json

if TYPE_CHECKING:  # servers and tables are imported where they are used: most commands need neither
    from rich.console import Console
    from rich.table import Table

    from bazaruto.control.local.first_backup import FirstBackup
    from bazaruto.control.local.machine import Installation, Step

MISLEADING = frozenset({"PGPASSWORD", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGOPTIONS"})


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (up, down, status, env):
        app.command()(command)


def up(
    output: OutputOption = Output.TABLE,
    backup: Annotated[bool, typer.Option(help="Make and prove a first backup when none is verified.")] = True,
) -> None:
    """Bring up everything on this machine: servers, databases, service, control plane, a first proven backup."""
    from bazaruto.control import render
    from bazaruto.control.local import first_backup, machine

    began = time.monotonic()
    # Progress goes to the terminal; with -o json the result alone goes to the standard output.
    console = render.console(stderr=output is Output.JSON)
    with _refusals():
        settings = config.load(local=False)
        installation = machine.up(settings, _step(console), console.print)
        first = None
        if backup:
            environment = machine.command_environment(settings)
            first = first_backup.ensure(installation, environment, console.print, quiet=output is Output.JSON)
        if output is Output.JSON:
            print_json({**_as_json(installation), "backup": first.backup if first else None})
            return
        if first and first.made_now:
            console.print(_backup_table(first))
        console.print(_process_table(installation))
        console.print(_next_table(installation, first))
        console.print(f"Everything runs. {time.monotonic() - began:.1f} s")


def down(
    output: OutputOption = Output.TABLE,
    remove_data: Annotated[bool, typer.Option("--remove-data", help="Also remove every file, backups too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing data.")] = False,
    control: Annotated[bool, typer.Option("--control", help="Only the control plane; runs at work go on.")] = False,
) -> None:
    """Stop everything that `up` started, and wait until it is gone. Data stays."""
    from bazaruto.control import render
    from bazaruto.control.local import machine

    console = render.console(stderr=output is Output.JSON)
    with _refusals():
        settings = config.load(local=False)
        if control and remove_data:
            raise typer.BadParameter("--control ends processes only: it does not go with --remove-data.")
        if remove_data and not yes and not _confirmed(console, settings):
            raise typer.Exit(2)
        if remove_data:
            machine.clean(settings, _step(console), console.print)
            stopped = []
        else:
            stop = machine.stop_control if control else machine.down
            stopped = stop(settings, _step(console), console.print)
        if output is Output.JSON:
            print_json({"home": str(settings.home), "stopped": stopped})
        elif remove_data:
            console.print(f"Nothing is left in {settings.home}.")
        else:
            console.print(f"Stopped: {', '.join(stopped) or 'nothing ran'}. The data stays in {settings.home}.")


def status(output: OutputOption = Output.TABLE) -> None:
    """Say what runs here and where. Exit code 0 when everything runs, else 1."""
    from bazaruto.control import render
    from bazaruto.control.local import machine

    console = render.console()
    with _refusals():
        settings = config.load(local=False)
        installation = machine.status(settings)
        if output is Output.JSON:
            print_json(_as_json(installation))
        elif not installation.local:
            console.print(f"Nothing is set up in {settings.home}: run `make up`.")
        else:
            console.print(_process_table(installation))
            console.print(_next_table(installation, None))
        if not installation.running:
            raise typer.Exit(1)


def env(output: OutputOption = Output.TABLE) -> None:
    """Print what the operations guide's commands need; use it as: eval "$(bazaruto env)"."""
    from bazaruto.control.local import machine

    with _refusals():
        settings = config.load(local=False)
        variables = machine.guide_variables(settings)
        if output is Output.JSON:
            print_json(variables)
            return
        # libpq takes these before the passfile, or instead of the arguments that the guide gives.
        for name in sorted(MISLEADING & os.environ.keys()):
            typer.echo(f"unset {name}")
        for name, value in variables.items():
            typer.echo(f"export {name}={shlex.quote(value)}")


def _step(console: Console) -> Step:
    @contextlib.contextmanager
    def step(text: str) -> Iterator[None]:
        began = time.monotonic()
        with console.status(f"{text} …"):
            yield
        console.print(f"  ✓ {text}  {time.monotonic() - began:.1f} s")

    return step


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Every expected failure is one sentence and exit code 1; settings that are wrong are exit code 2."""
    from bazaruto.processes import ProcessesLeftError
    from bazaruto.server_user import EmbeddedError

    try:
        yield
    except config.SettingsError as error:
        _fail(str(error))
        raise typer.Exit(2) from error
    except (EmbeddedError, ProcessesLeftError) as error:
        _fail(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _fail("Interrupted: run the same command again, it goes on where it stands.")
        raise typer.Exit(130) from error


def _fail(text: str) -> None:
    from bazaruto.control import render

    render.console(stderr=True).print(text, style="red", soft_wrap=True)


def _confirmed(console: Console, settings: config.Settings) -> bool:
    console.print(
        f"This stops everything and removes {settings.home} with all its databases and backups.", markup=False
    )
    try:
        return input("Type yes to go on: ").strip() == "yes"
    except EOFError:
        _fail("Nobody answered: nothing was removed. (--yes does not ask.)")
        return False


def _process_table(installation: Installation) -> Table:
    from rich.table import Table
    from rich.text import Text

    from bazaruto.control.local.machine import WELL

    table = Table(title=f"Bazaruto in {installation.home.path}", title_justify="left")
    for heading in ("process", "state", "pid", "since"):
        table.add_column(heading, no_wrap=True)
    table.add_column("log", overflow="fold")
    for process in installation.processes:
        since = _utc(process.started_at) if process.started_at else ""
        state = Text(process.state, style="green" if process.state in WELL else "red")
        table.add_row(process.name, state, str(process.pid or ""), since, process.log)
    return table


def _backup_table(first: FirstBackup) -> Table:
    from rich.table import Table

    table = Table(title="First backup", title_justify="left", show_header=False)
    backup = first.backup
    proof = backup.get("proof") or {}
    rows = proof.get("rows") or {}
    lines = {
        "name": backup["name"],
        "status": backup["status"],
        "size": f"{backup['size_bytes']:,} bytes",
        "sha256": backup.get("sha256") or "",
        "verified at": backup.get("verified_at") or "",
        "level of proof": proof.get("level") or "",
        "rows": ", ".join(f"{name} {count:,}" for name, count in sorted(rows.items()) if count),
    }
    for name, value in lines.items():
        table.add_row(name, str(value))
    return table


def _next_table(installation: Installation, first: FirstBackup | None) -> Table:
    from rich.table import Table

    table = Table(title="Where to go next", title_justify="left", show_header=False)
    service, control = installation.local["service"]["url"], installation.local["control"]["url"]
    lines = {
        "service": f"{service}/healthz",
        "its metrics": f"{service}/metrics",
        "control plane": f"{control}/api/v1/runs",
        "its metrics ": f"{control}/metrics",
        "admin token": str(installation.home.admin_token),
        "demo password": str(installation.home.demo_password),
        "backups": installation.local["backup_directory"],
    }
    if first:
        lines["verified backup"] = str(first.backup["name"])
    lines["commands"] = "bazaruto run backup, bazaruto backups, bazaruto runs, bazaruto status, bazaruto down"
    for name, value in lines.items():
        table.add_row(name.strip(), value)
    return table


def _as_json(installation: Installation) -> dict[str, Any]:
    local_values = installation.local
    return {
        "home": str(installation.home.path),
        "running": installation.running,
        "service": {
            "url": local_values.get("service", {}).get("url"),
            "database_url": local_values.get("service", {}).get("database_url"),
            "backup_directory": local_values.get("backup_directory"),
        },
        "control": {
            "url": local_values.get("control", {}).get("url"),
            "database_url": local_values.get("control", {}).get("database_url"),
            "token_file": str(installation.home.admin_token),
        },
        "redis_url": local_values.get("redis_url"),
        "processes": [
            {
                "name": process.name,
                "state": process.state,
                "pid": process.pid,
                "started_at": _utc(process.started_at) if process.started_at else None,
                "log": process.log or None,
            }
            for process in installation.processes
        ],
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
