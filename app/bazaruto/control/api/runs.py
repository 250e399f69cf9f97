"""Runs: launched, decided on, looked at, followed."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from typing import Any

import bottle
import procrastinate
import psycopg
from pydantic import BaseModel, Field, JsonValue, RootModel

from bazaruto import web
from bazaruto.config import Settings
from bazaruto.control import (
    access,
    approvals,
    events,
    idempotency,
    launch,
    output,
    queue,
    requests,
    retrying,
    runs,
    targets,
)
from bazaruto.control.acceptance import Acceptance, Sender
from bazaruto.control.access import Role
from bazaruto.control.api.audited import actor, concerns
from bazaruto.control.api.decisions import decided
from bazaruto.control.api.guard import Handler, identity
from bazaruto.control.api.lists import ListQuery
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.audit.changes import Audit
from bazaruto.control.streams import MEDIA, Lasting, Reader, Streams, asked_for
from bazaruto.database import Connection, Pool
from bazaruto.problems import FieldError, Problem


class AnyObject(RootModel[dict[str, JsonValue]]):
    """A JSON object; which fields it may have is checked together with their meaning."""


class RunQuery(runs.RunFilter, ListQuery):
    """Which runs to list."""


class EventQuery(BaseModel):
    """Which events to give."""

    after: int = Field(default=0, ge=0, le=2**31 - 1, description="the sequence number before the first")
    limit: int = Field(default=500, ge=1, le=5000, description="of a page; a stream gives all")


class ResumeHeader(BaseModel):
    """What a client of server-sent events sends when it comes back."""

    last_event_id: int | None = Field(
        default=None, alias="Last-Event-ID", ge=0, le=2**31 - 1, description="the last `id` seen; goes before `after`"
    )


class OutputQuery(BaseModel):
    """From where to read."""

    offset: int = Field(default=0, ge=0, le=2**63 - 1, description="the byte to begin with")


class Events(BaseModel):
    """A page of a run's events."""

    events: list[dict[str, Any]]
    next: int = Field(description="`after` of the next page")


RUNS, RUN = "/api/v1/runs", "/api/v1/runs/{id}"
LAUNCHED = ("Location", idempotency.REPLAYED)
TEXT = "text/plain"  # in UTF-8, which an answer says
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", RUNS, "Runs, newest first", runs.Run, listed=True, query=RunQuery, errors=(400, 422)),
    Endpoint("POST", RUNS, "Launch an operation", runs.Run, status=202, body=requests.LaunchRequest,
             launches=True, headers=idempotency.KeyHeader, says=LAUNCHED),
    Endpoint("GET", RUN, "One run and its life", runs.RunDetails, errors=(404,)),
    Endpoint("GET", f"{RUN}/events", "Its events: a page, or as they come", Events, also=(MEDIA,),
             query=EventQuery, headers=ResumeHeader, errors=(400, 404, 422)),
    Endpoint("GET", f"{RUN}/stdout", "What Ansible printed", None, media=TEXT, query=OutputQuery,
             errors=(400, 404, 422)),
    Endpoint("POST", f"{RUN}/cancel", "Cancel a run", runs.Run, status=202, body=requests.CancelRequest,
             role=Role.OPERATOR, errors=(400, 404, 409, 413, 415, 422)),
    Endpoint("POST", f"{RUN}/retry", "Run it again on the hosts that failed", runs.Run, status=202,
             body=requests.RetryRequest, launches=True, headers=idempotency.KeyHeader, says=LAUNCHED, errors=(409,)),
    Endpoint("POST", f"{RUN}/waive", "Go on although hosts may still be at work for it", runs.Run,
             body=requests.WaiveRequest, role=Role.ADMIN, errors=(400, 404, 409, 413, 415, 422)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Runs:
    """The handlers and what they need."""

    settings: Settings
    acceptance: Acceptance
    audit: Audit
    pool: Pool
    jobs: procrastinate.App
    streams: Streams

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {
            ("GET", RUNS): self.list_runs,
            ("POST", RUNS): self.launch,
            ("GET", RUN): self.show_run,
            ("GET", f"{RUN}/events"): self.list_events,
            ("GET", f"{RUN}/stdout"): self.show_output,
            ("POST", f"{RUN}/cancel"): self.cancel,
            ("POST", f"{RUN}/retry"): self.retry,
            ("POST", f"{RUN}/waive"): self.waive,
        }

    def launch(self) -> runs.Run:
        """Accept a run: checked as a whole, durable, and a worker woken in the same transaction."""
        return self._accept(web.json_body(AnyObject).root)

    def _accept(self, values: Mapping[str, Any], retry_of: str | None = None) -> runs.Run:
        concerns(operation=values.get("operation"), environment=values.get("environment"))
        sender = Sender(identity(), actor(), bottle.request.environ.get("HTTP_IDEMPOTENCY_KEY"))
        try:
            accepted = self.acceptance.launch(values, sender, retry_of)
        except requests.RefusedRequest as error:
            raise _refused(error.errors) from error
        except idempotency.WrongKey as error:
            raise _refused([(idempotency.HEADER, str(error))]) from error
        except psycopg.errors.ForeignKeyViolation as error:  # retention was faster than this retry
            raise Problem(404, detail="There is no such run.") from error
        except targets.TargetsUnknown as error:
            raise Problem(503, detail=f"{error} Nothing was started.", headers={"Retry-After": "5"}) from error
        bottle.response.status = 202
        bottle.response.set_header("Location", f"{RUNS}/{accepted.run.id}")
        if accepted.replayed:
            bottle.response.set_header(idempotency.REPLAYED, "true")
        return accepted.run

    def retry(self, id: str) -> runs.Run:
        """Launch the same again, for the hosts that failed."""
        wanted = web.json_body(requests.RetryRequest)
        with self.pool.connection() as connection:
            before = runs.of_row(self._row(connection, id))
        operation = self.acceptance.content.operation(before.operation)
        access.require(identity(), operation.launch if operation else Role.OPERATOR)
        try:
            values = retrying.once_more(before, operation.secrets() if operation else (), wanted)
        except runs.ClashError as error:
            raise Problem(409, detail=str(error)) from error
        except requests.RefusedRequest as error:
            raise _refused(error.errors) from error
        return self._accept(values, retry_of=id)

    def cancel(self, id: str) -> runs.Run:
        """End a run: at once when it has not started, else a worker is woken to end it."""
        wanted = web.json_body(requests.CancelRequest)

        def decide(connection: Connection) -> None:
            approvals.cancel(connection, id, identity().name, wanted.reason)
            queue.wake(self.jobs, connection)

        run = decided(self.audit, "run.cancel", id, wanted, self._row, decide)
        bottle.response.status = 202
        return run

    def waive(self, id: str) -> runs.Run:
        """Let changes start although a run may have left something running."""
        wanted = web.json_body(requests.WaiveRequest)

        def decide(connection: Connection) -> None:
            runs.waive(connection, id, identity().name, wanted.reason)

        return decided(self.audit, "run.waive", id, wanted, self._row, decide)

    def list_runs(self) -> dict[str, Any]:
        wanted = web.query(RunQuery)
        before = web.decode_cursor(wanted.cursor, runs.Position)[0] if wanted.cursor else None
        with self.pool.connection() as connection:
            approvals.expire(connection)
            found = runs.page(connection, wanted, identity(), before, wanted.limit + 1)
        shown = found[: wanted.limit]
        more = web.encode_cursor(shown[-1][0]) if len(found) > wanted.limit else None
        return web.page([run for _, run in shown], more)

    def show_run(self, id: str) -> runs.RunDetails:
        with self.pool.connection() as connection:
            row = self._row(connection, id)
            life = runs.changes(connection, id)
        return runs.details_of_row(row, life, self.acceptance.content.operation(row["operation"]))

    def list_events(self, id: str) -> bytes | Lasting:
        """A page of events, their texts passed on as they are stored; or all, as they come."""
        wanted = web.query(EventQuery)
        seen = web.headers(ResumeHeader).last_event_id
        if asked_for(bottle.request.headers.get("Accept", "")):
            return self._stream_events(id, wanted.after if seen is None else seen)
        with self.pool.connection() as connection:
            day: datetime.date = self._row(connection, id)["day"]
            page = events.page(connection, day, id, wanted.after, wanted.limit)
        bottle.response.content_type = "application/json"
        return f'{{"events":[{",".join(page.bodies)}],"next":{json.dumps(page.next)}}}'.encode()

    def _stream_events(self, run: str, after: int) -> Lasting:
        with self.pool.connection() as connection:
            self._row(connection, run)
        asked = bottle.request
        reader = Reader(asked.headers["Authorization"], asked.environ["waitress.client_disconnected"])
        answer = self.streams.open(run, after, reader)
        bottle.response.content_type = MEDIA
        bottle.response.set_header("Cache-Control", "no-store")
        bottle.response.set_header("X-Accel-Buffering", "no")  # a proxy passes each part on at once
        return answer

    def show_output(self, id: str) -> bytes | Lasting:
        """What Ansible printed until now, from a byte on; what is long holds a slot as streams do."""
        wanted = web.query(OutputQuery)
        with self.pool.connection() as connection:
            ran_on = self._row(connection, id)["node"]
        path = launch.directory_of(self.settings, id).output_file
        try:
            found = output.find(path, wanted.offset, ran_on, self.settings.home)
        except output.NotHereError as error:
            raise Problem(404, detail=str(error)) from error
        bottle.response.content_type = f"{TEXT}; charset=utf-8"
        bottle.response.set_header("Content-Length", str(found.length))
        if found.short:
            return b"".join(found.parts())
        return Lasting(found.parts(), self.streams.slots.take())

    def _row(self, connection: Any, run: str) -> Mapping[str, Any]:
        """The run's row, when it is within the limits of whoever asks."""
        approvals.expire(connection)
        row = runs.find(connection, run)
        if row is None:
            raise Problem(404, detail="There is no such run.")
        concerns(environment=row["environment"], operation=row["operation"])
        access.require(identity(), Role.VIEWER, row["environment"], row["operation"])
        return row


def _refused(errors: list[tuple[str, str]]) -> Problem:
    return Problem(422, "Wrong input", "Nothing was started.", errors=[FieldError(*each) for each in errors])
