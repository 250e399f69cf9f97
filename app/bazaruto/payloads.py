"""Reads and validates what clients send: JSON bodies, queries, cursors; refuses everything odd with its name."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

import bottle
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from bazaruto.problems import FieldError, Problem

M = TypeVar("M", bound=BaseModel)
MAX_DEPTH = 32  # of arrays and objects within each other
MAX_QUERY_FIELDS = 50


def json_body(model: type[M]) -> M:
    """The request's JSON body as this model, or a Problem: 415, 400 for broken JSON, 422 for wrong fields."""
    raw = _json_bytes()
    _check_json(raw)
    try:
        return model.model_validate_json(raw, extra="forbid")
    except ValidationError as error:
        raise unprocessable(error) from None


def query(model: type[M]) -> M:
    """The query string as this model, or a Problem: 400 for broken encoding, 422 for wrong fields."""
    fields = _query_fields(bottle.request.environ.get("QUERY_STRING", ""))
    try:
        return model.model_validate_strings(fields, extra="forbid")
    except ValidationError as error:
        raise unprocessable(error) from None


def headers(model: type[M]) -> M:
    """The request's headers that this model names by its fields' aliases, or a Problem: 422 for wrong ones."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    given = {name: value for name in names if (value := bottle.request.headers.get(name))}
    try:
        return model.model_validate_strings(given)
    except ValidationError as error:
        raise unprocessable(error) from None


def unprocessable(error: ValidationError) -> Problem:
    """422 with each wrong field by name; never with the value, which may be a secret."""
    return Problem(422, "Wrong input", "Some fields are wrong.", errors=[_field_error(e) for e in error.errors()])


def page(items: Sequence[Any], next_cursor: str | None) -> dict[str, Any]:
    """The shape of every list."""
    return {"items": list(items), "next": next_cursor}


def encode_cursor(*keys: Any) -> str:
    """The sort keys of a page's last item, opaque to the client."""
    return base64.urlsafe_b64encode(to_json(list(keys))).rstrip(b"=").decode()


def decode_cursor(cursor: str, *kinds: Any) -> tuple[Any, ...]:
    """The sort keys again, each of its kind (datetime, UUID, int…); 422 for what was not made here."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        values = json.loads(raw)
        _check_texts(values)
        return tuple(TypeAdapter(kind).validate_python(v) for kind, v in zip(kinds, values, strict=True))
    except (ValueError, TypeError, RecursionError, Problem):  # ValidationError is a ValueError
        raise Problem(
            422,
            "Wrong input",
            "The cursor is not one this list gave.",
            errors=[FieldError("cursor", "is not a cursor")],
        ) from None


def _json_bytes() -> bytes:
    environ = bottle.request.environ
    media_type, _, parameters = environ.get("CONTENT_TYPE", "").partition(";")
    media_type = media_type.strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise Problem(415, detail="Send application/json.")
    charset = parameters.lower().replace(" ", "").replace('"', "")
    if "charset=" in charset and "charset=utf-8" not in charset:
        raise Problem(415, detail="JSON is UTF-8; send no other charset.")
    raw: bytes = environ["wsgi.input"].read()
    return raw


def _check_json(raw: bytes) -> None:
    """Refuse what JSON libraries disagree about, before a value of it is used."""
    try:
        text = raw.decode("utf-8")
        if _deeper_than(text, MAX_DEPTH):
            _broken(f"is nested deeper than {MAX_DEPTH} levels")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError:
        _broken("is not UTF-8")
    except (ValueError, RecursionError) as error:
        _broken(f"is not valid: {error}" if isinstance(error, json.JSONDecodeError | _Odd) else "is not valid")
    if "\\u" in text:
        _check_texts(value)


class _Odd(ValueError):
    """{what} in the JSON."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _Odd("an object has the same name twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise _Odd(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Odd("a number is too large")
    return number


def _deeper_than(text: str, limit: int) -> bool:
    """Whether brackets outside strings nest deeper; cheap for the usual small body."""
    if text.count("[") + text.count("{") <= limit:
        return False
    depth = 0
    inside = escaped = False
    for character in text:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            if depth > limit:
                return True
        elif character in "]}":
            depth -= 1
    return False


def _check_texts(value: Any) -> None:
    """Only an escape can bring a NUL or a lone surrogate in; neither can be stored."""
    if isinstance(value, str):
        if "\x00" in value:
            _broken("has a NUL character in a text")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            _broken("has half a surrogate pair in a text")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_texts(name)
            _check_texts(item)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)


def _broken(why: str) -> NoReturn:
    raise Problem(400, "Broken JSON", f"The body {why}.") from None


def _query_fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    repeated: list[FieldError] = []
    parts = [part for part in text.split("&") if part]
    if len(parts) > MAX_QUERY_FIELDS:
        raise Problem(400, "Broken query", f"The query has more than {MAX_QUERY_FIELDS} fields.")
    for part in parts:
        name, _, value = part.partition("=")
        try:
            name, value = (_unquoted(piece) for piece in (name, value))
        except UnicodeDecodeError:
            raise Problem(400, "Broken query", "The query is not UTF-8.") from None
        if "\x00" in name or "\x00" in value:
            raise Problem(400, "Broken query", "The query has a NUL character.")
        if name in fields:
            repeated.append(FieldError(name, "is given twice"))
        fields[name] = value
    if repeated:
        raise Problem(422, "Wrong input", "Some fields are wrong.", errors=repeated)
    return fields


def _unquoted(piece: str) -> str:
    return unquote_to_bytes(piece.replace("+", " ").encode("latin-1")).decode("utf-8")


def _field_error(error: ErrorDetails) -> FieldError:
    field = ".".join(str(part) for part in error["loc"]) or "body"
    message = "there is no such field" if error["type"] == "extra_forbidden" else error["msg"]
    return FieldError(field.encode("utf-8", "backslashreplace").decode()[:200], message)
