"""`bazaruto approve` and `reject`: decisions on what another person has planned."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bazaruto.control.cli import asking, completion
from bazaruto.control.cli.printing import Output, OutputOption, print_json
from bazaruto.control.client_errors import RefusedError

if TYPE_CHECKING:
    from rich.console import Console

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's id.", autocompletion=completion.runs_to_approve)
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (approve, reject):
        app.command(rich_help_panel="Runs")(command)


def approve(
    run: RunArgument,
    reason: Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what a run would change, ask, and approve just that. It then starts, unless anything has changed since."""
    from bazaruto.control import render

    client, path = asking.client(), asking.path(run)
    found = client.get(path)
    screen = render.console(stderr=output is Output.JSON)
    _refuse_undecidable(found)
    _show(screen, found)
    if not yes and not _agreed(run):
        raise typer.Exit(1)
    approved = client.post(f"{path}/approve", {"plan": found["plan_run"], "reason": reason})
    if output is Output.JSON:
        print_json(approved)
    else:
        typer.echo(f"Approved: {approved['status_reason']}. `bazaruto logs -f {run}` follows it.")


def reject(
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Why, for whoever planned it.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Reject what is planned, for good."""
    rejected = asking.client().post(f"{asking.path(run)}/reject", {"reason": reason})
    if output is Output.JSON:
        print_json(rejected)
    else:
        typer.echo(rejected["error"])


def _refuse_undecidable(run: dict[str, Any]) -> None:
    """Nothing is asked about a run that nobody can approve; the control plane itself refuses all the rest."""
    if run["approval"] != "pending":
        stands = run["error"] or run["status_reason"] or f"it is {run['status']}"
        if run["approval"] is None:
            stands = f"it is the plan of run {run['plan_for']}" if run["plan_for"] else "it needs no approval"
        raise RefusedError(f"There is nothing to approve in run {run['id']}: {stands.rstrip('.')}.")


def _show(screen: Console, run: dict[str, Any]) -> None:
    """All that the approval is bound to."""
    from bazaruto.control import render, tables

    names = ("id", "operation", "environment", "parameters", "limit", "reason", "requested_by", "revision")
    told = {**{name: run[name] for name in names}, "content": run["content_digest"][:16]}
    screen.print(tables.facts({**told, "expires": run["approval_expires_at"]}))
    screen.print()
    render.plan_of_run(screen, run)


def _agreed(run: str) -> bool:
    if not sys.stdin.isatty():
        raise RefusedError(f"Nobody can be asked here: look at it with `bazaruto show {run}`, then add --yes.")
    return typer.confirm("Approve this?", err=True)
