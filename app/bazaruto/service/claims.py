"""Claims: submitted by customers or staff, reviewed, decided and paid; every step leaves a line of history."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from functools import partial
from typing import Any

import bottle
from psycopg.rows import DictRow

from bazaruto import database, logs, web
from bazaruto.problems import FieldError, Problem
from bazaruto.service import webhooks
from bazaruto.service.access import STAFF, identify, not_found, path_id, presented_hash, require
from bazaruto.service.context import Service, changing, only_row, reading, today
from bazaruto.service.fields import Currency, Day, Description, Id, Input, Minor, Reason
from bazaruto.service.jobs import Task, defer
from bazaruto.service.lists import Page
from bazaruto.service.policies import PolicyStatus

SQL = database.statements(__package__, "claims.sql")
log = logs.get(__name__)


class ClaimStatus(enum.StrEnum):
    """Where a claim stands."""

    SUBMITTED = "submitted"  # then in_review, by the assessment job or a person
    IN_REVIEW = "in_review"  # then approved or rejected
    APPROVED = "approved"  # then paid
    REJECTED = "rejected"  # for good
    PAID = "paid"  # for good


FOLLOWS: dict[ClaimStatus, frozenset[ClaimStatus]] = {
    ClaimStatus.SUBMITTED: frozenset({ClaimStatus.IN_REVIEW}),
    ClaimStatus.IN_REVIEW: frozenset({ClaimStatus.APPROVED, ClaimStatus.REJECTED}),
    ClaimStatus.APPROVED: frozenset({ClaimStatus.PAID}),
    ClaimStatus.REJECTED: frozenset(),
    ClaimStatus.PAID: frozenset(),
}


class NewClaim(Input):
    """What happened, when, and how much is asked for, in the policy's currency's smallest unit."""

    policy_id: Id
    amount_minor: Minor
    currency: Currency
    incident_on: Day
    description: Description


class Step(Input):
    """Why a claim moves on."""

    reason: Reason | None = None


class Rejection(Input):
    """Why a claim is rejected: its holder will ask."""

    reason: Reason


class ClaimList(Page):
    """Filters of the list of claims; a customer sees only those on own policies anyway."""

    user_id: Id | None = None
    policy_id: Id | None = None
    status: ClaimStatus | None = None


_STEPS: dict[str, tuple[ClaimStatus, type[Step] | type[Rejection]]] = {
    "review": (ClaimStatus.IN_REVIEW, Step),
    "approve": (ClaimStatus.APPROVED, Step),
    "reject": (ClaimStatus.REJECTED, Rejection),
    "pay": (ClaimStatus.PAID, Step),
}


def routes(app: web.App, service: Service) -> None:
    """Put claims under /v1/claims."""
    app.route("/v1/claims", "POST", partial(_create, service))
    app.route("/v1/claims", "GET", partial(_list, service))
    app.route("/v1/claims/<claim_id>", "GET", partial(_show, service))
    for verb, (status, model) in _STEPS.items():
        app.route(f"/v1/claims/<claim_id>/{verb}", "POST", partial(_move, service, status, model))


def refusals(new: NewClaim, policy: DictRow, day: dt.date) -> list[FieldError]:
    """Every way in which a claim does not fit its policy; the database's trigger holds the same rules."""
    errors = []
    if new.currency != policy["currency"]:
        errors.append(FieldError("currency", f"must be the policy's, {policy['currency']}"))
    elif new.amount_minor > policy["coverage_minor"]:
        errors.append(FieldError("amount_minor", f"must not exceed the coverage, {policy['coverage_minor']}"))
    if new.incident_on > day:
        errors.append(FieldError("incident_on", "must not lie in the future (days are UTC)"))
    if not policy["starts_on"] <= new.incident_on <= policy["ends_on"]:
        term = f"{policy['starts_on']} to {policy['ends_on']}"
        errors.append(FieldError("incident_on", f"must lie inside the policy's term, {term}"))
    return errors


def _create(service: Service) -> bottle.HTTPResponse:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        new = web.json_body(NewClaim)
        policy = connection.execute(SQL.policy_for_claim, {"id": new.policy_id}).fetchone()
        if policy is None:
            raise Problem(422, "Wrong input", errors=[FieldError("policy_id", "there is no such policy")])
        caller.must_own(policy["user_id"])
        if errors := refusals(new, policy, today()):
            raise Problem(422, "Wrong input", "The claim does not fit its policy.", errors=errors)
        if policy["status"] not in {PolicyStatus.ACTIVE, PolicyStatus.LAPSED}:
            raise Problem(409, "Conflict", f"The policy is {policy['status']}: nothing can be claimed on it.")
        claim = submit(connection, new, caller.id)
    log.info("Claim submitted", claim_id=str(claim["id"]), number=claim["number"], by=str(caller.id))
    return bottle.HTTPResponse(claim, 201, {"Location": f"/v1/claims/{claim['id']}"})


def submit(connection: database.Connection, new: NewClaim, by: uuid.UUID) -> DictRow:
    """Create a claim and its assessment job, both or neither."""
    attribute(connection, via="api", changed_by=by)
    claim = only_row(connection.execute(SQL.insert_claim, new.model_dump()))
    defer(connection, Task.ASSESS_CLAIM, {"claim_id": str(claim["id"])})
    webhooks.announce(connection, webhooks.Event.SUBMITTED, claim)
    return claim


def _list(service: Service) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        caller = identify(connection, token)
        wanted = web.query(ClaimList)
        values = wanted.keys() | {
            "user_id": caller.whose(wanted.user_id),
            "policy_id": wanted.policy_id,
            "status": wanted.status,
        }
        return wanted.answer(connection.execute(SQL.list_claims, values).fetchall())


def _show(service: Service, claim_id: str) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        caller = identify(connection, token)
        claim = _found(connection, path_id(claim_id, "claim"))
        caller.must_own(claim["user_id"])
        history = connection.execute(SQL.history_of_claim, {"claim_id": claim["id"]}).fetchall()
    return claim | {"history": history}


def _move(service: Service, status: ClaimStatus, model: type[Step] | type[Rejection], claim_id: str) -> dict[str, Any]:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        require(caller, STAFF)
        reason = web.json_body(model).reason if _has_body() or model is Rejection else None
        claim = _found(connection, path_id(claim_id, "claim"))
        before = ClaimStatus(claim["status"])
        if status not in FOLLOWS[before]:
            raise Problem(409, "Conflict", f"The claim is {before.value}, it cannot become {status.value}.")
        attribute(connection, via="api", changed_by=caller.id, reason=reason)
        moved = advance(connection, claim["id"], before, status)
        if moved is None:
            raise Problem(409, "Conflict", "Someone else moved the claim on at the same moment: look again.")
    log.info(f"Claim {status.value}", claim_id=claim_id, number=moved["number"], by=str(caller.id))
    return moved


def _has_body() -> bool:
    """A step without a reason needs no body."""
    return bottle.request.environ.get("CONTENT_LENGTH", "") not in {"", "0"}


def advance(
    connection: database.Connection, claim_id: uuid.UUID, before: ClaimStatus, after: ClaimStatus
) -> DictRow | None:
    """Move a claim on and queue what subscribers are told; None when it stands elsewhere by now."""
    values = {"id": claim_id, "from_status": before.value, "status": after.value}
    moved = connection.execute(SQL.set_claim_status, values).fetchone()
    event = webhooks.EVENT_OF_STATUS.get(after.value)
    if moved is not None and event is not None:
        webhooks.announce(connection, event, moved)
    return moved


def attribute(
    connection: database.Connection, *, via: str, changed_by: uuid.UUID | None = None, reason: str | None = None
) -> None:
    """Say for the history who changes claims in this transaction, how, and why."""
    values = {"changed_by": str(changed_by or ""), "via": via, "reason": reason or ""}
    connection.execute(SQL.attribute_changes, values)


def _found(connection: database.Connection, claim_id: str) -> DictRow:
    claim = connection.execute(SQL.claim_by_id, {"id": claim_id}).fetchone()
    if claim is None:
        raise not_found("claim")
    return claim
