"""The OpenAPI 3.1 document, from the same list of endpoints that the API serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bazaruto import __version__
from bazaruto.control.access import Role

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
    errors: tuple[int, ...] = ()
    public: bool = False  # needs no token
    role: Role = Role.VIEWER  # the lowest that may ask
    launches: bool = False  # then the role that the operation names in `launch` is needed as well
    media: str = "application/json"  # of the answer
    also: tuple[str, ...] = ()  # other media types it can be asked for, which are texts

    @property
    def route(self) -> str:
        """The same path as bottle writes it."""
        return self.path.replace("{", "<").replace("}", ">")


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
    if endpoint.public:
        operation["security"] = []
    return operation


def _who(endpoint: Endpoint) -> str:
    """Who may ask, in a sentence."""
    if endpoint.public:
        return "Needs no token."
    if endpoint.launches:
        return "Needs a token of the role that the operation names in `launch`, for its environment."
    return f"Needs a token of the role {endpoint.role}, or of one that includes it."


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": REFERENCE.format(model="ProblemAnswer")}}}
    errors = sorted({*endpoint.errors, *(() if endpoint.public else (401, 403, 429, 503))})
    return {
        str(endpoint.status): {
            "description": HTTPStatus(endpoint.status).phrase,
            "content": {
                endpoint.media: {"schema": _answer_schema(endpoint)},
                **{media: {"schema": {"type": "string"}} for media in endpoint.also},
            },
        },
        **{str(status): {"description": HTTPStatus(status).phrase, "content": problem} for status in errors},
        "default": {"description": "Any other error", "content": problem},
    }


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
