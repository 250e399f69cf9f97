"""The control plane's HTTP face: what it answers, to whom."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

import bottle
import procrastinate
from pydantic import BaseModel, Field, JsonValue, RootModel

from bazaruto import probes, web
from bazaruto.config import Settings
from bazaruto.control import access, backups, events, queue, requests, runs
from bazaruto.control.catalog import Catalogue, Operation
from bazaruto.control.openapi import Endpoint, document
from bazaruto.control.sealing import Seal
from bazaruto.database import Pool
from bazaruto.health import Health
from bazaruto.metrics import Metrics
from bazaruto.problems import FieldError, Problem

Handler = Callable[..., Any]


class AnyObject(RootModel[dict[str, JsonValue]]):
    """A JSON object; which fields it may have is checked together with their meaning."""


class ListQuery(BaseModel):
    """A page of a list."""

    cursor: str | None = Field(default=None, max_length=512, description="`next` of the page before")
    limit: int = Field(default=50, ge=1, le=500)


class RunQuery(runs.RunFilter, ListQuery):
    """Which runs to list."""


class EventQuery(BaseModel):
    """Which events to give."""

    after: int = Field(default=0, ge=0, le=2**31 - 1, description="the sequence number before the first")
    limit: int = Field(default=500, ge=1, le=5000)


class OperationSummary(BaseModel):
    """An operation in the list of all."""

    name: str
    summary: str
    effect: str
    launch: str = Field(description="The lowest role that may launch it")
    timeout_seconds: float


class OperationDetails(OperationSummary):
    """An operation with the JSON Schema of its parameters."""

    playbook: str
    excludes: str | None = Field(description="Runs of one kind in one environment exclude each other")
    parameters: dict[str, Any] = Field(description="JSON Schema")


class EnvironmentAnswer(BaseModel):
    """An inventory that operations can be launched in."""

    name: str


class Events(BaseModel):
    """A page of a run's events."""

    events: list[dict[str, Any]]
    next: int = Field(description="`after` of the next page")


RUNS, RUN = "/api/v1/runs", "/api/v1/runs/{id}"
ENDPOINTS = (
    Endpoint("GET", "/livez", "Whether the process lives", None, public=True),
    Endpoint("GET", "/readyz", "Whether it can serve", None, errors=(503,), public=True),
    Endpoint("GET", "/healthz", "Whether it is well", None, errors=(503,), public=True),
    Endpoint("GET", "/healthz/detailed", "The same with details", None, errors=(503,)),
    Endpoint("GET", "/metrics", "Prometheus metrics", None, media="text/plain"),
    Endpoint("GET", "/openapi.json", "This document", None),
    Endpoint("GET", "/api/v1/operations", "What can be launched", OperationSummary, listed=True),
    Endpoint("GET", "/api/v1/operations/{name}", "One operation and its parameters", OperationDetails, errors=(404,)),
    Endpoint("GET", "/api/v1/environments", "Where it can be launched", EnvironmentAnswer, listed=True),
    Endpoint("GET", RUNS, "Runs, newest first", runs.Run, listed=True, query=RunQuery, errors=(400, 422)),
    Endpoint("POST", RUNS, "Launch an operation", runs.Run, status=202, body=requests.LaunchRequest,
             errors=(400, 413, 415, 422)),
    Endpoint("GET", RUN, "One run and its life", runs.RunDetails, errors=(404,)),
    Endpoint("GET", f"{RUN}/events", "Its events", Events, query=EventQuery, errors=(400, 404, 422)),
    Endpoint("GET", "/api/v1/backups", "Backups, newest first", backups.Backup, listed=True, query=ListQuery,
             errors=(400, 422)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Api:
    """The handlers and what they need."""

    settings: Settings
    catalogue: Catalogue
    pool: Pool
    seal: Seal
    jobs: procrastinate.App
    health: Health
    metrics: Metrics

    def application(self) -> web.App:
        """A WSGI application that answers every endpoint."""
        app = web.create_app("control", self.settings, self.metrics)
        handlers: Mapping[tuple[str, str], Handler] = {
            **{("GET", path): answer for path, answer in probes.answers(self.health, self.metrics).items()},
            ("GET", "/openapi.json"): lambda: document(ENDPOINTS),
            ("GET", "/api/v1/operations"): self.list_operations,
            ("GET", "/api/v1/operations/{name}"): self.show_operation,
            ("GET", "/api/v1/environments"): self.list_environments,
            ("GET", RUNS): self.list_runs,
            ("POST", RUNS): self.launch,
            ("GET", RUN): self.show_run,
            ("GET", f"{RUN}/events"): self.list_events,
            ("GET", "/api/v1/backups"): self.list_backups,
        }
        for endpoint in ENDPOINTS:
            handler = handlers[endpoint.method, endpoint.path]
            answer = handler if endpoint.public else self._guarded(endpoint, handler)
            app.route(endpoint.route, endpoint.method, answer)
        return app

    def list_operations(self) -> dict[str, Any]:
        return web.page([_summary(each) for each in self.catalogue.operations.values()], None)

    def show_operation(self, name: str) -> OperationDetails:
        operation = self.catalogue.operations.get(name)
        if operation is None:
            raise Problem(404, detail="There is no such operation.")
        return OperationDetails(
            **_summary(operation).model_dump(),
            playbook=operation.playbook,
            excludes=operation.exclusion,
            parameters=operation.json_schema(),
        )

    def list_environments(self) -> dict[str, Any]:
        return web.page([EnvironmentAnswer(name=name) for name in self.catalogue.environments()], None)

    def launch(self) -> runs.Run:
        """Accept a run: checked as a whole, durable, and a worker woken in the same transaction."""
        values = web.json_body(AnyObject).root
        try:
            operation, request = requests.check_request(self.catalogue, values)
        except requests.RefusedRequest as error:
            errors = [FieldError(*each) for each in error.errors]
            raise Problem(422, "Wrong input", "Nothing was started.", errors=errors) from error
        with self.pool.connection() as connection:
            run = runs.accept(connection, self.seal, operation, request, runs.Origin(_identity().name))
            queue.wake(self.jobs, connection)
        bottle.response.status = 202
        bottle.response.set_header("Location", f"{RUNS}/{run.id}")
        return run

    def list_runs(self) -> dict[str, Any]:
        wanted = web.query(RunQuery)
        before = web.decode_cursor(wanted.cursor, runs.Position)[0] if wanted.cursor else None
        with self.pool.connection() as connection:
            found = runs.page(connection, wanted, before, wanted.limit + 1)
        shown = found[: wanted.limit]
        more = web.encode_cursor(shown[-1][0]) if len(found) > wanted.limit else None
        return web.page([run for _, run in shown], more)

    def show_run(self, id: str) -> runs.RunDetails:
        with self.pool.connection() as connection:
            row = self._row(connection, id)
            life = runs.changes(connection, id)
        return runs.details_of_row(row, life, self.catalogue.operations.get(row["operation"]))

    def list_events(self, id: str) -> bytes:
        """A page of events, their texts passed on as they are stored."""
        wanted = web.query(EventQuery)
        with self.pool.connection() as connection:
            day: datetime.date = self._row(connection, id)["day"]
            page = events.page(connection, day, id, wanted.after, wanted.limit)
        bottle.response.content_type = "application/json"
        return f'{{"events":[{",".join(page.bodies)}],"next":{json.dumps(page.next)}}}'.encode()

    def list_backups(self) -> dict[str, Any]:
        wanted = web.query(ListQuery)
        before = web.decode_cursor(wanted.cursor, str)[0] if wanted.cursor else None
        try:
            found, last = backups.page(self.settings.backup_directory, before, wanted.limit)
        except backups.StorageUnreadableError as error:
            raise Problem(503, detail=str(error)) from error
        return web.page(found, web.encode_cursor(last) if last else None)

    def _row(self, connection: Any, run: str) -> Mapping[str, Any]:
        row = runs.find(connection, run)
        if row is None:
            raise Problem(404, detail="There is no such run.")
        return row

    def _guarded(self, endpoint: Endpoint, handler: Handler) -> Handler:
        """The handler, for whoever shows a token; probes also for this machine."""

        def answer(**names: str) -> Any:
            if endpoint.path in probes.PATHS and web.from_this_machine():
                return handler(**names)
            with self.pool.connection() as connection:
                identity = access.identify(connection, bottle.request.headers.get("Authorization", ""))
            if identity is None:
                challenge = {"WWW-Authenticate": 'Bearer realm="bazaruto"'}
                detail = "Send a valid token: Authorization: Bearer TOKEN (the first is in control/admin.token)."
                raise Problem(401, detail=detail, headers=challenge)
            bottle.request.environ["bazaruto.identity"] = identity
            web.set_user(identity.name)
            return handler(**names)

        return answer


def _identity() -> access.Identity:
    identity: access.Identity = bottle.request.environ["bazaruto.identity"]
    return identity


def _summary(operation: Operation) -> OperationSummary:
    return OperationSummary(
        name=operation.name,
        summary=operation.summary,
        effect=operation.effect,
        launch=operation.launch,
        timeout_seconds=operation.timeout_seconds,
    )
