"""`bazaruto run` and `retry`: what is launched, and followed to its end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bazaruto.control.cli import asking, by_hand, completion, following, parameters
from bazaruto.control.cli.printing import Output, OutputOption, print_json
from bazaruto.control.client_errors import UnreachableError

if TYPE_CHECKING:
    from bazaruto.control.client import Client

PATIENCE_SECONDS = 20.0  # how long a launch that was sent, and not answered, is sent again
AGAIN_SECONDS = 0.5
HIDDEN = "***"

ParameterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter",
        "-p",
        metavar="KEY=VALUE",
        help="Again for each; lists as a,b. A secret KEY alone is asked for, or read from the standard input.",
        autocompletion=completion.parameters,
    ),
]
ReasonOption = Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")]
ConfirmOption = Annotated[
    str | None, typer.Option(metavar="ENV", help="The environment again.", autocompletion=completion.environments)
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")]
KeyOption = Annotated[
    str | None, typer.Option(metavar="KEY", help="The same key again is the same run, not a second one.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (run, retry):
        app.command(rich_help_panel="Runs")(command)


def run(  # noqa: PLR0913, PLR0917 - its options are the contract's
    operation: Annotated[
        str,
        typer.Argument(help="What to run; `bazaruto operations` lists them.", autocompletion=completion.operations),
    ],
    environment: Annotated[
        str, typer.Option("--environment", "-e", help="Where.", autocompletion=completion.environments)
    ] = "local",
    parameter: ParameterOption = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would change; change nothing.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what changes in files.")] = False,
    limit: Annotated[str | None, typer.Option(help="Only these hosts or groups.")] = None,
    reason: ReasonOption = None,
    confirm: ConfirmOption = None,
    idempotency_key: KeyOption = None,
    detach: DetachOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Launch an operation, follow it, and exit with its truth: 0 succeeded, 1 failed, 2 refused or rejected,
    3 canceled or timed out, 4 interrupted or unknown.
    """
    request: dict[str, Any] = {
        "operation": operation,
        "environment": environment,
        "check": check,
        "diff": diff,
        "limit": limit,
        "reason": reason,
        "confirm": confirm,
    }
    carry_out(request, parameter or [], idempotency_key, output, detach=detach)


def carry_out(  # noqa: PLR0913 - what every launch has
    request: dict[str, Any],
    parameter: list[str],
    idempotency_key: str | None,
    output: Output,
    *,
    detach: bool,
    told: following.Told | None = None,
) -> None:
    """Launch what is asked for with these -p, follow it, tell its end in this way, and leave with its exit code."""
    given, operation = parameters.given(parameter), request["operation"]
    try:
        client = asking.client()
        request["parameters"] = parameters.typed(given, _rules(client, operation) if given else {})
        launched = _launched(lambda key: client.launch(request, key), idempotency_key)
    except UnreachableError as error:
        if error.heard:
            raise
        raise UnreachableError(f"{error}{by_hand.of_launch(request, given)}") from error
    _show(client, launched, output, detach=detach, told=told)


def retry(  # noqa: PLR0913, PLR0917 - those of `run` that can differ
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", autocompletion=completion.runs_to_retry)],
    parameter: ParameterOption = None,
    reason: ReasonOption = None,
    confirm: ConfirmOption = None,
    idempotency_key: KeyOption = None,
    detach: DetachOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Launch a run again that did not succeed, on the hosts that failed, and follow it as `run` does.

    What was given then is given again; secrets are not kept, and are asked for.
    """
    path, given = asking.path(run), parameters.given(parameter or [])
    request: dict[str, Any] = {"reason": reason, "confirm": confirm}
    try:
        client = asking.client()
        before = client.get(path)
        rules = _rules(client, before["operation"])
        hidden = [name for name, value in before["parameters"].items() if value == HIDDEN]
        again = {name: None for name in hidden if parameters.is_secret(rules.get(name, {}))}
        request["parameters"] = parameters.typed({**again, **given}, rules)
        launched = _launched(lambda key: client.retry(run, request, key), idempotency_key)
    except UnreachableError as error:
        if error.heard:
            raise
        raise UnreachableError(f"{error}{by_hand.of_retry(run, request, given)}") from error
    _show(client, launched, output, detach=detach)


def _rules(client: Client, operation: str) -> dict[str, Any]:
    """The JSON Schema of each of an operation's parameters; of an unknown operation none: its launch says that."""
    known = client.items("/api/v1/operations", 10_000)
    if operation not in {each["name"] for each in known}:
        return {}
    rules: dict[str, Any] = client.get(f"/api/v1/operations/{operation}")["parameters"]["properties"]
    return rules


def _launched(launch: Callable[[str], dict[str, Any]], key: str | None) -> dict[str, Any]:
    """The run, asked for with a key until there is an answer: so it is launched once, whatever gets lost on the way."""
    key = key or secrets.token_hex(16)
    patient_until, heard = time.monotonic() + PATIENCE_SECONDS, False
    unknown = (
        f"Whether the run was accepted is not known: the same with `--idempotency-key {key}` starts no second one."
    )
    try:
        while True:
            try:
                return launch(key)
            except UnreachableError as error:
                heard = heard or error.heard
                if not heard:
                    raise
                if time.monotonic() > patient_until:
                    raise UnreachableError(f"{error} {unknown}", heard=True) from error
                time.sleep(AGAIN_SECONDS)
    except KeyboardInterrupt:
        raise UnreachableError(unknown, heard=True) from None


def _show(
    client: Client,
    launched: dict[str, Any],
    output: Output,
    *,
    detach: bool,
    told: following.Told | None = None,
) -> None:
    """The run to its end, or how to follow it; leaves with its exit code."""
    if not detach:
        ended = following.follow(client, launched, output, told)
        raise typer.Exit(following.EXIT_CODES.get(ended["status"], following.UNKNOWN))
    if output is Output.JSON:
        print_json(launched)
    else:
        typer.echo(f"Accepted as run {launched['id']}; `bazaruto logs -f {launched['id']}` follows it.")
