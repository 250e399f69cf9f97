"""Claims through HTTP."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

from .conftest import Client, Installation, claim_on, new_policy, wrong_fields


def _submit(client: Client, policy: dict[str, object], **changes: object) -> dict[str, object]:
    answer = client.post("/v1/claims", json=claim_on(policy, **changes))
    assert answer.status_code == 201, answer.text
    claim: dict[str, object] = answer.json()
    return claim


def test_a_claim_goes_from_submitted_to_paid_and_its_history_says_who_and_why(agent: Client, customer: Client) -> None:
    claim = _submit(customer, new_policy(agent, customer))
    path = f"/v1/claims/{claim['id']}"
    for verb, status in (("review", "in_review"), ("approve", "approved"), ("pay", "paid")):
        assert agent.post(f"{path}/{verb}", json={"reason": f"because of {verb}"}).json()["status"] == status
    shown = customer.get(path).json()
    me, staff = customer.get("/v1/users/me").json()["id"], agent.get("/v1/users/me").json()["id"]
    assert [
        (line["from_status"], line["to_status"], line["changed_by"], line["via"], line["reason"])
        for line in shown["history"]
    ] == [
        (None, "submitted", me, "api", None),
        ("submitted", "in_review", staff, "api", "because of review"),
        ("in_review", "approved", staff, "api", "because of approve"),
        ("approved", "paid", staff, "api", "because of pay"),
    ]
    times = [line["created_at"] for line in shown["history"]]
    assert times == sorted(times)


def test_a_rejection_needs_a_reason(agent: Client, customer: Client) -> None:
    claim = _submit(customer, new_policy(agent, customer))
    path = f"/v1/claims/{claim['id']}"
    assert agent.post(f"{path}/review").status_code == 200
    assert wrong_fields(agent.post(f"{path}/reject", json={})) == {"reason"}
    assert wrong_fields(agent.post(f"{path}/reject", json={"reason": " "})) == {"reason"}
    assert agent.post(f"{path}/reject", json={"reason": "not covered"}).json()["status"] == "rejected"


def test_steps_out_of_order_are_refused(agent: Client, customer: Client) -> None:
    claim = _submit(customer, new_policy(agent, customer))
    path = f"/v1/claims/{claim['id']}"
    for verb in ("approve", "pay"):
        assert agent.post(f"{path}/{verb}").status_code == 409
    assert agent.post(f"{path}/review").status_code == 200
    assert agent.post(f"{path}/review").status_code == 409
    assert agent.post(f"{path}/unknown").status_code == 404


def test_of_two_decisions_at_once_one_is_made(agent: Client, customer: Client, admin: Client) -> None:
    for _ in range(5):
        claim = _submit(customer, new_policy(agent, customer))
        path = f"/v1/claims/{claim['id']}"
        agent.post(f"{path}/review")
        with ThreadPoolExecutor(2) as pool:
            approval = pool.submit(agent.post, f"{path}/approve")
            rejection = pool.submit(admin.post, f"{path}/reject", json={"reason": "no"})
            statuses = sorted([approval.result().status_code, rejection.result().status_code])
        assert statuses == [200, 409]
        assert len(agent.get(path).json()["history"]) == 3


def test_a_claim_that_does_not_fit_its_policy_is_refused_naming_each_field(agent: Client, customer: Client) -> None:
    policy = new_policy(agent, customer)

    def refused(**changes: object) -> set[str]:
        return wrong_fields(customer.post("/v1/claims", json=claim_on(policy, **changes)))

    tomorrow = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).date().isoformat()
    assert refused(amount_minor=1_000_001, incident_on="2024-12-31") == {"amount_minor", "incident_on"}
    assert refused(currency="USD", incident_on=tomorrow) == {"currency", "incident_on"}
    assert refused(policy_id="00000000-0000-4000-8000-000000000000") == {"policy_id"}
    wrong = {"policy_id": "x", "amount_minor": -5, "currency": "?", "incident_on": "2025-13-01", "description": ""}
    assert wrong_fields(customer.post("/v1/claims", json=wrong)) == set(wrong)
    assert refused(description="x" * 4001) == {"description"}
    assert refused(amount_minor=10**30) == {"amount_minor"}


def test_the_coverage_and_the_terms_first_and_last_day_are_inside(agent: Client, customer: Client) -> None:
    policy = new_policy(agent, customer, starts_on="2025-03-01")
    _submit(customer, policy, amount_minor=1_000_000, incident_on="2025-03-01")


def test_nothing_is_claimed_on_drafts_and_canceled_policies(agent: Client, customer: Client) -> None:
    policy = new_policy(agent, customer, activate=False)
    assert customer.post("/v1/claims", json=claim_on(policy)).status_code == 409
    agent.post(f"/v1/policies/{policy['id']}/activate")
    agent.post(f"/v1/policies/{policy['id']}/cancel")
    assert customer.post("/v1/claims", json=claim_on(policy)).status_code == 409


def test_customers_claim_on_and_see_their_own_only(agent: Client, customer: Client, stranger: Client) -> None:
    policy = new_policy(agent, customer)
    claim = _submit(customer, policy)
    assert stranger.post("/v1/claims", json=claim_on(policy)).status_code == 403
    assert stranger.get(f"/v1/claims/{claim['id']}").status_code == 403
    assert claim["id"] not in stranger.get("/v1/claims?limit=200").text
    assert stranger.get(f"/v1/claims?policy_id={policy['id']}").json()["items"] == []
    assert customer.post(f"/v1/claims/{claim['id']}/review").status_code == 403
    found = customer.get(f"/v1/claims?policy_id={policy['id']}&status=submitted").json()["items"]
    assert [each["id"] for each in found] == [claim["id"]]


def test_a_claim_and_its_assessment_exist_both_or_neither(
    shared: Installation, agent: Client, customer: Client
) -> None:
    policy = new_policy(agent, customer)
    claim = _submit(customer, policy)
    jobs = "SELECT count(*) AS jobs FROM procrastinate_jobs WHERE task_name = 'assess_claim'"
    assert shared.one(f"{jobs} AND args->>'claim_id' = %s", claim["id"])["jobs"] == 1
    before = shared.one(jobs)["jobs"]
    customer.post("/v1/claims", json=claim_on(policy, amount_minor=10**9))
    assert shared.one(jobs)["jobs"] == before
