"""The command line of the control plane."""

from __future__ import annotations

import typer

from bazaruto.control.cli import local

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
local.register(app)


def main() -> None:
    """The entry point `bazaruto`."""
    app()
