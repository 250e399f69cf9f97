"""Webhooks: who may subscribe to what, and what a receiver gets."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bazaruto.service import deliveries

from .conftest import Client, Installation, claim_on, new_policy, wait_until, wrong_fields


class Receiver(http.server.ThreadingHTTPServer):
    """Remembers what was sent, and answers as told."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks?x=1"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((dict(self.headers.items()), body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def site(install: Callable[..., Installation]) -> Installation:
    return install(BAZARUTO_WEBHOOKS_ALLOW_LOOPBACK="true", BAZARUTO_WEBHOOKS_TIMEOUT="2s")


@pytest.fixture(scope="module")
def staff(site: Installation) -> Client:
    return site.serve().login(site.add_user("admin"))


def _subscribe(staff: Client, url: str, *events: str) -> dict[str, Any]:
    answer = staff.post("/v1/webhooks", json={"url": url, "events": list(events)})
    assert answer.status_code == 201, answer.text
    webhook: dict[str, Any] = answer.json()
    return webhook


def test_a_receiver_is_told_once_signed_and_again_after_a_failure(
    site: Installation, staff: Client, receiver: Receiver
) -> None:
    webhook = _subscribe(staff, receiver.url, "claim.submitted", "claim.paid")
    receiver.answers = [500]
    worker = site.worker()
    claim = staff.post("/v1/claims", json=claim_on(new_policy(staff, staff))).json()
    wait_until(lambda: len(receiver.received) == 2)
    headers, body = receiver.received[1]
    assert json.loads(body)["data"]["claim_id"] == claim["id"]
    assert headers["X-Bazaruto-Event"] == "claim.submitted"
    assert headers["X-Bazaruto-Delivery"] == receiver.received[0][0]["X-Bazaruto-Delivery"]
    timestamp, signature = (part.partition("=")[2] for part in headers["X-Bazaruto-Signature"].split(","))
    expected = hmac.new(webhook["secret"].encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert signature == expected == deliveries.signature(webhook["secret"], int(timestamp), body)

    def delivered() -> Any:
        (delivery,) = staff.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()["items"]
        return delivery if delivery["status"] == "delivered" else None

    assert wait_until(delivered)["attempts"] == 2
    assert staff.delete(f"/v1/webhooks/{webhook['id']}").status_code == 204
    assert staff.delete(f"/v1/webhooks/{webhook['id']}").status_code == 404
    staff.post("/v1/claims", json=claim_on(new_policy(staff, staff)))
    wait_until(lambda: staff.get("/healthz/jobs").json()["states"]["todo"] == 0)
    assert len(receiver.received) == 2
    worker.terminate()
    assert worker.wait(20) == 0
    secrets_seen = [log for log in (site.home / "log").glob("*.log") if webhook["secret"] in log.read_text()]
    assert secrets_seen == []


def test_the_secret_is_shown_once(staff: Client, receiver: Receiver) -> None:
    webhook = _subscribe(staff, receiver.url, "claim.rejected")
    assert webhook["secret"].startswith("whsec_")
    assert "secret" not in staff.get("/v1/webhooks").text


def test_only_admins_subscribe(customer: Client, agent: Client, nobody: Client) -> None:
    new = {"url": "https://hooks.example.com/x", "events": ["claim.paid"]}
    assert [client.post("/v1/webhooks", json=new).status_code for client in (nobody, customer, agent)] == [
        401,
        403,
        403,
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "ftp://hooks.example.com/",
        "https://",
        "https://user:secret@hooks.example.com/",
        "https://hooks.example.com/\r\nX: y",
        "https://hooks.example.com:99999/",
        "file:///etc/passwd",
        "https://exämple.com/",
        "https://h.example/" + "x" * 2000,
    ],
)
def test_addresses_that_are_not_https_are_refused(admin: Client, url: str) -> None:
    assert wrong_fields(admin.post("/v1/webhooks", json={"url": url, "events": ["claim.paid"]})) == {"url"}


def test_unknown_and_no_events_are_refused(admin: Client) -> None:
    for events in ([], ["claim.lost"], "claim.paid"):
        wrong = admin.post("/v1/webhooks", json={"url": "https://h.example/", "events": events})
        assert {field.partition(".")[0] for field in wrong_fields(wrong)} == {"events"}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "100.64.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:10.0.0.1",
        "localhost",
    ],
)
def test_nothing_is_delivered_into_the_platforms_own_networks(host: str) -> None:
    with pytest.raises(deliveries.AddressRefused):
        deliveries.checked_address(host, 443, allow_loopback=False)


def test_loopback_alone_can_be_allowed() -> None:
    assert deliveries.checked_address("127.0.0.1", 80, allow_loopback=True) == ("127.0.0.1", 80)
    assert deliveries.checked_address("8.8.8.8", 443, allow_loopback=False) == ("8.8.8.8", 443)
    with pytest.raises(deliveries.AddressRefused):
        deliveries.checked_address("169.254.169.254", 80, allow_loopback=True)
