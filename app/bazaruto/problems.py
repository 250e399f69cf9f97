"""Refusals and failures as RFC 9457 problems, the one shape every error answer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic_core import to_json

CONTENT_TYPE = "application/problem+json"


class FieldError(NamedTuple):
    """One wrong field of an input, by its dotted name."""

    field: str
    message: str


class Problem(Exception):
    """An answer other than success, raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        title: str = "",
        detail: str = "",
        errors: Sequence[FieldError | tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, title, detail)
        self.status = status
        self.title = title or phrase(status)
        self.detail = detail
        self.errors = [FieldError(*error) for error in errors]
        self.headers = dict(headers or {})

    def body(self, instance: str, request_id: str) -> bytes:
        """The answer's JSON; `instance` is the path that was asked for."""
        document: dict[str, Any] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "request_id": request_id,
        }
        if self.errors:
            document["errors"] = [error._asdict() for error in self.errors]
        return to_json(document)


def phrase(status: int) -> str:
    """The status' own words ("Not Found")."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
