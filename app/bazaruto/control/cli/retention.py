"""`bazaruto retention`: lets old runs go, or says which would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bazaruto.control.cli import completion, launch
from bazaruto.control.cli.printing import Output, OutputOption

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = {
    "OPERATION": "operation",
    "RUNS": "runs_removed",
    "ONLY EVENTS OF": "runs_without_events",
    "EVENTS": "events_removed",
    "KEPT THOUGH DUE": "kept",
}


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(rich_help_panel="Runs")(retention)


def retention(  # noqa: PLR0913, PLR0917 - those of `run` that it can have
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say exactly what would go; remove nothing.")] = False,
    environment: Annotated[
        str,
        typer.Option("--environment", "-e", help="Whose control nodes.", autocompletion=completion.environments),
    ] = "local",
    parameter: launch.ParameterOption = None,
    reason: launch.ReasonOption = None,
    idempotency_key: launch.KeyOption = None,
    detach: launch.DetachOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let old runs and their events go, by the rules of the operation `retention`, and give the disk back.

    What something refers to stays, and is counted. Exits as `run` does.
    """
    request = {
        "operation": "retention",
        "environment": environment,
        "check": dry_run,
        "diff": False,
        "limit": None,
        "reason": reason,
        "confirm": None,
    }
    launch.carry_out(request, parameter or [], idempotency_key, output, detach=detach, told=_told)


def _told(screen: Console, run: Mapping[str, Any]) -> None:
    """What went by operation, and what the disk has of it."""
    from bazaruto.control import render, tables

    render.end_of_run(screen, {**run, "result": None})
    for node in (run["result"] or {}).get("nodes", ()):
        screen.print(f"On {node['node']} {_summary(node)}")
        rows = [
            {"operation": name, **each, "kept": _reasons(each["kept_though_due"])}
            for name, each in node["operations"].items()
        ]
        if rows:
            screen.print(tables.listing(rows, COLUMNS))
        told = ("snapshots_removed", "leftovers_removed", "partitions_dropped", "partitions_rewritten")
        facts = {name: node[name] for name in (*told, "left_to_the_next_time") if node[name]}
        returned = {f"{place}_bytes_returned": node[place]["bytes_returned"] for place in ("database", "disk")}
        screen.print(tables.facts({**facts, **returned}))


def _summary(node: Mapping[str, Any]) -> str:
    verb = "would go" if node["check"] else "went"
    return f"{node['runs_removed']:,} runs and {node['events_removed']:,} events {verb}:"


def _reasons(kept: Mapping[str, int]) -> str:
    return "\n".join(f"{count:,}: {reason}" for reason, count in kept.items())
