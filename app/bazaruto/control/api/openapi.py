"""The OpenAPI 3.1 document, from the same list of endpoints that the API serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bazaruto import __version__, probes
from bazaruto.control.access import Role

TEXT = {"type": "string"}
REFERENCE = "#/components/schemas/{model}"


class WrongField(BaseModel):
    """One wrong field of an input."""

    field: str
    message: str


class ProblemAnswer(BaseModel):
    """Every error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[WrongField] | None = None


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One thing the API answers."""

    method: str
    path: str  # with {names}
    summary: str
    answer: type[BaseModel] | None  # None: an object without a fixed shape, or a text
    listed: bool = False  # the answer is {"items": […], "next": …}
    status: int = 200
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: type[BaseModel] | None = None  # of the request; each field's alias is the header's name
    errors: tuple[int, ...] = ()  # besides those that follow from the rest, see `refusals`
    public: bool = False  # needs no token
    role: Role = Role.VIEWER  # the lowest that may ask
    launches: bool = False  # then the role that the operation names in `launch` is needed as well
    media: str = "application/json"  # of the answer
    also: tuple[str, ...] = ()  # other media types it can be asked for, which are texts
    says: tuple[str, ...] = ()  # headers of the answer, by their names in ANSWER_HEADERS

    @property
    def route(self) -> str:
        """The same path as bottle writes it."""
        return self.path.replace("{", "<").replace("}", ">")

    @property
    def refusals(self) -> tuple[int, ...]:
        """The statuses of every error it answers with."""
        found = set(self.errors)
        found |= set() if self.public else {401, 403, 429, 503}
        found |= {400, 404} if "{" in self.path else set()
        found |= {400, 422} if self.query or self.headers else set()
        found |= {400, 413, 415, 422} if self.body else set()
        return tuple(sorted(found))


ANSWER_HEADERS = {
    "X-Request-Id": "Also in the log",
    "Retry-After": "Seconds, after which it may be asked again",
    "WWW-Authenticate": "How to show a token",
    "Location": "The run",
    "Idempotency-Replayed": "`true` where the key was known: this asked for nothing new",
}
ALWAYS_SAID = {"X-Request-Id", "WWW-Authenticate", "Location"}  # where they are said at all
SAID_WITH = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document."""
    models = {endpoint.answer for endpoint in endpoints} | {endpoint.body for endpoint in endpoints} | {ProblemAnswer}
    wanted = sorted((model for model in models if model is not None), key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation" if any(e.body is model for e in endpoints) else "serialization") for model in wanted],
        ref_template=REFERENCE,
    )
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bazaruto control plane", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "description": _who(endpoint),
        "operationId": _identifier(endpoint),
        "parameters": [
            *_path_parameters(endpoint),
            *_parameters("query", endpoint.query),
            *_parameters("header", endpoint.headers),
        ],
        "responses": _responses(endpoint),
    }
    if endpoint.body:
        schema = {"$ref": REFERENCE.format(model=endpoint.body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if endpoint.public or endpoint.path in probes.PATHS:
        operation["security"] = [] if endpoint.public else [{"token": []}, {}]
    return operation


def _who(endpoint: Endpoint) -> str:
    """Who may ask, in a sentence."""
    if endpoint.public:
        return "Needs no token."
    if endpoint.path in probes.PATHS:
        return "Needs no token from this machine, and any from others."
    if endpoint.launches:
        return "Needs a token of the role that the operation names in `launch`, for its environment."
    return f"Needs a token of the role {endpoint.role}, or of one that includes it."


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    contents = {
        endpoint.media: {"schema": _answer_schema(endpoint)},
        **{media: {"schema": {"type": "string"}} for media in endpoint.also},
    }
    problem = {"application/problem+json": {"schema": {"$ref": REFERENCE.format(model="ProblemAnswer")}}}
    health = endpoint.path in probes.PATHS and 503 in endpoint.errors  # says the same, only worse
    return {
        str(endpoint.status): _response(endpoint.status, contents, endpoint.says),
        **{
            str(status): _response(status, {**contents, **problem} if health and status == 503 else problem)
            for status in endpoint.refusals
        },
        "default": {"description": "What is no request to this endpoint, and failures", "content": problem},
    }


def _response(status: int, content: dict[str, Any], says: tuple[str, ...] = ()) -> dict[str, Any]:
    headers = {
        name: {"description": ANSWER_HEADERS[name], "required": name in ALWAYS_SAID or status == 429, "schema": TEXT}
        for name in ("X-Request-Id", *says, *SAID_WITH.get(status, ()))
    }
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}


def _answer_schema(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.answer is None:
        return {"type": "object" if endpoint.media == "application/json" else "string"}
    one = {"$ref": REFERENCE.format(model=endpoint.answer.__name__)}
    if not endpoint.listed:
        return one
    return {
        "type": "object",
        "required": ["items", "next"],
        "properties": {"items": {"type": "array", "items": one}, "next": {"type": ["string", "null"]}},
    }


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    names = [part.strip("{}") for part in endpoint.path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _parameters(place: str, model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = model.model_json_schema()
    kinds = schema.get("$defs", {})
    parameters = []
    for name, field in schema["properties"].items():
        shape = {key: value for key, value in field.items() if key not in ("title", "description")}
        parameter = {"name": name, "in": place, "required": False, "schema": _inlined(shape, kinds)}
        parameters.append({**parameter, **({"description": field["description"]} if "description" in field else {})})
    return parameters


def _inlined(shape: Any, kinds: dict[str, Any]) -> Any:
    """The schema with its references replaced by what they refer to."""
    if isinstance(shape, dict):
        if "$ref" in shape:
            return _inlined(kinds[shape["$ref"].rpartition("/")[2]], kinds)
        return {key: _inlined(value, kinds) for key, value in shape.items()}
    return [_inlined(item, kinds) for item in shape] if isinstance(shape, list) else shape


def _identifier(endpoint: Endpoint) -> str:
    words = [part.strip("{}") for part in endpoint.path.replace(".", "_").split("/") if part not in ("", "api", "v1")]
    return "_".join([endpoint.method.lower(), *words])
