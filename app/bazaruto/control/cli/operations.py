"""`bazaruto operations`: what can be launched, and what each can be told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from bazaruto.control.cli import asking, completion
from bazaruto.control.cli.printing import Output, OutputOption, print_json, show_list
from bazaruto.control.client_errors import RefusedError

ASKED_FOR = "Secret: `-p` with its name alone asks for it."


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(rich_help_panel="Runs")(operations)


def operations(
    name: Annotated[
        str | None, typer.Argument(help="One, with its parameters.", autocompletion=completion.operations)
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what can be launched; of one operation, what it can be told."""
    known = asking.client().items("/api/v1/operations", 10_000)
    if name is None:
        show_list(output, known, {"OPERATION": "name", "EFFECT": "effect", "WHAT IT DOES": "summary"})
        return
    if name not in {each["name"] for each in known}:
        raise RefusedError(f"There is no operation {name}: `bazaruto operations` lists them.")
    found = asking.client().get(f"/api/v1/operations/{name}")
    if output is Output.JSON:
        print_json(found)
    else:
        _show(found)


def _show(operation: Mapping[str, Any]) -> None:
    from bazaruto.control import render, tables

    screen = render.console()
    screen.print(tables.facts({name: value for name, value in operation.items() if name != "parameters"}))
    screen.print()
    schema = operation["parameters"]
    rows = [_row(name, rule, required=name in schema["required"]) for name, rule in schema["properties"].items()]
    columns = {"PARAMETER": "name", "TYPE": "type", "DEFAULT": "default", "MEANING": "meaning"}
    screen.print(tables.listing(rows, columns) if rows else "It has no parameters.")


def _row(name: str, rule: Mapping[str, Any], *, required: bool) -> dict[str, str]:
    listed = rule["type"] == "array"
    rules = rule.get("items", {}) if listed else rule
    meaning = [str(rule.get("description", "")), *_rules(rules, rule.get("x-unit"))]
    return {
        "name": name,
        "type": f"list of {rules.get('type', 'any')}" if listed else str(rule["type"]),
        "default": "required" if required else _word(rule["default"]) if "default" in rule else "",
        "meaning": "\n".join(line for line in [*meaning, ASKED_FOR if rule.get("writeOnly") else ""] if line),
    }


def _rules(rule: Mapping[str, Any], unit: str | None) -> Iterator[str]:
    """What its values are held to, a line each."""
    if choices := rule.get("enum"):
        yield f"One of {', '.join(map(_word, choices))}."
    least, most = rule.get("minimum"), rule.get("maximum")
    measured = f" {unit}" if unit else ""
    if least is not None and most is not None:
        yield f"{least} to {most}{measured}."
    elif least is not None or most is not None:
        yield f"At least {least}{measured}." if most is None else f"At most {most}{measured}."
    elif unit:
        yield f"In {unit}."
    if pattern := rule.get("pattern"):
        yield f"Must match {pattern.removeprefix('^(?:').removesuffix(')$')}"


def _word(value: Any) -> str:
    """A value as `-p` takes it."""
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return value if isinstance(value, str) else json.dumps(value)
