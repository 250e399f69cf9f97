"""`bazaruto operations`, `run`, `runs`, `show`, `logs` and `backups`: what is launched, and what became of it."""

from __future__ import annotations

import enum
import json
import shlex
from collections.abc import Callable
from typing import Annotated, Any

import typer

from bazaruto import config
from bazaruto.control import catalog, render, tables
from bazaruto.control.client import Client, RefusedError, UnreachableError, connect

EXIT_CODES = {
    "succeeded": 0,
    "failed": 1,
    "rejected": 2,
    "canceled": 3,
    "timed_out": 3,
    "interrupted": 4,
}
UNKNOWN = 4
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Output(enum.StrEnum):
    """How a result is shown."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How the result is shown.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
LimitOption = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (operations, run, runs, show, logs, backups):
        app.command(rich_help_panel="Runs")(command)


def operations(output: OutputOption = Output.TABLE) -> None:
    """List what can be launched."""
    answer = _client().get("/api/v1/operations")
    _show_list(output, answer["items"], {"OPERATION": "name", "EFFECT": "effect", "WHAT IT DOES": "summary"})


def run(  # noqa: PLR0913, PLR0917 - its options are the contract's
    operation: Annotated[str, typer.Argument(help="What to run; `bazaruto operations` lists them.")],
    environment: Annotated[str, typer.Option("--environment", "-e", help="Where.")] = "local",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="KEY=VALUE", help="Again for each; lists as a,b.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would change; change nothing.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what changes in files.")] = False,
    limit: Annotated[str | None, typer.Option(help="Only these hosts or groups.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")] = None,
    confirm: Annotated[str | None, typer.Option(metavar="ENV", help="The environment again.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Launch an operation, follow it, and exit with its truth: 0 succeeded, 1 failed, 2 refused, 3 canceled or
    timed out, 4 interrupted or unknown.
    """
    given = _pairs(parameter or [])
    request: dict[str, Any] = {
        "operation": operation,
        "environment": environment,
        "check": check,
        "diff": diff,
        "limit": limit,
        "reason": reason,
        "confirm": confirm,
    }
    try:
        client = _client()
        request["parameters"] = _typed(client, operation, given)
        launched = client.launch(request)
    except UnreachableError as error:
        by_hand = _by_hand({**request, "parameters": given})
        raise UnreachableError(f"{error}{by_hand}") from error
    if detach:
        _show_detached(output, launched)
        return
    raise typer.Exit(EXIT_CODES.get(_follow(client, launched, output)["status"], UNKNOWN))


def runs(
    status: Annotated[str | None, typer.Option(help="Only these.")] = None,
    operation: Annotated[str | None, typer.Option(help="Only these.")] = None,
    environment: Annotated[str | None, typer.Option("--environment", "-e", help="Only these.")] = None,
    limit: LimitOption = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """List runs, newest first."""
    found = _client().items("/api/v1/runs", limit, status=status, operation=operation, environment=environment)
    columns = {
        "RUN": "id",
        "OPERATION": "operation",
        "ENVIRONMENT": "environment",
        "STATUS": "status",
        "TOOK": "took",
        "BY": "requested_by",
    }
    _show_list(output, found, columns, took=tables.took)


def show(run: RunArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one run: what was asked, its life, its result."""
    found = _client().get(_path(run))
    if output is Output.JSON:
        _print_json(found)
        return
    screen = render.console()
    hidden = ("result", "changes", "error", "hosts")
    screen.print(tables.facts({name: value for name, value in found.items() if name not in hidden}))
    screen.print()
    screen.print(tables.listing(found["changes"], {"AT": "at", "STATUS": "status", "REASON": "reason"}))
    screen.print()
    if found["hosts"]:
        screen.print(tables.facts(found["hosts"]))
    render.end_of_run(screen, found)


def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print a run's log as Ansible printed it, or its events as JSON."""
    client = _client()
    collected: list[dict[str, Any]] = []
    for step in client.follow(_checked(run)):
        if output is Output.JSON:
            collected += step.events
        else:
            for line in render.log_lines(step.events):
                typer.echo(line)
        if not follow and not step.events:
            break
    if output is Output.JSON:
        _print_json({"events": collected, "next": collected[-1]["seq"] if collected else 0})


def backups(limit: LimitOption = 20, output: OutputOption = Output.TABLE) -> None:
    """List backups, newest first, and what is proven of each."""
    found = _client().items("/api/v1/backups", limit)
    columns = {"BACKUP": "name", "STATUS": "status", "SIZE": "size", "VERIFIED, OR WHY NOT": "proven"}
    _show_list(output, found, columns, size=_size, proven=_proven)


def _follow(client: Client, launched: dict[str, Any], output: Output) -> dict[str, Any]:
    """Show a run until it has ended; the run then. Who interrupts this leaves the run running."""
    last = launched
    screen = render.console(stderr=output is Output.JSON)
    screen.quiet = output is Output.JSON
    try:
        with render.Progress(screen) as progress:
            for step in client.follow(launched["id"]):
                last = step.run
                progress.show(step.run, step.events)
    except (KeyboardInterrupt, BrokenPipeError):  # also whoever read this may have stopped reading
        typer.echo(f"The run goes on: `bazaruto logs -f {launched['id']}` follows it.", err=True)
        raise typer.Exit(UNKNOWN) from None
    except (UnreachableError, RefusedError) as error:
        raise UnreachableError(
            f"{error} The run goes on: `bazaruto show {launched['id']}` says how it ended."
        ) from error
    if output is Output.JSON:
        _print_json(last)
    else:
        render.end_of_run(screen, last)
    return last


def _client() -> Client:
    return connect(config.load())


def _path(run: str) -> str:
    return f"/api/v1/runs/{_checked(run)}"


def _checked(run: str) -> str:
    """A run's id; anything else would be another path."""
    if not run.replace("-", "").isalnum() or not run.isascii():
        raise RefusedError(f"{run} is no run's id: `bazaruto runs` lists them.")
    return run


def _pairs(words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise RefusedError(f"-p {word} is not KEY=VALUE.")
        if name in pairs:
            raise RefusedError(f"-p {name}=… is given twice.")
        pairs[name] = value
    return pairs


def _typed(client: Client, operation: str, given: dict[str, str]) -> dict[str, Any]:
    """The values as their parameters' types say; what cannot be read so goes as text, and is refused by name."""
    if not given:
        return {}
    known = client.items("/api/v1/operations", 10_000)
    if operation not in {each["name"] for each in known}:
        return dict(given)  # the launch names this too, with every other wrong field
    schema = client.get(f"/api/v1/operations/{operation}")["parameters"]["properties"]
    return {name: _value(schema.get(name, {}), text) for name, text in given.items()}


def _value(schema: dict[str, Any], text: str) -> Any:
    """What a text on the command line stands for; the text itself when it stands for nothing of its type."""
    if schema.get("type") == "array" and not text.lstrip().startswith("["):
        return [_value(schema.get("items", {}), item.strip()) for item in text.split(",") if item.strip()]
    read = READERS.get(str(schema.get("type")), str)
    try:
        return read(text)
    except ValueError:
        return text


def _by_hand(request: dict[str, Any]) -> str:
    """The equivalent command, when the control plane cannot be asked; secrets are left out."""
    from bazaruto.control import requests

    settings = config.load()
    try:
        catalogue = catalog.load(settings.content_directory)
        operation = catalogue.operations[request["operation"]]
    except (catalog.CatalogueError, KeyError):
        return ""  # without a usable catalogue there is no command to offer
    known = {name: text for name, text in request["parameters"].items() if name in operation.parameters}
    values = {name: _value(operation.parameters[name].json_schema(), text) for name, text in known.items()}
    command = requests.command(operation, requests.LaunchRequest.model_construct(**{**request, "parameters": values}))
    directory = shlex.quote(str(catalogue.directory))
    return f" The same by hand:\n  cd {directory} && {command}"


def _show_detached(output: Output, launched: dict[str, Any]) -> None:
    if output is Output.JSON:
        _print_json(launched)
    else:
        typer.echo(f"Accepted as run {launched['id']}; `bazaruto logs -f {launched['id']}` follows it.")


def _size(backup: dict[str, Any]) -> str:
    return "-" if backup["size_bytes"] is None else tables.size(backup["size_bytes"])


def _proven(backup: dict[str, Any]) -> str:
    return str(backup["verified_at"] or backup["status_reason"] or "no drill has restored it yet")


def _show_list(
    output: Output, items: list[dict[str, Any]], columns: dict[str, str], **derived: Callable[[dict[str, Any]], str]
) -> None:
    """As JSON just as it came; as a table with what is derived from each item beside it."""
    if output is Output.JSON:
        _print_json({"items": items, "next": None})
    elif items:
        rows = [{**item, **{name: make(item) for name, make in derived.items()}} for item in items]
        render.console().print(tables.listing(rows, columns))
    else:
        typer.echo("There are none.")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _truth(text: str) -> bool:
    if text.lower() not in TRUTHS:
        raise ValueError(text)
    return TRUTHS[text.lower()]


READERS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": _truth,
    "object": json.loads,
    "array": json.loads,
}
