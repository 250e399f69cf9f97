"""The equivalent ansible-playbook command, for when the control plane cannot be asked; secrets are left out."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bazaruto import config
from bazaruto.control.cli.parameters import Given, value

if TYPE_CHECKING:
    from bazaruto.control.catalog import Catalogue, Operation


def of_launch(request: Mapping[str, Any], given: Given) -> str:
    """A sentence and the command, or why there would be none; empty without a usable catalogue."""
    return _told(config.load(), request, given)


def of_retry(run: str, wanted: Mapping[str, Any], given: Given) -> str:
    """The same for a retry, from what lies in the run's directory; empty when that is not here."""
    from pydantic import ValidationError

    from bazaruto.control import requests, retrying, runs
    from bazaruto.control.engine.rundir import RunDirectory
    from bazaruto.redaction import HIDDEN

    settings = config.load()
    directory = RunDirectory(settings.home / "control" / "runs" / run)
    try:
        record, outcome = directory.spec().record, directory.outcome()
        if outcome is None:
            return ""
        ended = {"status": outcome.status, "hosts": outcome.hosts, "left_running": outcome.left_running}
        before = runs.of_row({**record, **ended})
        hidden = dict.fromkeys(name for name, shown in before.parameters.items() if shown == HIDDEN)
        again = requests.RetryRequest.model_construct(**{**wanted, "parameters": hidden})
        values = retrying.once_more(before, hidden, again)
    except (OSError, KeyError, TypeError, ValidationError):
        return ""  # the record is not here, or of another version: the control plane has to be asked
    except runs.ClashError as error:
        return f" {error}"
    return _told(
        settings, values, given, {name: values["parameters"][name] for name in before.parameters.keys() - hidden}
    )


def _told(
    settings: config.Settings, request: Mapping[str, Any], given: Given, before: Mapping[str, Any] | None = None
) -> str:
    """The command for what is asked, its parameters those of a run before and the texts that are given now."""
    from bazaruto.control import catalog, requests

    try:
        catalogue = catalog.load(settings.content_directory)
    except catalog.CatalogueError:
        return ""  # without a usable catalogue there is no command to offer
    operation = catalogue.operations.get(request["operation"])
    if operation is None:
        return f" There is no operation {request['operation']}."
    secret = [name for name in given if name in operation.parameters and operation.parameters[name].secret]
    open_ones = {name: _read(operation, name, text or "") for name, text in given.items() if name not in secret}
    asked = {**request, "parameters": {**(before or {}), **open_ones}}
    if wrong := _wrong(catalogue, asked, secret):
        return f" It would refuse this: {wrong}"
    command = requests.command(operation, requests.LaunchRequest.model_construct(**asked))
    return f" The same by hand{_hint(operation, secret)}:\n  {_surrounded(settings, catalogue, command)}"


def _read(operation: Operation, name: str, text: str) -> Any:
    return value(operation.parameters[name].json_schema() if name in operation.parameters else {}, text)


def _wrong(catalogue: Catalogue, asked: Mapping[str, Any], secret: list[str]) -> str:
    """What the control plane would refuse, as far as can be said without the secrets and the hosts."""
    from bazaruto.control import requests

    left_out = {f"parameters.{name}" for name in secret}
    try:
        requests.check_request(catalogue, asked, lambda *_: None)
    except requests.RefusedRequest as error:
        return "; ".join(f"{field}: {message}" for field, message in error.errors if field not in left_out)
    return ""


def _hint(operation: Operation, secret: list[str]) -> str:
    if not secret:
        return ""
    lines = ", ".join(f"`{operation.parameters[name].variable}: …`" for name in secret)
    return f", after `-e @FILE` with what is secret in a file of mode 0600, {lines}"


def _surrounded(settings: config.Settings, catalogue: Catalogue, command: str) -> str:
    """The command as it can be pasted into any shell: where it has to run, by which program, for which home."""
    directory = catalogue.directory.absolute()
    own = Path(sys.executable).parent / "ansible-playbook"
    if own.is_file() and shutil.which("ansible-playbook") != str(own):
        command = shlex.quote(str(own)) + command.removeprefix("ansible-playbook")
    home = "" if settings.home == directory / "var" else f"BAZARUTO_HOME={shlex.quote(str(settings.home))} "
    return f"cd {shlex.quote(str(directory))} && {home}{command}"
