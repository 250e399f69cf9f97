"""`bazaruto audit` and `bazaruto keys`: who changed what, and whether that can be believed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from bazaruto import config
from bazaruto.control.cli import asking, completion
from bazaruto.control.cli.printing import Output, OutputOption, print_json, show_list

VERIFY_SECONDS = 3600.0
ReasonOption = Annotated[str, typer.Option(help="Why, for whoever reads it later.")]
entries = typer.Typer(no_args_is_help=True, help="Read and prove the record of every change.")
keys = typer.Typer(no_args_is_help=True, help="The control node's keys.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for name, command in (
        ("list", list_entries),
        ("verify", verify),
        ("export", export),
        ("accept-rotation", accept_rotation),
    ):
        entries.command(name)(command)
    keys.command("list")(list_keys)
    keys.command("replace")(replace)
    app.add_typer(entries, name="audit", rich_help_panel="Audit")
    app.add_typer(keys, name="keys", rich_help_panel="Audit")


def list_entries(  # noqa: PLR0913, PLR0917 - each is a filter
    actor: Annotated[str | None, typer.Option(help="Only what they did.")] = None,
    action: Annotated[str | None, typer.Option(help="Only these: run.launch, token.create, …")] = None,
    run: Annotated[str | None, typer.Option(help="Only of this run.", autocompletion=completion.runs)] = None,
    environment: Annotated[
        str | None, typer.Option("--environment", "-e", help="Only there.", autocompletion=completion.environments)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """List entries, newest first."""
    wanted = {"actor": actor, "action": action, "run": run, "environment": environment}
    found = asking.client().items("/api/v1/audit", limit, **wanted)
    columns = {
        "SEQ": "seq", "AT": "at", "ACTOR": "actor", "FROM": "address", "ACTION": "action", "OUTCOME": "outcome",
        "WHAT": "what",
    }  # fmt: skip
    show_list(output, found, columns, what=_what)


def verify(output: OutputOption = Output.TABLE) -> None:
    """Prove every entry, against the key and against the heads outside of the database: 0 when all is as it was
    written, 1 when it is not; the first entry that is not is named.
    """
    from bazaruto.control.client import connect

    proof = connect(config.load(), VERIFY_SECONDS).get("/api/v1/audit/verification")
    if output is Output.JSON:
        print_json(proof)
    else:
        for line in _told(proof):
            typer.echo(line)
    if not proof["intact"]:
        raise typer.Exit(1)


def export(
    since: Annotated[int, typer.Option(min=1, metavar="SEQ", help="The entry to begin with.")] = 1,
) -> None:
    """Print all entries, oldest first, each a line of JSON."""
    for part in asking.client().parts("/api/v1/audit/export", since=since):
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


def accept_rotation(reason: ReasonOption, output: OutputOption = Output.TABLE) -> None:
    """Begin a new file of heads, since the one before is gone: what that could have proven is lost, and said so."""
    entry = asking.client().post("/api/v1/audit/rotation", {"reason": reason})
    if output is Output.JSON:
        print_json(entry)
    else:
        typer.echo(f"A new file begins with entry {entry['seq']}: changes are made again.")


def list_keys(output: OutputOption = Output.TABLE) -> None:
    """List the control node's keys, and whether they can be used."""
    columns = {"KEY": "name", "FINGERPRINT": "fingerprint", "SINCE": "since", "USABLE": "usable"}
    found = asking.client().items("/api/v1/keys", 1)
    show_list(output, found, columns, usable=lambda key: key["problem"] or "yes")


def replace(
    name: Annotated[str, typer.Argument(help="sealing.key or audit.key", autocompletion=completion.keys)],
    reason: ReasonOption,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a key up for a new one. The old one is kept beside it, where it is not lost."""
    replaced = asking.client().post(f"/api/v1/keys/{asking.word(name)}/replace", {"reason": reason})
    if output is Output.JSON:
        print_json(replaced)
    else:
        typer.echo(f"{replaced['name']} is a new key: {replaced['fingerprint']}.")


def _what(entry: Any) -> str:
    """What an entry is about, in one line."""
    about = (entry["operation"], entry["environment"] and f"in {entry['environment']}", entry["target"])
    return " ".join([*(str(each) for each in about if each), *([f"({entry['detail']})"] if entry["detail"] else [])])


def _told(proof: dict[str, Any]) -> list[str]:
    since = f" since {proof['since']}" if proof["since"] else ""
    counted = f"{proof['entries']} entries{since}, {proof['heads_compared']} compared with heads.log"
    found = [f"entry {finding['seq']}: {finding['what']}" for finding in proof["findings"]]
    if proof["first"]:
        verdict = f"The audit is NOT as it was written. The first entry to look at is {proof['first']['seq']}."
    else:
        verdict = "The audit is as it was written." if proof["intact"] else "The audit cannot be proven."
    unproven = [f"not provable from here: {each}" for each in proof["unproven"]]
    return [*found, *proof["problems"], *unproven, f"{counted}. {verdict}"]
