"""How results are shown: as one JSON document, or as a table for people."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer


class Output(enum.StrEnum):
    """How a result is shown."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How the result is shown.")]


def print_json(value: Any) -> None:
    """One document on the standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_list(
    output: Output,
    items: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    **derived: Callable[[Mapping[str, Any]], str],
) -> None:
    """As JSON just as it came; as a table with what is derived from each item beside it."""
    from bazaruto.control import render, tables

    if output is Output.JSON:
        print_json({"items": items, "next": None})
    elif items:
        rows = [{**item, **{name: make(item) for name, make in derived.items()}} for item in items]
        render.console().print(tables.listing(rows, columns))
    else:
        typer.echo("There are none.")
