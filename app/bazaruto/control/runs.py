"""Runs: accepted, claimed by one worker, ended once. PostgreSQL decides who may run; nothing else does."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from psycopg import Connection
from psycopg.types.json import Json
from pydantic import AfterValidator, BaseModel, Field

from bazaruto.control import events, plans
from bazaruto.control.access import Identity
from bazaruto.control.catalog import Effect, Operation
from bazaruto.control.engine.rundir import Outcome
from bazaruto.control.requests import LaunchRequest, command
from bazaruto.control.sealing import Seal
from bazaruto.database import statements

SQL = statements(__package__, "runs.sql")


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


class Approval(enum.StrEnum):
    """Where the approval of a run stands that needs one. Only a granted one ever runs."""

    PLANNING = "planning"  # a check run finds out what it would change
    PENDING = "pending"  # somebody else has to look at that
    CONFIRMING = "confirming"  # approved; another check run sees whether it still would change the same
    GRANTED = "granted"  # it may run
    REJECTED = "rejected"  # it never will


def _in_utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)


Moment = Annotated[datetime.datetime, AfterValidator(_in_utc)]
Position = Annotated[int, Field(ge=1, lt=2**63)]  # in the order of acceptance; what PostgreSQL's bigint holds


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
    retry_of: str | None = Field(description="The run whose failed hosts this one tries again")
    revision: str | None = Field(description="The commit of the content it runs; null when that is in no checkout")
    dirty: bool = Field(description="Whether that content differs from the commit")
    content_digest: str | None = Field(description="The snapshot it runs from")
    approval: Approval | None = Field(default=None, description="Where its approval stands; null when it needs none")
    plan_for: str | None = Field(default=None, description="Of a plan: the run it foresees")
    plan_run: str | None = Field(default=None, description="The check run that says what this one would change")
    confirming_run: str | None = Field(default=None, description="The check run that says so again, after the approval")
    plan: plans.Plan | None = Field(default=None, description="What is to be approved, once it is known")
    approval_expires_at: Moment | None = Field(default=None, description="By then it must have started")
    approved_at: Moment | None = None
    approved_by: str | None = None
    approve_reason: str | None = None
    rejected_by: str | None = Field(default=None, description="Null when it expired, or something had changed")
    reject_reason: str | None = None
    cancel_requested_at: Moment | None
    cancel_requested_by: str | None
    cancel_reason: str | None
    left_running: list[str] = Field(description="Hosts that may still be at work for it, since they cannot be asked")
    waived_at: Moment | None = Field(description="Since when that stands in nobody's way")
    waived_by: str | None
    waive_reason: str | None
    error: str | None = Field(description="One sentence, when it did not succeed")
    events: int = Field(description="How many events were recorded, once it has ended")
    events_removed_at: Moment | None = Field(default=None, description="Since when they and the output are let go")


class RunDetails(Run):
    """A run with its whole life."""

    changes: list[Change]
    command: str | None = Field(description="The same by hand, without secrets; null when the operation is no more")


class ClashError(Exception):
    """What is asked does not fit where the run stands; the text says why."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a launch comes from, and what it will run."""

    requested_by: str
    retry_of: str | None = None  # the run whose failed hosts are tried again
    revision: str | None = None  # commit of the content
    dirty: bool = False  # the content differs from it
    content_digest: str | None = None  # of the snapshot


def accept(
    connection: Connection[Any], seal: Seal, operation: Operation, request: LaunchRequest, origin: Origin
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
            "timeout_seconds": operation.timeout_seconds,
            "idle_timeout_seconds": operation.idle_timeout_seconds,
            "tolerates": list(operation.tolerates),
            **dataclasses.asdict(origin),
        },
    ).fetchone()
    note(connection, run, RunStatus.QUEUED, f"accepted from {origin.requested_by}")
    return of_row(row or {})


def claim(connection: Connection[Any], node: str, environments: Sequence[str]) -> Mapping[str, Any] | None:
    """Take the right to run the oldest run that may start in these environments (none named: in any): its row, and
    its life so far as `changes`. None when there is none.

    The right is real when the caller's transaction commits. Raises UniqueViolation when another worker was faster.
    """
    row: Mapping[str, Any] | None = connection.execute(
        SQL.claim_run, {"node": node, "environments": list(environments)}
    ).fetchone()
    if row is None:
        return None
    note(connection, row["id"], RunStatus.RUNNING, f"taken by node {node}")
    return {**row, "changes": [change.model_dump(mode="json") for change in changes(connection, row["id"])]}


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
            "seconds": outcome.seconds,
            "left_running": outcome.left_running,
            "error": outcome.error,
            "result": None if outcome.result is None else Json(outcome.result),
            "hosts": None if outcome.hosts is None else Json(outcome.hosts),
            "events": outcome.events,
        },
    ).fetchone()
    if row is None:
        return False
    count_end(connection, run, RunStatus(outcome.status), outcome.error or "the playbook ended", row)
    return True


def cancel(connection: Connection[Any], run: str, by: str, reason: str | None) -> None:
    """Cancel a run that has not started, at once; ask for the end of one that runs. Raises ClashError when it is over.

    Asked again, nothing changes: the first who asked is the one who is named.
    """
    words = f"canceled by {by}" + (f": {reason}" if reason else "")
    values = {"id": run, "by": by, "reason": reason, "error": f"It was {words}, before it started."}
    if row := connection.execute(SQL.cancel_before_start, values).fetchone():
        count_end(connection, run, RunStatus.CANCELED, f"{words}, before it started", row)
    elif connection.execute(SQL.request_cancel, values).fetchone():
        note(connection, run, RunStatus.RUNNING, f"to be {words}")
    else:
        row = find(connection, run)
        if row is not None and RunStatus(row["status"]).terminal:
            raise ClashError(f"The run has ended already, as {row['status']}.")


def waive(connection: Connection[Any], run: str, by: str, reason: str) -> None:
    """Let changes start although this run may have left something running. Raises ClashError when nothing is left."""
    if not connection.execute(SQL.waive, {"id": run, "by": by, "reason": reason}).fetchone():
        raise ClashError("There is nothing to waive: no host is left that may still be at work for this run.")
    row = find(connection, run) or {}
    hosts = ", ".join(row["left_running"])
    note(connection, run, RunStatus(row["status"]), f"{by} answers for what may still run on {hosts}: {reason}")


def settle(connection: Connection[Any], run: str, left_running: Sequence[str], reason: str) -> None:
    """Write down on which hosts a run may still be at work, as far as is known by now."""
    if connection.execute(SQL.settle, {"id": run, "left_running": list(left_running)}).fetchone():
        row = find(connection, run) or {}
        note(connection, run, RunStatus(row["status"]), reason)


def count_end(connection: Connection[Any], run: str, status: RunStatus, reason: str, row: Mapping[str, Any]) -> None:
    """Write down and count how a run ended, once its row says so."""
    note(connection, run, status, reason)
    connection.execute(SQL.count_ended, {"operation": row["operation"], "status": status, "seconds": row["seconds"]})


def note(connection: Connection[Any], run: str, status: RunStatus, reason: str) -> None:
    """Write a step of a run's life down, and tell whoever follows it."""
    connection.execute(SQL.insert_change, {"run": run, "status": status, "reason": reason})
    events.announce(connection, run)


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


def page(
    connection: Connection[Any], wanted: RunFilter, by: Identity, before: int | None, limit: int
) -> list[tuple[int, Run]]:
    """Runs within somebody's limits with their positions, newest first."""
    values = {
        "before": before,
        "limit": limit,
        "status": wanted.status,
        "operation": wanted.operation,
        "environment": wanted.environment,
        "environments": list(by.environments),
        "operations": list(by.operations),
    }
    # Never prepared: a plan for any filter would read all runs where an index finds the few of this one.
    found = connection.execute(SQL.page_of_runs, values, prepare=False)
    return [(row["position"], of_row(row)) for row in found]


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


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    reason = row["waiting_reason"]
    if row["status"] == RunStatus.QUEUED and row.get("unserved"):
        reason = f"no worker serves {row['environment']}: start `bazaruto worker`"
    return {**row, "check": row["check_mode"], "limit": row["host_limit"], "status_reason": reason}
