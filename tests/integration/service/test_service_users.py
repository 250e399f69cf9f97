"""Users through HTTP."""

from __future__ import annotations

import base64
import json

import pytest

from .conftest import Client, Installation, wrong_fields


def _new(**changes: object) -> dict[str, object]:
    return {"email": "ann@people.example", "name": "Ann"} | changes


def test_an_e_mail_is_taken_in_every_case(agent: Client) -> None:
    created = agent.post("/v1/users", json=_new(email="Some.One@People.Example"))
    assert created.status_code == 201
    again = agent.post("/v1/users", json=_new(email="sOME.oNE@pEOPLE.eXAMPLE"))
    assert again.status_code == 409
    assert again.json()["request_id"].startswith("req_")


def test_a_new_user_is_found_again_and_no_answer_holds_the_password(agent: Client, shared: Installation) -> None:
    new = _new(email="hidden@people.example", password="a very private thing")
    created = agent.post("/v1/users", json=new)
    shown = agent.get(created.headers["Location"])
    listed = agent.get("/v1/users", params={"email": "HIDDEN@people.example"})
    assert [user["id"] for user in listed.json()["items"]] == [shown.json()["id"]]
    for answer in (created, shown, listed):
        assert "password" not in answer.text
        assert "argon2" not in answer.text
    stored = shared.one("SELECT password_hash FROM users WHERE email = %s", new["email"])["password_hash"]
    assert stored.startswith("$argon2id$")
    for log in (shared.home / "log").glob("*.log"):
        assert "a very private thing" not in log.read_text()


def test_every_wrong_field_is_named_at_once(agent: Client) -> None:
    wrong = {"email": "no-address", "name": "", "role": "king", "password": "short", "admin": True}
    assert wrong_fields(agent.post("/v1/users", json=wrong)) == {"email", "name", "role", "password", "admin"}
    assert wrong_fields(agent.post("/v1/users", json={})) == {"email", "name"}
    assert wrong_fields(agent.post("/v1/users", json={"email": 5, "name": ["x"]})) == {"email", "name"}


@pytest.mark.parametrize(
    ("name", "status"),
    [("a\u0000b", 400), ("\ud800", 400), ("x" * 201, 422), ("   ", 422), ("bell\u0007", 422), ("Zoë 王 🙂", 201)],
)
def test_names_that_cannot_be_kept_are_refused(agent: Client, name: str, status: int) -> None:
    body = json.dumps({"email": f"n{abs(hash(name))}@people.example", "name": name})
    answer = agent.post("/v1/users", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text


def test_bodies_that_are_no_json_are_refused(agent: Client) -> None:
    for body in (b"", b"{", b"\xff\xfe", b'{"name": NaN}', b"[" * 10_000, b"not json"):
        answer = agent.post("/v1/users", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, body[:20]
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_only_an_admin_makes_agents_and_admins(admin: Client, agent: Client, customer: Client) -> None:
    for number, role in enumerate(("agent", "admin")):
        new = _new(email=f"staff{number}@people.example", role=role)
        assert agent.post("/v1/users", json=new).status_code == 403
        assert admin.post("/v1/users", json=new).status_code == 201
    assert customer.post("/v1/users", json=_new()).status_code == 403


def test_customers_see_themselves_and_nobody_else(customer: Client, stranger: Client, agent: Client) -> None:
    me, other = customer.get("/v1/users/me").json(), stranger.get("/v1/users/me").json()
    assert customer.get(f"/v1/users/{me['id']}").json() == me
    assert customer.get(f"/v1/users/{other['id']}").status_code == 403
    assert customer.get("/v1/users").status_code == 403
    assert agent.get(f"/v1/users/{other['id']}").json() == other


def test_an_unknown_user_is_not_found(agent: Client) -> None:
    for name in ("00000000-0000-4000-8000-000000000000", "1", "x" * 300, "..", "%F0%9F%99%82"):
        assert agent.get(f"/v1/users/{name}").status_code in {404, 405}, name


def test_pages_hold_every_user_once_while_users_are_added(agent: Client) -> None:
    first = [agent.post("/v1/users", json=_new(email=f"page{n}@people.example")).json()["id"] for n in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        answer = agent.get("/v1/users", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        seen += [user["id"] for user in answer.json()["items"]]
        agent.post("/v1/users", json=_new(email=f"late{len(seen)}@people.example"))
        cursor = answer.json()["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert set(first) <= set(seen)


def test_pages_refuse_what_is_no_page(agent: Client) -> None:
    assert wrong_fields(agent.get("/v1/users?limit=0&role=king&colour=red")) == {"limit", "role", "colour"}
    assert wrong_fields(agent.get("/v1/users?limit=201")) == {"limit"}
    assert wrong_fields(agent.get("/v1/users?cursor=abc")) == {"cursor"}
    huge = base64.urlsafe_b64encode(b"[99999999999999999999999999]").decode().rstrip("=")
    for path in ("/v1/users", "/v1/policies", "/v1/claims", "/jobs/failed"):
        assert wrong_fields(agent.get(f"{path}?cursor={huge}")) == {"cursor"}
