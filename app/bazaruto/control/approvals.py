"""Approvals: what needs one is planned, looked at by somebody else, planned again, and only then runs.

Nothing is held meanwhile. PostgreSQL decides: each step is one conditional update, and its clock says what expired.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.types.json import Json

from bazaruto import logs
from bazaruto.control import access, plans, runs
from bazaruto.control.catalog import Catalogue, CatalogueError, Effect, Operation
from bazaruto.control.content import Content, ContentError
from bazaruto.control.requests import ApproveRequest, LaunchRequest
from bazaruto.control.runs import Approval, ClashError, RunStatus
from bazaruto.control.sealing import Seal
from bazaruto.database import statements

SQL = statements(__package__, "approvals.sql")
log = logs.get(__name__)
UNDECIDED = (Approval.PLANNING, Approval.PENDING)
NOT_GRANTED = (*UNDECIDED, Approval.CONFIRMING)
NOT_STARTED = (*NOT_GRANTED, Approval.GRANTED)
SHOWN_DIGITS = 16  # of a content digest, as in a snapshot's name


def needed(catalogue: Catalogue, operation: Operation, request: LaunchRequest) -> bool:
    """Whether somebody else has to approve a launch."""
    protected = request.environment in catalogue.protected and operation.effect is not Effect.READ
    return not request.check and (operation.approval or protected)


def ask(connection: Connection[Any], seal: Seal, run: str) -> runs.Run:
    """Let a run that was just accepted wait for its approval, and a check run say what it would change."""
    row = runs.find(connection, run) or {}
    plan = _make_plan(connection, seal, row, f"says what run {run} would change")
    reason = f"run {plan} finds out what it would change"
    row = connection.execute(SQL.begin_planning, {"id": run, "plan": plan, "reason": reason}).fetchone() or {}
    runs.note(connection, run, RunStatus.WAITING, reason)
    return runs.of_row(row)


def approve(connection: Connection[Any], seal: Seal, run: str, by: str, wanted: ApproveRequest) -> None:
    """Approve what was planned; another check run sees whether it still holds.

    Raises NotAllowed for whoever launched it, ClashError when there is nothing to approve, or another plan than that
    which was looked at. Of several at the same moment one succeeds.
    """
    confirming = runs.new_id(datetime.datetime.now(datetime.UTC))
    reason = f"approved by {by}; run {confirming} sees whether it still would change the same"
    values = {"id": run, "by": by, "confirming": confirming, "reason": reason}
    row = connection.execute(SQL.approve, {**values, "why": wanted.reason, "plan": wanted.plan}).fetchone()
    if row is None:
        raise _clash(connection, run, wanted.plan)
    _make_plan(connection, seal, row, f"confirms the plan of run {run}", confirming)
    connection.execute(SQL.wait_for_confirmation, {"id": run})
    runs.note(connection, run, RunStatus.WAITING, reason + (f": {wanted.reason}" if wanted.reason else ""))


def refuse_own(row: Mapping[str, Any], by: str) -> None:
    """Raise NotAllowed for whoever launched the run, whichever token they use."""
    if row["approval"] and row["requested_by"] == by:
        raise access.NotAllowed(f"{by} launched this run: somebody else has to look at its plan.")


def reject(connection: Connection[Any], run: str, by: str, why: str) -> None:
    """Say no to what was planned, for good. Raises ClashError when it needs no decision, or has one."""
    if not _reject(connection, run, f"It was rejected by {by}: {why}", UNDECIDED, by, why):
        raise _clash(connection, run, None)


def cancel(connection: Connection[Any], run: str, by: str, why: str | None) -> None:
    """Withdraw a run that is not approved yet; cancel any other. Raises ClashError when it is over."""
    error = f"It was withdrawn by {by}" + (f": {why}" if why else ".")
    if not _reject(connection, run, error, NOT_GRANTED, by, why):
        runs.cancel(connection, run, by, why)


def expire(connection: Connection[Any]) -> None:
    """Reject whatever was not approved, or did not start, in time."""
    for row in connection.execute(SQL.expired).fetchall():
        until = f"{row['approval_expires_at'].astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
        late = (
            f"Nobody approved it until {until}."
            if row["approval"] == Approval.PENDING
            else f"It was approved, and did not start until {until}."
        )
        _reject(connection, row["id"], late, NOT_STARTED)


def void(connection: Connection[Any], run: str, changed: str) -> None:
    """Reject a run because something it was planned with has changed."""
    _reject(connection, run, f"Its plan holds no longer: {changed}", NOT_STARTED)


def changed_content(row: Mapping[str, Any], content: Content) -> str | None:
    """What is another than when the run was planned, in a sentence; None while the content is the same."""
    try:
        current = content.current().digest
    except (CatalogueError, ContentError) as error:
        return f"the content was changed, and cannot be used: {error}"
    if current == row["content_digest"]:
        return None
    planned = str(row["content_digest"])[:SHOWN_DIGITS]
    return f"the content was changed: it was planned with {planned}, and is {current[:SHOWN_DIGITS]} now."


def advance(connection: Connection[Any], expire_seconds: float) -> None:
    """Take up what ended plans say: offer them for approval, or let what was approved run."""
    for row in connection.execute(SQL.plans_that_ended).fetchall():
        try:
            with connection.transaction():
                _take_up(connection, row, expire_seconds)
        except psycopg.Error:
            raise  # the database's trouble is not the plan's
        except Exception as error:
            log.exception("a plan cannot be taken up", run=row["id"])
            trouble = f"What it would change is not known: its plan cannot be read: {type(error).__name__}: {error}"
            _reject(connection, row["id"], trouble, NOT_GRANTED)


def _take_up(connection: Connection[Any], row: Mapping[str, Any], expire_seconds: float) -> None:
    if trouble := _trouble(row):
        _reject(connection, row["id"], trouble, NOT_GRANTED)
    elif row["approval"] == Approval.PLANNING:
        _offer(connection, row, expire_seconds)
    else:
        _compare(connection, row)


def _offer(connection: Connection[Any], row: Mapping[str, Any], expire_seconds: float) -> None:
    """The plan is there: somebody has to look at it."""
    changes = _predicted(connection, row["plan_run"], row["id"])
    plan = plans.summary(changes, row["id"], row["content_digest"], row["now"])
    reason = f"waiting for an approver other than {row['requested_by']}: `bazaruto approve {row['id']}`"
    values = {"id": row["id"], "plan": Json(plan.model_dump(mode="json")), "seconds": expire_seconds, "reason": reason}
    connection.execute(SQL.planned, values)
    runs.note(connection, row["id"], RunStatus.WAITING, reason)


def _compare(connection: Connection[Any], row: Mapping[str, Any]) -> None:
    """Let the approved run start, unless it would change something else by now."""
    now = _predicted(connection, row["confirming_run"], row["id"])
    if plans.digest(now, row["id"]) == row["plan"]["digest"]:
        connection.execute(SQL.grant, {"id": row["id"]})
        reason = f"approved by {row['approved_by']}; run {row['confirming_run']} says that it changes just that"
        runs.note(connection, row["id"], RunStatus.QUEUED, reason)
        return
    before = _predicted(connection, row["plan_run"], row["id"])
    known = plans.digest(before, row["id"]) == row["plan"]["digest"]
    what = plans.difference(before, now) if known else "its first plan is no longer on record"
    void(connection, row["id"], f"it would change something else than {row['approved_by']} approved: {what}.")


def _trouble(row: Mapping[str, Any]) -> str | None:
    """Why an ended plan says nothing that could be relied on."""
    plan = row["confirming_run"] or row["plan_run"]
    if row["ended_as"] is None:
        return f"Its plan, run {plan}, is no longer on record."
    if row["ended_as"] != RunStatus.SUCCEEDED or row["ended_error"]:
        said = f": {row['ended_error']}" if row["ended_error"] else "."
        return f"What it would change is not known: run {plan} ended as {row['ended_as']}{said}"
    return None


def _predicted(connection: Connection[Any], plan: str, run: str) -> list[plans.PredictedChange]:
    day = (connection.execute(SQL.day_of_run, {"id": plan}).fetchone() or {}).get("day")
    rows = connection.execute(SQL.predicted, {"day": day, "run": plan}).fetchall()
    return plans.predicted([row["body"] for row in rows], plan, run)


def _make_plan(
    connection: Connection[Any], seal: Seal, row: Mapping[str, Any], reason: str, plan: str | None = None
) -> str:
    """The same launch in check mode, as a run of its own: its id."""
    now = datetime.datetime.now(datetime.UTC)
    plan = plan or runs.new_id(now)
    variables = {**seal.open(bytes(row["variables"])), "bazaruto_run_id": plan}
    values = {"id": plan, "day": now.date(), "variables": seal.close(variables), "reason": reason}
    connection.execute(SQL.insert_plan, {**values, "plan_for": row["id"]})
    runs.note(connection, plan, RunStatus.QUEUED, reason)
    return plan


def _reject(  # noqa: PLR0913, PLR0917 - who and why are part of every rejection
    connection: Connection[Any],
    run: str,
    error: str,
    states: Sequence[Approval],
    by: str | None = None,
    why: str | None = None,
) -> bool:
    """End a run as rejected where its approval stands in one of these states, and its plan with it."""
    values = {"id": run, "error": error, "states": list(states), "by": by, "why": why or error}
    row = connection.execute(SQL.reject, values).fetchone()
    if row is None:
        return False
    runs.count_end(connection, run, RunStatus.REJECTED, error, row)
    with contextlib.suppress(ClashError):  # the plan has ended already, as most have
        runs.cancel(connection, row["planning_run"], by or "the control plane", f"run {run} was rejected")
    return True


def _clash(connection: Connection[Any], run: str, plan: str | None) -> ClashError:
    """Why nothing can be decided, from where the run stands now."""
    row = runs.find(connection, run) or {}
    stands = row["approval"]
    if row["plan_for"]:
        why = f"It is the plan of run {row['plan_for']}: decide on that one."
    elif stands is None:
        why = "The run needs no approval."
    elif row["approved_by"]:
        why = f"The run was approved already, by {row['approved_by']}, and is {row['status']}."
    elif RunStatus(row["status"]).terminal:
        why = f"The run has ended already, as {row['status']}. {row['error'] or ''}".rstrip()
    elif stands == Approval.PLANNING:
        why = f"There is no plan to decide on yet: {row['waiting_reason']}."
    elif plan not in (None, row["plan_run"]):
        why = f"The plan {plan} is not this run's, which is {row['plan_run']}: look at that one."
    else:
        why = "The run was decided on, or expired, at this moment: look at it again."
    return ClashError(why)
