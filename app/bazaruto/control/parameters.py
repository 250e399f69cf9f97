"""What may be set in an operation from outside: the rules of one parameter, and what is wrong with a value."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from bazaruto.control.engine import redactor

LONGEST_TEXT = 4096
LARGEST_INTEGER = 2**63 - 1
SCHEMA_TYPES = {
    "str": "string",
    "path": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One thing that can be set from outside."""

    name: str
    variable: str  # the role's variable behind it
    type: str  # of argument_specs: str, path, int, float, bool, list, dict
    elements: str | None  # type of a list's items
    choices: tuple[Any, ...]  # empty: anything
    default: Any
    description: str
    required: bool
    minimum: int | float | None
    maximum: int | float | None
    pattern: str | None  # the whole value must match
    unit: str | None
    secret: bool  # its value is never shown, logged or stored in the clear

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of its value."""
        rules = {
            "enum": list(self.choices) or None,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "minLength": redactor.SHORTEST_SECRET if self.secret and self._item_type in ("str", "path") else None,
            "pattern": f"^(?:{self.pattern})$" if self.pattern else None,
        }
        listed = self.type == "list"  # whose rules are those of its items
        values = {
            "type": SCHEMA_TYPES[self.type],
            "description": self.description,
            "items": _present({"type": SCHEMA_TYPES[self.elements or "str"], **rules}) if listed else None,
            "default": self.default,
            "x-unit": self.unit,
            "writeOnly": self.secret or None,
            **({} if listed else rules),
        }
        return _present(values)

    @property
    def _item_type(self) -> str:
        return (self.elements or "str") if self.type == "list" else self.type

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, or None."""
        if problem := _type_problem(self.type, self.elements, value):
            return problem
        if self.secret and (problem := redactor.problem(value)):
            return problem
        if isinstance(value, list):
            found = ((index, self._rule_problem(item)) for index, item in enumerate(value, 1))
            return next((f"item {index} {problem}" for index, problem in found if problem), None)
        return self._rule_problem(value)

    def _rule_problem(self, value: object) -> str | None:
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(map(str, self.choices))}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _range_problem(value, self.minimum, self.maximum)
        if isinstance(value, str) and self.pattern and not re.fullmatch(self.pattern, value):
            return f"must match {self.pattern}"
        return None


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _type_problem(kind: str, elements: str | None, value: object) -> str | None:
    if kind in ("str", "path"):
        return _text_problem(value)
    if kind == "bool":
        return None if isinstance(value, bool) else "must be true or false"
    if kind in ("int", "float"):
        return _number_problem(kind, value)
    if kind == "list":
        return _list_problem(elements or "str", value)
    return None if isinstance(value, dict) else "must be an object"


def _text_problem(value: object) -> str | None:
    if not isinstance(value, str):
        return "must be a text"
    if len(value) > LONGEST_TEXT:
        return f"must be at most {LONGEST_TEXT} characters long"
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return "must not contain NUL or halves of characters"
    return None


def _number_problem(kind: str, value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else int | float):
        return "must be a whole number" if kind == "int" else "must be a number"
    if abs(value) > LARGEST_INTEGER or not math.isfinite(value):
        return f"must be between -{LARGEST_INTEGER} and {LARGEST_INTEGER}"
    return None


def _list_problem(elements: str, value: object) -> str | None:
    if not isinstance(value, list):
        return "must be a list"
    for index, item in enumerate(value):
        if problem := _type_problem(elements, None, item):
            return f"item {index + 1} {problem}"
    return None


def _range_problem(value: float, minimum: float | None, maximum: float | None) -> str | None:
    if minimum is not None and value < minimum:
        return f"must be at least {minimum}"
    if maximum is not None and value > maximum:
        return f"must be at most {maximum}"
    return None
