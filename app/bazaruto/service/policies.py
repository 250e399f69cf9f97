"""Policies: drafted and activated by staff, seen by their holder, lapsed at their end or canceled before."""

from __future__ import annotations

import datetime as dt
import enum
from functools import partial
from typing import Any

import bottle
from pydantic import ValidationInfo, field_validator

from bazaruto import database, logs, web
from bazaruto.problems import Problem
from bazaruto.service.access import (
    STAFF,
    identified,
    identify,
    not_found,
    path_id,
    presented_hash,
    require,
)
from bazaruto.service.context import Service, changing, only_row, reading, today
from bazaruto.service.fields import Currency, Day, Id, Input, Minor, Product
from bazaruto.service.lists import Page

SQL = database.statements(__package__, "policies.sql")
log = logs.get(__name__)


class PolicyStatus(enum.StrEnum):
    """Where a policy stands; its terms are fixed once it left draft."""

    DRAFT = "draft"  # then active
    ACTIVE = "active"  # then lapsed or canceled
    LAPSED = "lapsed"  # its term is over; claims about the term are still taken
    CANCELED = "canceled"  # ended before its term; nothing can be claimed any more


class NewPolicy(Input):
    """A policy to be drafted; amounts in the currency's smallest unit, both days inside the term."""

    user_id: Id
    product: Product
    coverage_minor: Minor
    premium_minor: Minor
    currency: Currency
    starts_on: Day
    ends_on: Day

    @field_validator("premium_minor")
    @classmethod
    def _within_coverage(cls, premium: int, info: ValidationInfo) -> int:
        if "coverage_minor" in info.data and premium > info.data["coverage_minor"]:
            raise ValueError("must not exceed the coverage")
        return premium

    @field_validator("ends_on")
    @classmethod
    def _after_start(cls, ends_on: dt.date, info: ValidationInfo) -> dt.date:
        if "starts_on" in info.data and ends_on < info.data["starts_on"]:
            raise ValueError("must not lie before starts_on")
        return ends_on


class PolicyList(Page):
    """Filters of the list of policies; a customer sees only own ones anyway."""

    user_id: Id | None = None
    status: PolicyStatus | None = None
    product: Product | None = None


FOLLOWS: dict[PolicyStatus, frozenset[PolicyStatus]] = {
    PolicyStatus.DRAFT: frozenset({PolicyStatus.ACTIVE}),
    PolicyStatus.ACTIVE: frozenset({PolicyStatus.LAPSED, PolicyStatus.CANCELED}),
    PolicyStatus.LAPSED: frozenset(),
    PolicyStatus.CANCELED: frozenset(),
}
_STEPS = {
    "activate": PolicyStatus.ACTIVE,
    "lapse": PolicyStatus.LAPSED,
    "cancel": PolicyStatus.CANCELED,
}


def routes(app: web.App, service: Service) -> None:
    """Put policies under /v1/policies."""
    app.route("/v1/policies", "POST", partial(_create, service))
    app.route("/v1/policies", "GET", partial(_list, service))
    app.route("/v1/policies/<policy_id>", "GET", partial(_show, service))
    for verb, status in _STEPS.items():
        app.route(f"/v1/policies/<policy_id>/{verb}", "POST", partial(_move, service, status))


def _create(service: Service) -> bottle.HTTPResponse:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        require(caller, STAFF)
        policy = only_row(connection.execute(SQL.insert_policy, web.json_body(NewPolicy).model_dump()))
    log.info("Policy created", policy_id=str(policy["id"]), number=policy["number"], by=str(caller.id))
    return bottle.HTTPResponse(policy, 201, {"Location": f"/v1/policies/{policy['id']}"})


def _list(service: Service) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        caller = identify(connection, token)
        wanted = web.query(PolicyList)
        values = wanted.keys() | {
            "user_id": caller.whose(wanted.user_id),
            "status": wanted.status,
            "product": wanted.product,
        }
        return wanted.answer(connection.execute(SQL.list_policies, values).fetchall())


def _show(service: Service, policy_id: str) -> dict[str, Any]:
    values = {"token_sha256": presented_hash(), "id": path_id(policy_id, "policy")}
    # The commonest read: both questions in one statement.
    with reading(service.pool) as connection:
        policy = connection.execute(SQL.policy_for_token, values).fetchone()
    caller = identified(policy)
    if policy is None or policy["id"] is None:
        raise not_found("policy")
    caller.must_own(policy["user_id"])
    return policy


def _move(service: Service, status: PolicyStatus, policy_id: str) -> dict[str, Any]:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        require(caller, STAFF)
        values = {"id": path_id(policy_id, "policy"), "status": status.value}
        before = connection.execute(SQL.lock_policy, values).fetchone()
        if before is None:
            raise not_found("policy")
        _refuse_wrong_step(PolicyStatus(before["status"]), status, before["ends_on"])
        policy = only_row(connection.execute(SQL.set_policy_status, values))
    log.info(f"Policy {status.value}", policy_id=policy_id, number=policy["number"], by=str(caller.id))
    return policy


def _refuse_wrong_step(before: PolicyStatus, after: PolicyStatus, ends_on: dt.date) -> None:
    """409 for what may not follow; the database's trigger holds the same rules."""
    if after not in FOLLOWS[before]:
        raise Problem(409, "Conflict", f"The policy is {before.value}, it cannot become {after.value}.")
    over = ends_on < today()
    if after is PolicyStatus.ACTIVE and over:
        raise Problem(409, "Conflict", f"The policy's term ended on {ends_on}, it cannot become active.")
    if after is PolicyStatus.LAPSED and not over:
        raise Problem(409, "Conflict", f"The policy runs until {ends_on}, it can be canceled but not lapse.")


def lapse_ended(connection: database.Connection) -> int:
    """Lapse every active policy whose term is over; returns how many."""
    return connection.execute(SQL.lapse_ended).rowcount
