"""What the business rules say about a new claim."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from bazaruto.service.fields import Product
from bazaruto.service.rules import BusinessRules


@dataclass(frozen=True)
class Facts:
    """What decides about a claim."""

    product: Product
    amount_minor: int
    currency: str
    policy_starts_on: dt.date
    incident_on: dt.date


@dataclass(frozen=True)
class Assessment:
    """Whether a claim is approved without a person, and the sentence for its history."""

    approved: bool
    reason: str


def assess(facts: Facts, rules: BusinessRules | None) -> Assessment:
    """Decide by the rules; without any, a person looks at every claim."""
    if rules is None:
        return Assessment(False, "no business rules are in force")
    by = f"(rules version {rules.version})"
    days = rules.waiting_periods_days[facts.product]
    if facts.incident_on < facts.policy_starts_on + dt.timedelta(days=days):
        return Assessment(False, f"the incident is within the waiting period of {days} days {by}")
    limit = rules.auto_approval_limit(facts.product, facts.currency)
    if facts.amount_minor > limit:
        return Assessment(False, f"the amount is above the auto-approval limit of {limit} {facts.currency} {by}")
    return Assessment(True, f"the amount is within the auto-approval limit of {limit} {facts.currency} {by}")
