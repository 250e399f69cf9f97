"""Variables as YAML in which every text is `!unsafe`: Ansible takes "{{ … }}" in it as it stands, and runs nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes a text with its tag, on one line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("!unsafe", value, style='"')


_Dumper.add_representer(str, _text)


def document(variables: Mapping[str, Any], margin: str = " ") -> str:
    """A file of extra vars: a variable a line, its value after `margin`."""
    return "".join(f"{line}\n" for line in _pairs(variables, margin)) or "{}\n"


def flow(variables: Mapping[str, Any]) -> str:
    """The same on one line, as it is typed after `-e`."""
    return "{" + ", ".join(_pairs(variables, " ")) + "}"


def _pairs(variables: Mapping[str, Any], margin: str) -> list[str]:
    return [f"{json.dumps(name)}:{margin}{_value(value)}" for name, value in variables.items()]


def _value(value: Any) -> str:
    line: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    return line.removesuffix("...\n").rstrip("\n")
