"""API and command line are two faces of one thing: what one can do the other can, under the same names."""

from __future__ import annotations

from typing import Any

import click
import pytest
import typer.main

from bazaruto.control.api import ENDPOINTS
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.cli import app

RUN, TOKENS, AUDIT, KEYS = "/api/v1/runs/{id}", "/api/v1/tokens", "/api/v1/audit", "/api/v1/keys"
COMMANDS = {
    "GET /api/v1/operations": "operations",
    "GET /api/v1/operations/{name}": "operations",
    "GET /api/v1/runs": "runs",
    "POST /api/v1/runs": "run",
    f"GET {RUN}": "show",
    f"GET {RUN}/events": "logs",
    f"GET {RUN}/stdout": "logs",
    f"POST {RUN}/cancel": "cancel",
    f"POST {RUN}/retry": "retry",
    f"POST {RUN}/waive": "waive",
    f"POST {RUN}/approve": "approve",
    f"POST {RUN}/reject": "reject",
    "GET /api/v1/backups": "backups",
    f"GET {AUDIT}": "audit list",
    f"GET {AUDIT}/export": "audit export",
    f"GET {AUDIT}/verification": "audit verify",
    f"POST {AUDIT}/rotation": "audit accept-rotation",
    f"GET {KEYS}": "keys list",
    f"POST {KEYS}/{{name}}/replace": "keys replace",
    "GET /api/v1/whoami": "whoami",
    f"GET {TOKENS}": "token list",
    f"POST {TOKENS}": "token create",
    f"POST {TOKENS}/{{id}}/revoke": "token revoke",
}
NO_COMMAND = {
    "GET /livez": "for balancers and systemd",
    "GET /readyz": "for balancers; `status` asks it",
    "GET /healthz": "for monitoring; `status` says what runs",
    "GET /healthz/detailed": "for monitoring; `status` says what runs",
    "GET /metrics": "for Prometheus",
    "GET /openapi.json": "for programs",
    "GET /api/v1/environments": "offered by TAB, and named by a launch that gives another one",
}
NO_ENDPOINT = {
    **dict.fromkeys(("up", "down", "status", "env"), "processes of this machine, also when the API does not run"),
    **dict.fromkeys(("serve", "worker", "migrate", "reindex"), "are the control plane themselves"),
    **dict.fromkeys(("login", "logout"), "a file of this user"),
    "token admin": "the way in by file permission, when no token is left",
    "retention": "launches the operation of this name, as `run retention` does",
}
NO_OPTION = {
    "cursor": "the command asks for all pages itself",
    "limit": "likewise, where there is no option for it",
    "last-event-id": "the command resumes by itself",
    "offset": "likewise",
    "plan": "the command shows a plan and then names that one",
}


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def test_every_endpoint_has_a_command_or_a_reason_and_every_command_an_endpoint_or_a_reason() -> None:
    endpoints = {_name(endpoint) for endpoint in ENDPOINTS}
    assert endpoints == COMMANDS.keys() | NO_COMMAND.keys()
    assert not COMMANDS.keys() & NO_COMMAND.keys()
    assert set(_commands(typer.main.get_command(app))) == set(COMMANDS.values()) | NO_ENDPOINT.keys()


@pytest.mark.parametrize("endpoint", [each for each in ENDPOINTS if _name(each) in COMMANDS], ids=_name)
def test_every_field_of_an_endpoint_is_an_option_of_the_same_name(endpoint: Endpoint) -> None:
    command = _commands(typer.main.get_command(app))[COMMANDS[_name(endpoint)]]
    options = {word.lstrip("-") for parameter in command.params for word in (*parameter.opts, parameter.name or "")}
    for model in (endpoint.body, endpoint.query, endpoint.headers):
        for name, field in model.model_fields.items() if model else ():
            said = (field.alias or name).lower().replace("_", "-")
            once = said.removesuffix("s")  # what is a list there is an option that can be repeated here
            assert {said, once} & options or said in NO_OPTION, f"{COMMANDS[_name(endpoint)]} has no --{said}"


def _commands(group: Any, before: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= _commands(command, f"{before}{name} ") if hasattr(command, "commands") else {before + name: command}
    return found
