"""Whatever is asked in whatever order, the domain's rules hold: in answers and in the database."""

from __future__ import annotations

import datetime as dt
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from .conftest import Client, Installation

TODAY = dt.datetime.now(dt.UTC).date()
CLAIM_STEPS = {
    ("submitted", "review"): "in_review",
    ("in_review", "approve"): "approved",
    ("in_review", "reject"): "rejected",
    ("approved", "pay"): "paid",
}
POLICY_STEPS = {("draft", "activate"): "active", ("active", "cancel"): "canceled", ("active", "lapse"): "lapsed"}
BROKEN = """
    SELECT count(*) AS broken
      FROM claims
      JOIN policies ON policies.id = claims.policy_id
     WHERE claims.amount_minor > policies.coverage_minor
        OR claims.currency <> policies.currency
        OR claims.incident_on NOT BETWEEN policies.starts_on AND policies.ends_on
        OR claims.incident_on > (claims.created_at AT TIME ZONE 'UTC')::date
        OR policies.status = 'draft'
        OR claims.status IS DISTINCT FROM (
           SELECT to_status FROM claim_history WHERE claim_id = claims.id ORDER BY id DESC LIMIT 1)
        OR EXISTS (
           SELECT FROM (
               SELECT from_status, lag(to_status) OVER (ORDER BY id) AS before
                 FROM claim_history WHERE claim_id = claims.id
           ) AS steps WHERE from_status IS DISTINCT FROM before)
"""
dates = st.dates(dt.date(2024, 1, 1), TODAY + dt.timedelta(days=400))
amounts = st.integers(-2, 60) | st.sampled_from([10**15, 10**16, 2**63, 10**30])
currencies = st.sampled_from(["EUR", "USD", "JPY", "eur", "XXX", ""])


def machine(shared: Installation, staff: Client) -> type[RuleBasedStateMachine]:
    """The machine for one installation."""
    holder = staff.get("/v1/users/me").json()["id"]

    class Domain(RuleBasedStateMachine):
        policies = Bundle("policies")
        claims = Bundle("claims")

        def __init__(self) -> None:
            super().__init__()
            self.known: dict[str, dict[str, Any]] = {}  # what the model thinks each thing is

        def _made(self, answer: httpx.Response, right: bool) -> Any:
            assert answer.status_code == (201 if right else 422), answer.text
            if not right:
                return multiple()
            self.known[answer.json()["id"]] = answer.json()
            return answer.json()["id"]

        @initialize(target=policies, coverage=st.integers(1, 50))
        def one_active_policy(self, coverage: int) -> Any:
            policy = self._draft(coverage, 1, "EUR", dt.date(2024, 1, 1), dt.date(2099, 1, 1))
            self._step("policies", policy, "activate", POLICY_STEPS)
            return policy

        @rule(target=policies, coverage=amounts, premium=amounts, currency=currencies, starts=dates, ends=dates)
        def draft(self, coverage: int, premium: int, currency: str, starts: dt.date, ends: dt.date) -> Any:
            return self._draft(coverage, premium, currency, starts, ends)

        def _draft(self, coverage: int, premium: int, currency: str, starts: dt.date, ends: dt.date) -> Any:
            right = 1 <= premium <= coverage <= 10**15 and currency in {"EUR", "USD", "JPY"} and starts <= ends
            values = {"user_id": holder, "product": "motor", "coverage_minor": coverage, "premium_minor": premium}
            values |= {"currency": currency, "starts_on": str(starts), "ends_on": str(ends)}
            return self._made(staff.post("/v1/policies", json=values), right)

        @rule(policy=policies, verb=st.sampled_from(["activate", "cancel", "lapse"]))
        def move_policy(self, policy: str, verb: str) -> None:
            self._step("policies", policy, verb, POLICY_STEPS)

        @rule(target=claims, policy=policies, amount=amounts, currency=currencies, incident=dates)
        def claim(self, policy: str, amount: int, currency: str, incident: dt.date) -> Any:
            terms = self.known[policy]
            values = {"policy_id": policy, "amount_minor": amount, "currency": currency}
            values |= {"incident_on": str(incident), "description": "x"}
            fits = (
                1 <= amount <= min(terms["coverage_minor"], 10**15)
                and currency == terms["currency"]
                and terms["starts_on"] <= str(incident) <= terms["ends_on"]
                and incident <= TODAY
            )
            answer = staff.post("/v1/claims", json=values)
            if fits and terms["status"] not in {"active", "lapsed"}:
                assert answer.status_code == 409
                return multiple()
            return self._made(answer, fits)

        @rule(claim=claims, verb=st.sampled_from(["review", "approve", "reject", "pay"]))
        def move_claim(self, claim: str, verb: str) -> None:
            self._step("claims", claim, verb, CLAIM_STEPS)

        def _step(self, kind: str, identity: str, verb: str, steps: dict[tuple[str, str], str]) -> None:
            thing = self.known[identity]
            after = steps.get((thing["status"], verb))
            over = thing.get("ends_on", "") < str(TODAY)
            if kind == "policies" and ((verb == "activate" and over) or (verb == "lapse" and not over)):
                after = None
            answer = staff.post(
                f"/v1/{kind}/{identity}/{verb}", json={"reason": "because"} if kind == "claims" else None
            )
            assert answer.status_code == (200 if after else 409), answer.text
            if after:
                assert answer.json()["status"] == after
                thing["status"] = after

        @invariant()
        def the_database_agrees(self) -> None:
            for identity, thing in list(self.known.items())[-3:]:
                kind = "claims" if "incident_on" in thing else "policies"
                assert staff.get(f"/v1/{kind}/{identity}").json()["status"] == thing["status"]

        def teardown(self) -> None:
            assert shared.one(BROKEN)["broken"] == 0

    return Domain


@pytest.mark.timeout(200)
def test_no_sequence_of_requests_breaks_a_rule_of_the_domain(shared: Installation, agent: Client) -> None:
    run_state_machine_as_test(
        machine(shared, agent),
        settings=settings(
            max_examples=20,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
