"""Policies through HTTP."""

from __future__ import annotations

import pytest

from .conftest import Client, new_policy, wrong_fields

NOBODYS_ID = "00000000-0000-4000-8000-000000000000"


def test_a_policy_is_drafted_activated_and_canceled(agent: Client, customer: Client) -> None:
    policy = new_policy(agent, customer, activate=False)
    assert (policy["status"], policy["number"][:4]) == ("draft", "POL-")
    assert agent.post(f"/v1/policies/{policy['id']}/cancel").status_code == 409
    assert agent.post(f"/v1/policies/{policy['id']}/activate").json()["status"] == "active"
    assert agent.post(f"/v1/policies/{policy['id']}/activate").status_code == 409
    assert agent.post(f"/v1/policies/{policy['id']}/lapse").status_code == 409
    assert agent.post(f"/v1/policies/{policy['id']}/cancel").json()["status"] == "canceled"
    for verb in ("activate", "cancel", "lapse"):
        assert agent.post(f"/v1/policies/{policy['id']}/{verb}").status_code == 409


def test_a_policy_whose_term_is_over_cannot_be_activated(agent: Client, customer: Client) -> None:
    policy = new_policy(agent, customer, activate=False, starts_on="2020-01-01", ends_on="2020-12-31")
    assert agent.post(f"/v1/policies/{policy['id']}/activate").status_code == 409


def test_every_wrong_field_is_named_at_once(agent: Client) -> None:
    wrong = {
        "user_id": "7",
        "product": "yacht",
        "coverage_minor": -1,
        "premium_minor": 10.5,
        "currency": "eur",
        "starts_on": "2026-02-30",
        "ends_on": "tomorrow",
        "color": "red",
    }
    assert wrong_fields(agent.post("/v1/policies", json=wrong)) == set(wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("coverage_minor", 10**15 + 1),
        ("coverage_minor", 10**40),
        ("coverage_minor", "1000000"),
        ("coverage_minor", True),
        ("coverage_minor", 1e6),
        ("premium_minor", 0),
        ("premium_minor", 2_000_000),
        ("currency", "XXX"),
        ("currency", "EURO"),
        ("starts_on", "2025-02-29"),
        ("starts_on", "1969-12-31"),
        ("starts_on", 1735689600),
        ("starts_on", "2025-01-01T00:00:00Z"),
        ("ends_on", "2024-12-31"),
        ("ends_on", "2200-01-01"),
        ("ends_on", "99999-01-01"),
        ("user_id", NOBODYS_ID),
    ],
)
def test_amounts_dates_and_holders_that_cannot_be_are_refused(agent: Client, field: str, value: object) -> None:
    me = agent.get("/v1/users/me").json()["id"]
    right = {"user_id": me, "product": "home", "coverage_minor": 1_000_000, "premium_minor": 1, "currency": "EUR"}
    right |= {"starts_on": "2025-01-01", "ends_on": "2025-12-31"}
    assert wrong_fields(agent.post("/v1/policies", json=right | {field: value})) == {field}


def test_customers_see_their_own_policies_only(agent: Client, customer: Client, stranger: Client) -> None:
    own, other = new_policy(agent, customer), new_policy(agent, stranger)
    assert customer.get(f"/v1/policies/{own['id']}").json() == own
    refused = customer.get(f"/v1/policies/{other['id']}")
    assert refused.status_code == 403
    assert other["number"] not in refused.text
    assert customer.get(f"/v1/policies/{NOBODYS_ID}").status_code == 404
    listed = customer.get("/v1/policies?limit=200").json()["items"]
    me = customer.get("/v1/users/me").json()["id"]
    assert {policy["user_id"] for policy in listed} == {me}
    assert customer.get(f"/v1/policies?user_id={other['user_id']}").status_code == 403
    assert customer.post(f"/v1/policies/{own['id']}/cancel").status_code == 403
    assert customer.post("/v1/policies", json={}).status_code == 403


def test_lists_are_filtered_and_paged(agent: Client, stranger: Client) -> None:
    made = [new_policy(agent, stranger, product="travel")["id"] for _ in range(5)]
    who = stranger.get("/v1/users/me").json()["id"]
    found: list[str] = []
    query = {"user_id": who, "product": "travel", "status": "active", "limit": 2}
    answer = agent.get("/v1/policies", params=query).json()
    while True:
        found += [policy["id"] for policy in answer["items"]]
        if answer["next"] is None:
            break
        answer = agent.get("/v1/policies", params=query | {"cursor": answer["next"]}).json()
    assert found == made[::-1]
