"""`bazaruto token`, `login`, `logout` and `whoami`: who may ask, and as whom this user does."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from bazaruto import config
from bazaruto.control.cli import asking, completion, server
from bazaruto.control.cli.printing import Output, OutputOption, print_json, show_list
from bazaruto.control.client_errors import RefusedError

EVERY = 1_000_000  # more tokens than there are
PANEL = "Access"
tokens = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (login, logout, whoami):
        app.command(rich_help_panel=PANEL)(command)
    tokens.command("create")(create)
    tokens.command("list")(list_all)
    tokens.command("revoke")(revoke)
    tokens.command("admin")(admin)
    app.add_typer(tokens, name="token", rich_help_panel=PANEL)


def create(  # noqa: PLR0913, PLR0917 - its options are the contract's
    name: Annotated[str, typer.Argument(help="Whose it is: several tokens of one name are one person.")],
    role: Annotated[str, typer.Option(help="viewer, operator, approver or admin.", autocompletion=completion.roles)],
    environment: Annotated[
        list[str] | None,
        typer.Option("--environment", "-e", help="Only there; again for each.", autocompletion=completion.environments),
    ] = None,
    operation: Annotated[
        list[str] | None, typer.Option(help="Only this; again for each.", autocompletion=completion.operations)
    ] = None,
    expires: Annotated[str | None, typer.Option(metavar="30d", help="After how long: 90m, 12h, 30d.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a token and print it, this once, alone on the standard output."""
    wanted = {"name": name, "role": role, "environments": environment, "operations": operation, "expires": expires}
    made = asking.client().post("/api/v1/tokens", {key: value for key, value in wanted.items() if value})
    if output is Output.JSON:
        print_json(made)
        return
    typer.echo(made["token"])
    until = f"until {made['expires_at']}" if made["expires_at"] else "until it is revoked"
    typer.echo(f"It is shown only now, and works {until}: `bazaruto token revoke {made['id']}`.", err=True)


def list_all(output: OutputOption = Output.TABLE) -> None:
    """List tokens, newest first; nobody can be shown their secrets."""
    columns = {
        "TOKEN": "id", "NAME": "name", "ROLE": "role", "STATUS": "status", "ONLY FOR": "limits",
        "EXPIRES": "expires_at", "LAST USED": "last_used_at",
    }  # fmt: skip
    found = asking.client().items("/api/v1/tokens", EVERY)
    show_list(output, found, columns, limits=lambda token: _limits(token) or "everything")


def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id; `bazaruto token list` has it.")],
    reason: Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """End a token at once."""
    if not token.isascii() or not token.isalnum():
        raise RefusedError("That is no token's id: `bazaruto token list` has them. The token itself is not needed.")
    revoked = asking.client().post(f"/api/v1/tokens/{token}/revoke", {"reason": reason})
    if output is Output.JSON:
        print_json(revoked)
    else:
        typer.echo(f"The token {revoked['id']} of {revoked['name']} works no longer.")


def admin(output: OutputOption = Output.TABLE) -> None:
    """Write a new admin token into control/admin.token, and revoke the one it replaces.

    For whoever may write there, on a control node; no token is needed.
    """
    from bazaruto.control import admin_token

    with server.refusals():
        replaced = admin_token.replace(server.settings())
    if output is Output.JSON:
        print_json(replaced)
    else:
        ended = f" {replaced['revoked']} works no longer." if replaced["revoked"] else ""
        typer.echo(f"The token {replaced['id']} is in {replaced['path']}.{ended}")


def login(
    url: Annotated[str | None, typer.Option(help="Of the control plane; without it, this machine's.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep a token for this user's commands; it is asked for without echo, or read from the standard input."""
    from bazaruto.control import login as logins
    from bazaruto.control.client import here, trusted

    settings = config.load()
    address = logins.checked_url(url or here(settings))
    token = _token()
    identity = trusted(settings, address, token).get("/api/v1/whoami")
    file = logins.write(logins.Login(address, token))
    if output is Output.JSON:
        print_json({**identity, "url": address})
    else:
        typer.echo(f"Logged in to {address} as {identity['name']} ({identity['role']}); the token is in {file}.")


def logout(output: OutputOption = Output.TABLE) -> None:
    """Forget the token that `login` kept. It works until it is revoked."""
    from bazaruto.control import login as logins

    removed = logins.remove()
    if output is Output.JSON:
        print_json({"removed": removed, "path": str(logins.path())})
    else:
        typer.echo(f"{logins.path()} is gone." if removed else "Nobody is logged in.")


def whoami(output: OutputOption = Output.TABLE) -> None:
    """Say whose token the commands use, where, and what it is good for."""
    from bazaruto.control import login as logins
    from bazaruto.control import render, tables

    client = asking.client()
    origin = str(logins.path()) if logins.read() else "control/admin.token"
    found = {**client.get("/api/v1/whoami"), "url": client.url, "from": origin}
    if output is Output.JSON:
        print_json(found)
    else:
        shown = {**found, "environments": found["environments"] or "all", "operations": found["operations"] or "all"}
        render.console().print(tables.facts(shown))


def _token() -> str:
    """One token, never from the command line, which everybody on the machine can read."""
    from bazaruto.control.access import TOKEN

    given = typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    token = given.strip()
    if not TOKEN.fullmatch(token):
        raise RefusedError("That is no token, or only a part of one: it begins with bzr_ and is 60 characters long.")
    return str(token)


def _limits(token: Any) -> str:
    return ", ".join([*token["environments"], *token["operations"]])
