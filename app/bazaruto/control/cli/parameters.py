"""`-p`: what a text on the command line stands for, and how a secret is given without being seen."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer

from bazaruto.control.client_errors import RefusedError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

Given = Mapping[str, str | None]  # name → text; None: to be asked for


def given(words: Iterable[str]) -> Given:
    """What was typed. Raises RefusedError naming what is no parameter; never a value that may be secret."""
    found: dict[str, str | None] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not NAME.fullmatch(name):
            shown = f"{name[:40]}=…" if separator else word[:40]
            raise RefusedError(f"-p {shown} is not KEY=VALUE.")
        if name in found:
            raise RefusedError(f"-p {name} is given twice.")
        found[name] = text if separator else None
    return found


def typed(given: Given, rules: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values as the parameters' JSON Schemas say; what cannot be read so goes as text, and is refused by name.

    A secret one without a text is asked for.
    """
    for name, text in given.items():
        if text is None and not is_secret(rules.get(name, {})):
            raise RefusedError(f"-p {name} is not KEY=VALUE: only a secret parameter is asked for.")
        if text is not None and is_secret(rules.get(name, {})):
            seen = f"Others on this machine can read {name} in the list of processes: `-p {name}` asks for it."
            typer.echo(seen, err=True)
    texts = {name: _asked_for(name) if text is None else text for name, text in given.items()}
    return {name: value(rules.get(name, {}), text) for name, text in texts.items()}


def is_secret(rule: Mapping[str, Any]) -> bool:
    """Whether a parameter's value is never shown."""
    return bool(rule.get("writeOnly"))


def value(rule: Mapping[str, Any], text: str) -> Any:
    """What a text stands for; the text itself when it stands for nothing of its type."""
    if rule.get("type") == "array" and not text.lstrip().startswith("["):
        return [value(rule.get("items", {}), item.strip()) for item in text.split(",") if item.strip()]
    read = READERS.get(str(rule.get("type")), str)
    try:
        return read(text)
    except ValueError:
        return text


def _asked_for(name: str) -> str:
    """One line: from the terminal without echo, else from the standard input."""
    import getpass

    if sys.stdin is not None and sys.stdin.isatty():
        try:
            return getpass.getpass(f"{name}: ")
        except (EOFError, KeyboardInterrupt):
            raise RefusedError(f"\nNobody answered for {name}: nothing was started.") from None
    try:
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except UnicodeDecodeError:
        raise RefusedError(f"The line for {name} on the standard input is not UTF-8.") from None
    if not line:
        raise RefusedError(f"The standard input ended before the line for {name}.")
    return line.removesuffix("\n").removesuffix("\r")


def _truth(text: str) -> bool:
    if text.lower() not in TRUTHS:
        raise ValueError(text)
    return TRUTHS[text.lower()]


READERS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": _truth,
    "object": json.loads,
    "array": json.loads,
}
