"""What is asked of the control plane: checked as a whole before anything starts, every wrong field named at once."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from bazaruto.control.catalog import Catalogue, Effect, Operation, WrongParameters
from bazaruto.control.engine import untemplated

LIMIT_PATTERN = r"^[A-Za-z0-9_*?!&\[][A-Za-z0-9_.:,*?!&\[\]-]*$"  # no option, no @file
TEMPLATE = re.compile(r"\{[{%#]")
LONGEST_FIELD = 200  # characters of a wrong field's name that an answer repeats

# What is wrong with a limit of an operation in an environment: a field and why; None when it leaves some host.
LimitCheck = Callable[[Operation, str, str], tuple[str, str] | None]


class LaunchRequest(BaseModel):
    """What to run. Everything else about a run follows from the catalogue."""

    model_config = ConfigDict(extra="forbid", strict=True)

    operation: str = Field(min_length=1, max_length=63)
    environment: str = Field(min_length=1, max_length=63)
    parameters: dict[str, Any] = {}
    check: bool = Field(default=False, description="Say what would change, and change nothing")
    diff: bool = Field(default=False, description="Show what changes in files")
    limit: str | None = Field(default=None, max_length=1024, pattern=LIMIT_PATTERN, description="Hosts or groups")
    reason: str | None = Field(default=None, max_length=1024, description="Why, for whoever reads it later")
    confirm: str | None = Field(
        default=None, max_length=63, description="The environment again, for what may destroy data"
    )


class CancelRequest(BaseModel):
    """An end before the end."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str | None = Field(default=None, max_length=1024, description="Why, for whoever reads it later")


class RetryRequest(BaseModel):
    """The same once more, on the hosts that failed. What was given then is given again; secrets are not kept."""

    model_config = ConfigDict(extra="forbid", strict=True)

    parameters: dict[str, Any] = Field(default={}, description="The secret ones again")
    reason: str | None = Field(default=None, max_length=1024, description="Why, for whoever reads it later")
    confirm: str | None = Field(
        default=None, max_length=63, description="The environment again, for what may destroy data"
    )


class WaiveRequest(BaseModel):
    """Going on although hosts could not be asked whether they still work for a run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(min_length=3, max_length=1024, description="Why that is safe")


class ApproveRequest(BaseModel):
    """A yes to what somebody else has planned."""

    model_config = ConfigDict(extra="forbid", strict=True)

    plan: str | None = Field(
        default=None, max_length=63, description="The plan run that was looked at: approve that, and no other"
    )
    reason: str | None = Field(default=None, max_length=1024, description="Why, for whoever reads it later")


class RejectRequest(BaseModel):
    """A no to what somebody has planned."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(min_length=1, max_length=1024, description="Why, for whoever planned it")


class RefusedRequest(Exception):
    """A launch that cannot be accepted; every wrong field is named."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors))
        self.errors = errors


def check_request(
    catalogue: Catalogue, values: Mapping[str, Any], limits: LimitCheck
) -> tuple[Operation, LaunchRequest]:
    """What is asked for, by whatever client; raises RefusedRequest naming every wrong field at once."""
    errors: list[tuple[str, str]] = []
    request = None
    try:
        request = LaunchRequest.model_validate(values)
    except ValidationError as error:
        errors = [_field_error(item) for item in error.errors()]
    malformed = {field.partition(".")[0] for field, _ in errors}
    well_formed = {name: value for name, value in values.items() if name not in malformed}
    operation = catalogue.operations.get(well_formed.get("operation", ""))
    if operation is None and "operation" in well_formed:
        errors.append(("operation", "there is no such operation; `bazaruto operations` lists them"))
    environment, limit = well_formed.get("environment"), well_formed.get("limit")
    known = catalogue.environments()
    if environment is not None and environment not in known:
        errors.append(("environment", f"there is no such environment; there are: {', '.join(known) or 'none'}"))
    if operation is not None:
        errors += _operation_errors(operation, well_formed, malformed)
        wrong = limits(operation, environment, limit) if limit is not None and environment in known else None
        errors += [wrong] if wrong else []
    if errors or operation is None or request is None:
        raise RefusedRequest(errors)
    return operation, request


def _operation_errors(operation: Operation, values: Mapping[str, Any], malformed: set[str]) -> list[tuple[str, str]]:
    errors: list[tuple[str, str]] = []
    try:
        if "parameters" not in malformed:
            operation.check(values.get("parameters", {}))
    except WrongParameters as error:
        errors += [(f"parameters.{wrong.name}"[:LONGEST_FIELD], wrong.message) for wrong in error.wrong]
    wanted = values.get("environment")
    if operation.effect is Effect.DESTROY and "confirm" not in malformed and wanted != values.get("confirm"):
        errors.append(("confirm", f'must be "{wanted}": {operation.name} may destroy data there'))
    return errors


def _field_error(error: ErrorDetails) -> tuple[str, str]:
    field = ".".join(map(str, error["loc"])) or "body"
    return field[:LONGEST_FIELD], "there is no such field" if error["type"] == "extra_forbidden" else error["msg"]


def command(operation: Operation, request: LaunchRequest) -> str:
    """The equivalent ansible-playbook command; secrets are left out."""
    words = ["ansible-playbook", "-i", f"inventories/{request.environment}", f"playbooks/{operation.playbook}"]
    words += ["--check"] if request.check else []
    words += ["--diff"] if request.diff else []
    words += ["--limit", request.limit] if request.limit else []
    words += ["-e", f"confirm={request.confirm}"] if request.confirm else []
    known = {name: value for name, value in request.parameters.items() if name in operation.parameters}
    open_ones = {name: value for name, value in known.items() if not operation.parameters[name].secret}
    words += ["-e", _extra_vars(operation.variables(open_ones))] if open_ones else []
    return shlex.join(words)


def _extra_vars(variables: Mapping[str, Any]) -> str:
    """As JSON; where that would hold a template, as YAML in which it is none, just as in the run."""
    text = json.dumps(variables, ensure_ascii=False)
    return untemplated.flow(variables) if TEMPLATE.search(text) else text
