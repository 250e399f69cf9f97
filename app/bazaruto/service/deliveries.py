"""Delivers webhooks: signed, once per attempt, never to an address inside the platform's own networks."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from psycopg.rows import DictRow
from pydantic_core import to_json

from bazaruto import __version__, database, logs
from bazaruto.config import WebhookSettings
from bazaruto.service.context import reading
from bazaruto.service.jobs import MAX_ATTEMPTS
from bazaruto.service.webhooks import SQL

log = logs.get(__name__)
MAX_ANSWER_BYTES = 64 * 1024


class NotDelivered(Exception):
    """The receiver was not reached or did not accept; another attempt may succeed."""


class AddressRefused(Exception):
    """The subscription leads to an address that deliveries must not reach."""


@dataclass(frozen=True)
class Outcome:
    """What one attempt came to."""

    http_status: int | None
    error: str | None

    @property
    def delivered(self) -> bool:
        """Any 2xx is acceptance."""
        return self.error is None


def deliver(pool: database.Pool, settings: WebhookSettings, delivery_id: str) -> None:
    """Make one attempt; raises NotDelivered when there should be another one."""
    with reading(pool) as connection:
        delivery = connection.execute(SQL.delivery_to_make, {"id": delivery_id}).fetchone()
    if delivery is None or delivery["status"] != "pending":
        return  # unsubscribed meanwhile, or an attempt before this one was enough
    with database.write(pool):
        pass  # while writes are held nothing is sent: a restore may undo what it would tell
    outcome = _attempt(delivery, settings)
    last = delivery["attempts"] + 1 >= MAX_ATTEMPTS
    status = "delivered" if outcome.delivered else "failed" if last else "pending"
    with database.write(pool) as connection:
        values = {
            "id": delivery_id,
            "status": status,
            "last_status": outcome.http_status,
            "last_error": outcome.error,
        }
        connection.execute(SQL.record_delivery, values)
    if outcome.error is not None:
        raise NotDelivered(f"delivery {delivery_id}: {outcome.error}")
    log.info("Webhook delivered", delivery_id=delivery_id, status=outcome.http_status)


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """What a receiver computes to know that a delivery is ours: HMAC-SHA256 over `timestamp.body`."""
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def _attempt(delivery: DictRow, settings: WebhookSettings) -> Outcome:
    body = to_json(
        {
            "id": delivery["id"],
            "event": delivery["event"],
            "created_at": delivery["created_at"],
            "data": delivery["payload"],
        }
    )
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"bazaruto/{__version__}",
        "X-Bazaruto-Event": delivery["event"],
        "X-Bazaruto-Delivery": str(delivery["id"]),
        "X-Bazaruto-Signature": f"t={timestamp},v1={signature(delivery['secret'], timestamp, body)}",
    }
    try:
        status = _post(urlsplit(delivery["url"]), body, headers, settings)
    except AddressRefused as error:
        return Outcome(None, str(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Outcome(None, f"{type(error).__name__} while sending")
    # A redirect is not followed: it could lead to where the subscription itself may not.
    return Outcome(status, None if 200 <= status < 300 else f"the receiver answered {status}")


def _post(url: SplitResult, body: bytes, headers: dict[str, str], settings: WebhookSettings) -> int:
    """Send to the address that was checked, so that a second look-up cannot lead elsewhere."""
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    address = checked_address(host, port, allow_loopback=settings.allow_loopback)
    connection = http.client.HTTPConnection(host, port, timeout=settings.timeout)
    raw = socket.create_connection(address, timeout=settings.timeout)
    # One byte at a time would satisfy the socket's timeout for ever: the whole delivery has this long.
    end = threading.Timer(settings.timeout, _shut, [raw])
    end.daemon = True
    end.start()
    try:
        if url.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
            end.args = [raw]
        connection.sock = raw
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read(MAX_ANSWER_BYTES)
        return answer.status
    finally:
        end.cancel()
        connection.close()
        raw.close()


def checked_address(host: str, port: int, *, allow_loopback: bool) -> tuple[str, int]:
    """The host's address when every one it has is public (or loopback, if allowed); AddressRefused else."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, (address, *_rest) in found:
        ip = ipaddress.ip_address(str(address).partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not (ip.is_global and not ip.is_multicast) and not (allow_loopback and ip.is_loopback):
            raise AddressRefused("the host is at an address inside this platform's networks, nothing is sent there")
    return str(found[0][4][0]), port


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it ended in this moment
