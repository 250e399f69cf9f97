"""The command line of the control plane."""

from __future__ import annotations

import sys

import typer

from bazaruto import config
from bazaruto.control.cli import access, approvals, audit, launch, local, operations, retention, runs, server
from bazaruto.control.client_errors import RefusedError, UnreachableError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Operate Bazaruto.")
for commands in (local, operations, launch, runs, approvals, access, audit, retention, server):
    commands.register(app)


def main() -> None:
    """The entry point `bazaruto`; an expected failure is a sentence on the standard error."""
    try:
        _refuse_what_is_no_text(sys.argv[1:])
        app()
    except (RefusedError, config.SettingsError) as error:
        _end(str(error), 2)
    except UnreachableError as error:
        _end(str(error), 4)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read this has stopped reading; nobody is left to tell
        sys.exit(1)


def _refuse_what_is_no_text(words: list[str]) -> None:
    """Bytes that are not UTF-8 reach Python as halves of characters, which nothing further on can take."""
    for word in words:
        if not word.isascii() and any("\ud800" <= character <= "\udfff" for character in word):
            raise RefusedError(f"{word!a} is not UTF-8.")


def _end(sentence: str, code: int) -> None:
    typer.echo(sentence, err=True)
    sys.exit(code)
