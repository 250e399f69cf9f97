"""The catalogue: which operations there are, and what may be set in them from outside.

`playbooks/operations.yml` names each operation and its parameters; type, choices, default and description of a
parameter come from its variable in the role's `meta/argument_specs.yml`. What is not listed cannot be set.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bazaruto.control.access import Role
from bazaruto.control.parameters import SCHEMA_TYPES, Parameter

NAME = r"^[a-z][a-z0-9_]{0,62}$"
ENVIRONMENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class CatalogueError(Exception):
    """The catalogue cannot be used; one line for each wrong entry."""


class Effect(enum.StrEnum):
    """What an operation does to its environment."""

    READ = "read"  # changes nothing that is operated; runs beside anything
    CHANGE = "change"  # changes something; one at a time in an environment
    DESTROY = "destroy"  # may lose data; one at a time, and only with `confirm`


class LostHosts(enum.StrEnum):
    """How a host can get lost to a play; an operation may say that this is no failure of its own."""

    FAILED = "failed"  # a task failed there
    UNREACHABLE = "unreachable"  # it did not answer


@dataclasses.dataclass(frozen=True)
class WrongParameter:
    """One parameter that cannot be taken as it was given."""

    name: str
    message: str


class WrongParameters(Exception):
    """Parameters that cannot be taken; every one of them is named."""

    def __init__(self, wrong: list[WrongParameter]) -> None:
        super().__init__("; ".join(f"{each.name}: {each.message}" for each in wrong))
        self.wrong = wrong


@dataclasses.dataclass(frozen=True)
class Operation:
    """One thing that can be launched."""

    name: str
    summary: str
    playbook: str  # file name in playbooks/
    effect: Effect
    launch: Role  # the lowest that may launch it
    timeout_seconds: float
    idle_timeout_seconds: float | None  # without any event for so long, a run is ended
    tolerates: tuple[LostHosts, ...]  # what is no failure of it
    exclusion: str | None  # runs of the same kind in one environment exclude each other
    approval: bool  # somebody else has to approve it, wherever it is launched
    parameters: dict[str, Parameter]

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of its parameters."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "additionalProperties": False,
            "properties": {name: parameter.json_schema() for name, parameter in self.parameters.items()},
            "required": [name for name, parameter in self.parameters.items() if parameter.required],
        }

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise WrongParameters naming every parameter that is unknown, missing or wrong."""
        wrong = []
        for name, value in values.items():
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                wrong.append(WrongParameter(name, f"{self.name} has no such parameter; it has: {known}"))
            elif problem := self.parameters[name].problem(value):
                wrong.append(WrongParameter(name, problem))
        missing = [name for name, each in self.parameters.items() if each.required and name not in values]
        wrong += [WrongParameter(name, "is required") for name in missing]
        if wrong:
            raise WrongParameters(wrong)

    def variables(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The role variables behind checked parameters."""
        return {self.parameters[name].variable: value for name, value in values.items()}

    def secrets(self) -> list[str]:
        """The parameters whose values nobody is shown."""
        return [name for name, each in self.parameters.items() if each.secret]

    def secret_variables(self) -> list[str]:
        return [each.variable for each in self.parameters.values() if each.secret]

    def shown(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as everybody may see them."""
        return {name: "***" if self.parameters[name].secret else value for name, value in values.items()}


class Catalogue:
    """All operations and environments of one content directory."""

    def __init__(self, directory: Path, operations: dict[str, Operation], protected: frozenset[str]) -> None:
        self.directory = directory
        self.operations = operations
        self.protected = protected  # environments in which somebody else has to approve every change

    def environments(self) -> list[str]:
        """The inventories there are."""
        return sorted(
            path.parent.name
            for path in (self.directory / "inventories").glob("*/hosts.yml")
            if ENVIRONMENT_NAME.fullmatch(path.parent.name)
        )

    def playbook(self, operation: Operation) -> Path:
        return self.directory / "playbooks" / operation.playbook

    def inventory(self, environment: str) -> Path:
        return self.directory / "inventories" / environment


def load(directory: Path) -> Catalogue:
    """Read the catalogue of a content directory. Raises CatalogueError naming every wrong entry."""
    path = directory / "playbooks" / "operations.yml"
    try:
        content = _File.model_validate(_yaml(path))
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise CatalogueError("\n".join(lines)) from error
    operations, problems = {}, []
    for name, entry in content.operations.items():
        try:
            operations[name] = _operation(directory, name, entry)
        except CatalogueError as error:
            problems.append(f"{path}: operations.{name}: {error}")
    protected = frozenset(name for name, entry in content.environments.items() if entry.protected)
    catalogue = Catalogue(directory, operations, protected)
    problems += [
        f"{path}: environments.{name}: there is no inventories/{name}/hosts.yml"
        for name in sorted(content.environments.keys() - set(catalogue.environments()))
    ]
    if problems:
        raise CatalogueError("\n".join(problems))
    return catalogue


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ParameterEntry(_Entry):
    variable: str
    minimum: int | float | None = None
    maximum: int | float | None = None
    pattern: str | None = None
    unit: str | None = None
    secret: bool = False
    required: bool | None = None  # None: as the role says


class _OperationEntry(_Entry):
    summary: str
    playbook: str = Field(pattern=r"^[a-z][a-z0-9_]*\.yml$")
    role: str | None = Field(default=None, pattern=NAME)
    effect: Effect
    launch: Role
    timeout_seconds: float = Field(gt=0, le=7 * 86400)
    idle_timeout_seconds: float | None = Field(default=None, gt=0, le=7 * 86400)
    tolerates: list[LostHosts] = []
    excludes: str | None = Field(default=None, pattern=NAME)
    approval: bool = False
    parameters: dict[str, _ParameterEntry] = {}


class _EnvironmentEntry(_Entry):
    protected: bool = False


class _File(_Entry):
    environments: dict[str, _EnvironmentEntry] = {}
    operations: dict[str, _OperationEntry] = Field(min_length=1)


def _operation(directory: Path, name: str, entry: _OperationEntry) -> Operation:
    if not re.fullmatch(NAME, name):
        raise CatalogueError("a name is lower-case letters, digits and _")
    if not (directory / "playbooks" / entry.playbook).is_file():
        raise CatalogueError(f"playbook: playbooks/{entry.playbook} is not there")
    options = _options(directory, entry.role) if entry.role else {}
    changes = entry.effect is not Effect.READ
    return Operation(
        name=name,
        summary=entry.summary,
        playbook=entry.playbook,
        effect=entry.effect,
        launch=entry.launch,
        timeout_seconds=entry.timeout_seconds,
        idle_timeout_seconds=entry.idle_timeout_seconds,
        tolerates=tuple(dict.fromkeys(entry.tolerates)),
        exclusion=entry.excludes or ("change" if changes else None),
        approval=entry.approval,
        parameters={key: _parameter(key, value, options) for key, value in entry.parameters.items()},
    )


def _options(directory: Path, role: str) -> dict[str, Any]:
    content = _yaml(directory / "roles" / role / "meta" / "argument_specs.yml")
    try:
        options = content["argument_specs"]["main"].get("options") or {}
    except (KeyError, TypeError, AttributeError) as error:
        raise CatalogueError(f"role {role}: its argument_specs.yml has no argument_specs.main") from error
    return dict(options)


def _parameter(name: str, entry: _ParameterEntry, options: Mapping[str, Any]) -> Parameter:
    where = f"parameters.{name}"
    if not re.fullmatch(NAME, name):
        raise CatalogueError(f"{where}: a name is lower-case letters, digits and _")
    spec = options.get(entry.variable)
    if not isinstance(spec, Mapping):
        raise CatalogueError(f"{where}: the role's argument_specs.yml has no variable {entry.variable}")
    kind, elements = spec.get("type", "str"), spec.get("elements")
    if kind not in SCHEMA_TYPES or (elements is not None and elements not in SCHEMA_TYPES):
        raise CatalogueError(f"{where}: type {kind} of {elements} cannot be set from outside")
    if entry.pattern is not None:
        try:
            re.compile(entry.pattern)
        except re.error as error:
            raise CatalogueError(f"{where}: pattern {entry.pattern} is no regular expression: {error}") from error
    _refuse_useless_rules(where, entry, elements or "str" if kind == "list" else kind)
    secret = entry.secret or _is_secret(spec)
    return Parameter(
        name=name,
        variable=entry.variable,
        type=kind,
        elements=elements,
        choices=tuple(spec.get("choices") or ()),
        default=None if secret else spec.get("default"),
        description=_sentence(spec.get("description", "")),
        required=bool(spec.get("required", False)) if entry.required is None else entry.required,
        minimum=entry.minimum,
        maximum=entry.maximum,
        pattern=entry.pattern,
        unit=entry.unit,
        secret=secret,
    )


def _refuse_useless_rules(where: str, entry: _ParameterEntry, kind: str) -> None:
    """A rule that is never looked at would be believed."""
    if kind not in ("int", "float") and (entry.minimum is not None or entry.maximum is not None):
        raise CatalogueError(f"{where}: minimum and maximum are for numbers, and {entry.variable} is of type {kind}")
    if kind not in ("str", "path") and entry.pattern is not None:
        raise CatalogueError(f"{where}: a pattern is for texts, and {entry.variable} is of type {kind}")


def _is_secret(spec: Mapping[str, Any]) -> bool:
    """Whether the role says no_log of a variable, or of anything in it."""
    options = spec.get("options")
    within = options.values() if isinstance(options, Mapping) else ()
    return bool(spec.get("no_log")) or any(_is_secret(each) for each in within if isinstance(each, Mapping))


def _sentence(description: object) -> str:
    parts = description if isinstance(description, list) else [description]
    return " ".join(str(part).strip() for part in parts)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogueError(f"{path} cannot be read: {error}") from error
