"""Runs: accepted, claimed by one worker, ended once. PostgreSQL decides who may run; nothing else does."""

from __future__ import annotations

import datetime
import enum
import json
import secrets
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

from psycopg import Connection
from psycopg.types.json import Json
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from bazaruto.control.catalog import Catalogue, Effect, Operation, WrongParameters
from bazaruto.control.rundir import Outcome
from bazaruto.control.sealing import Seal
from bazaruto.database import statements

SQL = statements(__package__, "runs.sql")
LIMIT_PATTERN = r"^[A-Za-z0-9_*!\[][A-Za-z0-9_.:,*!&\[\]-]*$"  # no option, no @file

LONGEST_FIELD = 200  # characters of a wrong field's name that an answer repeats


class RunStatus(enum.StrEnum):
    """Where a run stands. Terminal states never change again."""

    QUEUED = "queued"  # accepted and durable; no process yet
    WAITING = "waiting"  # for another run in its environment, named in waiting_for
    RUNNING = "running"  # a live supervisor holds the run's lock
    SUCCEEDED = "succeeded"  # code 0, the play's statistics, no failed or unreachable host
    FAILED = "failed"  # the playbook ended otherwise
    CANCELED = "canceled"  # ended because somebody asked
    TIMED_OUT = "timed_out"  # ended at its time limit
    INTERRUPTED = "interrupted"  # its supervisor ended without, or was told to stop
    REJECTED = "rejected"  # not allowed to start

    @property
    def terminal(self) -> bool:
        return self not in (RunStatus.QUEUED, RunStatus.WAITING, RunStatus.RUNNING)


def _in_utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)


Moment = Annotated[datetime.datetime, AfterValidator(_in_utc)]
Position = Annotated[int, Field(ge=1, lt=2**63)]  # in the order of acceptance; what PostgreSQL's bigint holds


class LaunchRequest(BaseModel):
    """What to run. Everything else about a run follows from the catalogue."""

    model_config = ConfigDict(extra="forbid", strict=True)

    operation: str = Field(min_length=1, max_length=63)
    environment: str = Field(min_length=1, max_length=63)
    parameters: dict[str, Any] = {}
    check: bool = Field(default=False, description="Say what would change, and change nothing")
    diff: bool = Field(default=False, description="Show what changes in files")
    limit: str | None = Field(default=None, max_length=1024, pattern=LIMIT_PATTERN, description="Hosts or groups")
    reason: str | None = Field(default=None, max_length=1024, description="Why, for whoever reads it later")
    confirm: str | None = Field(
        default=None, max_length=63, description="The environment again, for what may destroy data"
    )


class Change(BaseModel):
    """One step in a run's life."""

    at: Moment
    status: RunStatus
    reason: str


class Run(BaseModel):
    """One launch of an operation, and what became of it."""

    id: str
    operation: str
    environment: str
    effect: Effect
    status: RunStatus
    status_reason: str | None = Field(description="What it waits for, while it waits")
    waiting_for: str | None = Field(description="The run that must end first")
    parameters: dict[str, Any] = Field(description='As given; secrets as "***"')
    check: bool
    diff: bool
    limit: str | None
    reason: str | None
    requested_by: str
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    result: Any = Field(description="What the operation returned")
    hosts: dict[str, dict[str, int]] | None = Field(description="Tasks by host: ok, changed, failed, …")
    error: str | None = Field(description="One sentence, when it did not succeed")
    events: int = Field(description="How many events were recorded, once it has ended")


class RunDetails(Run):
    """A run with its whole life."""

    changes: list[Change]
    command: str | None = Field(description="The same by hand, without secrets; null when the operation is no more")


class RefusedRequest(Exception):
    """A launch that cannot be accepted; every wrong field is named."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in errors))
        self.errors = errors


def check_request(catalogue: Catalogue, values: Mapping[str, Any]) -> tuple[Operation, LaunchRequest]:
    """What is asked for, by whatever client; raises RefusedRequest naming every wrong field at once."""
    errors: list[tuple[str, str]] = []
    request = None
    try:
        request = LaunchRequest.model_validate(values)
    except ValidationError as error:
        errors = [_field_error(item) for item in error.errors()]
    malformed = {field.partition(".")[0] for field, _ in errors}
    well_formed = {name: value for name, value in values.items() if name not in malformed}
    operation = catalogue.operations.get(well_formed.get("operation", ""))
    if operation is None and "operation" in well_formed:
        errors.append(("operation", "there is no such operation; `bazaruto operations` lists them"))
    environment = well_formed.get("environment")
    if environment is not None and environment not in catalogue.environments():
        known = ", ".join(catalogue.environments()) or "none"
        errors.append(("environment", f"there is no such environment; there are: {known}"))
    if operation is not None:
        errors += _operation_errors(operation, well_formed, malformed)
    if errors or operation is None or request is None:
        raise RefusedRequest(errors)
    return operation, request


def _operation_errors(operation: Operation, values: Mapping[str, Any], malformed: set[str]) -> list[tuple[str, str]]:
    errors: list[tuple[str, str]] = []
    try:
        if "parameters" not in malformed:
            operation.check(values.get("parameters", {}))
    except WrongParameters as error:
        errors += [(f"parameters.{wrong.name}"[:LONGEST_FIELD], wrong.message) for wrong in error.wrong]
    wanted = values.get("environment")
    if operation.effect is Effect.DESTROY and "confirm" not in malformed and wanted != values.get("confirm"):
        errors.append(("confirm", f'must be "{wanted}": {operation.name} may destroy data there'))
    return errors


def _field_error(error: ErrorDetails) -> tuple[str, str]:
    field = ".".join(map(str, error["loc"])) or "body"
    return field[:LONGEST_FIELD], "there is no such field" if error["type"] == "extra_forbidden" else error["msg"]


def accept(
    connection: Connection[Any], seal: Seal, operation: Operation, request: LaunchRequest, requested_by: str
) -> Run:
    """Write a checked request down as a run; it is durable when the caller's transaction is."""
    now = datetime.datetime.now(datetime.UTC)
    run = new_id(now)
    variables = {**operation.variables(request.parameters), "bazaruto_run_id": run}
    if request.confirm is not None:
        variables["confirm"] = request.confirm
    row = connection.execute(
        SQL.insert_run,
        {
            "id": run,
            "day": now.date(),
            "operation": operation.name,
            "environment": request.environment,
            "effect": operation.effect,
            "exclusion": operation.exclusion,
            "parameters": Json(operation.shown(request.parameters)),
            "variables": seal.close(variables),
            "secret_variables": operation.secret_variables(),
            "check_mode": request.check,
            "diff": request.diff,
            "host_limit": request.limit,
            "reason": request.reason,
            "requested_by": requested_by,
            "timeout_seconds": operation.timeout_seconds,
        },
    ).fetchone()
    note(connection, run, RunStatus.QUEUED, f"accepted from {requested_by}")
    return of_row(row or {})


def claim(connection: Connection[Any], node: str) -> Mapping[str, Any] | None:
    """Take the right to run the oldest run that may start; None when there is none.

    The right is real when the caller's transaction commits. Raises UniqueViolation when another worker was faster.
    """
    row: Mapping[str, Any] | None = connection.execute(SQL.claim_run, {"node": node}).fetchone()
    if row is not None:
        note(connection, row["id"], RunStatus.RUNNING, f"taken by node {node}")
    return row


def mark_waiting(connection: Connection[Any]) -> None:
    """Say of every run that cannot start yet which run it waits for."""
    connection.execute(SQL.mark_waiting)


def end(connection: Connection[Any], run: str, outcome: Outcome) -> bool:
    """Record how a run ended; False when that is recorded already."""
    row = connection.execute(
        SQL.end_run,
        {
            "id": run,
            "status": outcome.status,
            "finished_at": outcome.finished_at,
            "error": outcome.error,
            "result": None if outcome.result is None else Json(outcome.result),
            "hosts": None if outcome.hosts is None else Json(outcome.hosts),
            "events": outcome.events,
        },
    ).fetchone()
    if row is None:
        return False
    note(connection, run, RunStatus(outcome.status), outcome.error or "the playbook ended")
    values = {"operation": row["operation"], "status": outcome.status, "seconds": row["seconds"]}
    connection.execute(SQL.count_ended, values)
    return True


def note(connection: Connection[Any], run: str, status: RunStatus, reason: str) -> None:
    """Write a step of a run's life down."""
    connection.execute(SQL.insert_change, {"run": run, "status": status, "reason": reason})


def find(connection: Connection[Any], run: str) -> Mapping[str, Any] | None:
    """The row of a run."""
    row: Mapping[str, Any] | None = connection.execute(SQL.one_run, {"id": run}).fetchone()
    return row


def changes(connection: Connection[Any], run: str) -> list[Change]:
    """A run's life so far."""
    rows = connection.execute(SQL.changes_of_run, {"run": run}).fetchall()
    return [Change.model_validate(row) for row in rows]


class RunFilter(BaseModel):
    """Which runs a list is to hold."""

    status: RunStatus | None = None
    operation: str | None = Field(default=None, max_length=63)
    environment: str | None = Field(default=None, max_length=63)


def page(connection: Connection[Any], wanted: RunFilter, before: int | None, limit: int) -> list[tuple[int, Run]]:
    """Runs with their positions, newest first."""
    values = {
        "before": before,
        "limit": limit,
        "status": wanted.status,
        "operation": wanted.operation,
        "environment": wanted.environment,
    }
    return [(row["position"], of_row(row)) for row in connection.execute(SQL.page_of_runs, values)]


def new_id(now: datetime.datetime) -> str:
    """An id that sorts by time and is unlike every other."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def of_row(row: Mapping[str, Any]) -> Run:
    return Run.model_validate(_values(row))


def details_of_row(row: Mapping[str, Any], life: list[Change], operation: Operation | None) -> RunDetails:
    """A run with its life and its command."""
    run = of_row(row)
    asked = LaunchRequest.model_construct(
        **{name: getattr(run, name) for name in LaunchRequest.model_fields if name != "confirm"},
        confirm=run.environment if run.effect is Effect.DESTROY else None,
    )
    by_hand = command(operation, asked) if operation else None
    return RunDetails.model_validate({**_values(row), "changes": life, "command": by_hand})


def command(operation: Operation, request: LaunchRequest) -> str:
    """The equivalent ansible-playbook command; secrets are left out."""
    words = ["ansible-playbook", "-i", f"inventories/{request.environment}", f"playbooks/{operation.playbook}"]
    words += ["--check"] if request.check else []
    words += ["--diff"] if request.diff else []
    words += ["--limit", request.limit] if request.limit else []
    words += ["-e", f"confirm={request.confirm}"] if request.confirm else []
    known = {name: value for name, value in request.parameters.items() if name in operation.parameters}
    open_ones = {name: value for name, value in known.items() if not operation.parameters[name].secret}
    words += ["-e", json.dumps(operation.variables(open_ones), ensure_ascii=False)] if open_ones else []
    return shlex.join(words)


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    waiting_for = row["waiting_for"]
    return {
        **row,
        "check": row["check_mode"],
        "limit": row["host_limit"],
        "status_reason": f"waiting for run {waiting_for}" if waiting_for else None,
    }
