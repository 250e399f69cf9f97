"""Two hands at once: one wins, the other is told so; and what a restore does to a service that goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from bazaruto import database

from .conftest import PASSWORD, Client, Installation, claim_on, new_policy

ROUNDS = 5
Request = tuple[Client, str, dict[str, Any] | None]


def _at_once(*requests: Request) -> list[int]:
    """The statuses of POSTs sent at the same time, sorted."""
    with ThreadPoolExecutor(len(requests)) as pool:
        sent = [pool.submit(client.post, path, json=body) for client, path, body in requests]
        return sorted(answer.result().status_code for answer in sent)


def test_of_two_activations_at_once_one_happens(agent: Client, admin: Client, customer: Client) -> None:
    for _ in range(ROUNDS):
        path = f"/v1/policies/{new_policy(agent, customer, activate=False)['id']}/activate"
        assert _at_once((agent, path, None), (admin, path, None)) == [200, 409]


def test_of_two_payments_at_once_one_happens(agent: Client, admin: Client, customer: Client) -> None:
    policy = new_policy(agent, customer)
    for _ in range(ROUNDS):
        path = f"/v1/claims/{customer.post('/v1/claims', json=claim_on(policy)).json()['id']}"
        assert [agent.post(f"{path}/{verb}").status_code for verb in ("review", "approve")] == [200, 200]
        assert _at_once((agent, f"{path}/pay", None), (admin, f"{path}/pay", None)) == [200, 409]
        history = [line["to_status"] for line in agent.get(path).json()["history"]]
        assert history == ["submitted", "in_review", "approved", "paid"]


def test_of_two_users_with_one_e_mail_at_once_one_is_made(agent: Client, admin: Client) -> None:
    for number in range(ROUNDS):
        small, large = (
            {"email": f"twin{number}@x.example", "name": "A"},
            {"email": f"TWIN{number}@X.example", "name": "B"},
        )
        assert _at_once((agent, "/v1/users", small), (admin, "/v1/users", large)) == [201, 409]
        assert len(agent.get("/v1/users", params={"email": small["email"]}).json()["items"]) == 1


def test_a_claim_sent_while_its_policy_is_canceled_is_taken_before_or_refused_after(
    agent: Client, customer: Client
) -> None:
    for _ in range(ROUNDS):
        policy = new_policy(agent, customer)
        statuses = _at_once(
            (customer, "/v1/claims", claim_on(policy)), (agent, f"/v1/policies/{policy['id']}/cancel", None)
        )
        claims = agent.get("/v1/claims", params={"policy_id": policy["id"]}).json()["items"]
        assert statuses == [200, 201 if claims else 409]
        assert agent.get(f"/v1/policies/{policy['id']}").json()["status"] == "canceled"


def test_while_writes_are_held_every_change_is_503_and_every_read_goes_on(
    shared: Installation, nobody: Client, admin: Client, customer: Client
) -> None:
    policy = new_policy(admin, customer)
    claim = customer.post("/v1/claims", json=claim_on(policy)).json()
    me = customer.get("/v1/users/me").json()
    hook = {"url": "https://hooks.example.com/", "events": ["claim.paid"]}
    webhook = admin.post("/v1/webhooks", json=hook).json()
    changes: list[tuple[Client, str, str, Any]] = [
        (admin, "POST", "/v1/users", {"email": "held@people.example", "name": "Held"}),
        (admin, "POST", "/v1/policies", {**{n: policy[n] for n in _POLICY}, "user_id": me["id"]}),
        *((admin, "POST", f"/v1/policies/{policy['id']}/{verb}", None) for verb in ("activate", "lapse", "cancel")),
        (customer, "POST", "/v1/claims", claim_on(policy)),
        *((admin, "POST", f"/v1/claims/{claim['id']}/{verb}", None) for verb in ("review", "approve", "pay")),
        (admin, "POST", "/v1/webhooks", hook),
        (admin, "DELETE", f"/v1/webhooks/{webhook['id']}", None),
        (admin, "POST", "/jobs/failed/1/retry", None),
        (customer, "DELETE", f"/v1/users/{me['id']}/tokens", None),
        (customer, "POST", "/v1/auth/logout", None),
        (nobody, "POST", "/v1/auth/login", {"email": me["email"], "password": PASSWORD}),
    ]
    with psycopg.connect(shared.database_url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [database.WRITE_HOLD_KEY])
        for client, method, path, body in changes:
            answer = client.request(method, path, json=body)
            assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "5"), (method, path, answer.text)
        reads = ["/v1/users", "/v1/users/me", "/v1/policies", f"/v1/policies/{policy['id']}", "/v1/claims", "/v1/rules"]
        reads += [f"/v1/claims/{claim['id']}", f"/v1/webhooks/{webhook['id']}/deliveries", "/jobs/failed", "/readyz"]
        for path in reads:
            assert admin.get(path).status_code == 200, path
        # Said, not left to the end of the session: the next test may be quicker than the server notices that.
        holder.execute("SELECT pg_advisory_unlock(%s)", [database.WRITE_HOLD_KEY])
    assert admin.get(f"/v1/policies/{policy['id']}").json() == policy
    assert customer.get("/v1/users/me").json() == me


_POLICY = ("product", "coverage_minor", "premium_minor", "currency", "starts_on", "ends_on")


def test_requests_after_all_sessions_were_ended_are_served_at_once(
    shared: Installation, agent: Client, customer: Client
) -> None:
    policy = new_policy(agent, customer)
    requests: list[Request] = [(customer, "/v1/claims", claim_on(policy)) for _ in range(6)]
    assert _at_once(*requests) == [201] * 6  # so that several connections are open
    for _ in range(3):
        shared.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert _at_once(*requests) == [201] * 6
        assert customer.get(f"/v1/policies/{policy['id']}").status_code == 200
