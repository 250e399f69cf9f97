"""`bazaruto runs`, `show`, `logs`, `cancel`, `waive` and `backups`: what became of a launch, and decisions on it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bazaruto.control.cli import asking, completion, following
from bazaruto.control.cli.printing import Output, OutputOption, print_json, show_list
from bazaruto.control.client_errors import RefusedError

if TYPE_CHECKING:
    from bazaruto.control.client import Client

RUN = "The run's id."
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help=RUN, autocompletion=completion.runs)]
LimitOption = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (runs, show, logs, cancel, waive, backups):
        app.command(rich_help_panel="Runs")(command)


def runs(
    status: Annotated[str | None, typer.Option(help="Only these.", autocompletion=completion.statuses)] = None,
    operation: Annotated[str | None, typer.Option(help="Only these.", autocompletion=completion.operations)] = None,
    environment: Annotated[
        str | None, typer.Option("--environment", "-e", help="Only these.", autocompletion=completion.environments)
    ] = None,
    limit: LimitOption = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """List runs, newest first."""
    from bazaruto.control import tables

    found = asking.client().items("/api/v1/runs", limit, status=status, operation=operation, environment=environment)
    columns = {
        "RUN": "id",
        "OPERATION": "operation",
        "ENVIRONMENT": "environment",
        "STATUS": "status",
        "TOOK": "took",
        "BY": "requested_by",
    }
    show_list(output, found, columns, took=tables.took)


def show(run: RunArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one run: what was asked, its life, its result."""
    from bazaruto.control import render, tables

    found = asking.client().get(asking.path(run))
    if output is Output.JSON:
        print_json(found)
        return
    screen = render.console()
    screen.print(tables.facts(render.about(found)))
    screen.print()
    screen.print(tables.listing(found["changes"], {"AT": "at", "STATUS": "status", "REASON": "reason"}))
    screen.print()
    if found["plan"]:
        render.plan_of_run(screen, found)
        screen.print()
    if found["hosts"]:
        screen.print(tables.facts(found["hosts"]))
    render.end_of_run(screen, found)
    if found["command"]:  # unbroken, so that it can be copied
        screen.print(f"\nBy hand, where playbooks/ is:\n  {found['command']}", soft_wrap=True)


def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Byte by byte as Ansible printed it, uncut.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Begin after this event, or with --raw byte.")] = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print a run's log as Ansible printed it, or its events as JSON."""
    from bazaruto.control import render

    if raw and output is Output.JSON:
        raise RefusedError("--raw prints bytes: there is no JSON of them.")
    client, run = asking.client(), asking.checked(run)
    with _resumable(run, after, raw=raw) as place:
        if raw:
            _print_raw(client, run, place, follow=follow)
            return
        collected: list[dict[str, Any]] = []
        for step in client.follow(run, after):
            if output is Output.JSON:
                collected += step.events
            else:
                for event in step.events:
                    for line in render.log_lines([event]):
                        typer.echo(line)
                    place.after = event["seq"]
            if not follow and not step.events:
                break
    if output is Output.JSON:
        print_json({"events": collected, "next": collected[-1]["seq"] if collected else after})


def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help=RUN, autocompletion=completion.runs_to_cancel)],
    reason: Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Cancel a run, or withdraw one that is not approved yet, and wait for its end: 0 when that was done, 2 when it
    was over before; when it ended otherwise meanwhile, as `run` does.
    """
    from bazaruto.control import render

    asking.checked(run)
    client = asking.client()
    ended = client.cancel(run, reason)
    withdrawn = ended["status"] == "rejected"
    if not detach:
        ended = following.wait(client, ended, output)
    if output is Output.JSON:
        print_json(ended)
    elif detach:
        typer.echo(f"Asked for: `bazaruto show {run}` says how it ended.")
    else:
        render.end_of_run(render.console(), ended)
    if not detach and not withdrawn and ended["status"] != "canceled":
        raise typer.Exit(following.EXIT_CODES.get(ended["status"], following.UNKNOWN))


def waive(
    run: Annotated[str, typer.Argument(metavar="RUN", help=RUN, autocompletion=completion.runs_to_waive)],
    reason: Annotated[str, typer.Option(help="Why that is safe, for whoever reads it later.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Let changes start although hosts could not be asked whether they still work for a run."""
    asking.checked(run)
    waived = asking.client().waive(run, reason)
    if output is Output.JSON:
        print_json(waived)
    else:
        hosts = ", ".join(waived["left_running"])
        typer.echo(f"Changes in {waived['environment']} no longer wait until it is known what runs on {hosts}.")


def backups(
    kind: Annotated[str | None, typer.Option(help="Only these: database or control.")] = None,
    limit: LimitOption = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """List backups, newest first, and what is proven of each."""
    from bazaruto.control import tables

    found = asking.client().items("/api/v1/backups", limit, kind=kind)
    columns = {"BACKUP": "name", "OF": "kind", "STATUS": "status", "SIZE": "size", "VERIFIED, OR WHY NOT": "proven"}
    show_list(
        output,
        found,
        columns,
        size=lambda backup: "-" if backup["size_bytes"] is None else tables.size(backup["size_bytes"]),
        proven=lambda backup: str(backup["verified_at"] or backup["status_reason"] or "no drill has restored it yet"),
    )


class _Place:
    """How far a log was printed."""

    def __init__(self, after: int) -> None:
        self.after = after


@contextlib.contextmanager
def _resumable(run: str, after: int, *, raw: bool) -> Iterator[_Place]:
    """Who stops the printing is told how it goes on from there."""
    place = _Place(after)
    try:
        yield place
    except KeyboardInterrupt:
        option = "-f --raw" if raw else "-f"
        typer.echo(f"`bazaruto logs {option} --after {place.after} {run}` goes on from here.", err=True)
        raise typer.Exit(following.UNKNOWN) from None


def _print_raw(client: Client, run: str, place: _Place, *, follow: bool) -> None:
    """What was printed; with `follow` also what comes until the run has ended: each event says that there is more."""
    _copy(client, run, place)
    for _ in client.follow(run) if follow else ():
        _copy(client, run, place)


def _copy(client: Client, run: str, place: _Place) -> None:
    for part in client.stdout(run, place.after):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        place.after += len(part)
