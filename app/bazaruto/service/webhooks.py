"""Webhooks: admins subscribe addresses to what happens to claims."""

from __future__ import annotations

import enum
import secrets
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

import bottle
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pydantic import AfterValidator, Field

from bazaruto import database, logs, web
from bazaruto.service.access import identify, not_found, path_id, presented_hash, require
from bazaruto.service.context import Service, changing, only_row, reading
from bazaruto.service.fields import Input, Role, Text
from bazaruto.service.jobs import Queue, Task, defer
from bazaruto.service.lists import Page

SQL = database.statements(__package__, "webhooks.sql")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ADMIN = frozenset({Role.ADMIN})
log = logs.get(__name__)


class Event(enum.StrEnum):
    """What subscribers can be told of."""

    SUBMITTED = "claim.submitted"
    APPROVED = "claim.approved"
    REJECTED = "claim.rejected"
    PAID = "claim.paid"


EVENT_OF_STATUS = {
    "approved": Event.APPROVED,
    "rejected": Event.REJECTED,
    "paid": Event.PAID,
}


def _address(url: str) -> str:
    """https anywhere, http to this machine only; where it leads is checked again at each delivery."""
    if not url.isascii() or any(character.isspace() for character in url):
        raise ValueError("must be an ASCII URL without spaces")
    parts = urlsplit(url)
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("must name a host, and neither user, password nor fragment")
    if parts.port == 0:
        raise ValueError("must not use port 0")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK_NAMES):
        raise ValueError("must begin with https://, or with http:// for an address of this machine")
    return url


class NewWebhook(Input):
    """Where to send what."""

    url: Annotated[Text, Field(max_length=2000), AfterValidator(_address)]
    events: Annotated[frozenset[Event], Field(min_length=1)]


def routes(app: web.App, service: Service) -> None:
    """Put subscriptions under /v1/webhooks, for admins."""
    app.route("/v1/webhooks", "POST", partial(_create, service))
    app.route("/v1/webhooks", "GET", partial(_list, service))
    app.route("/v1/webhooks/<webhook_id>", "DELETE", partial(_delete, service))
    app.route("/v1/webhooks/<webhook_id>/deliveries", "GET", partial(_deliveries, service))


def announce(connection: database.Connection, event: Event, claim: DictRow) -> None:
    """Queue a delivery to every subscriber, in the transaction of what happened."""
    payload = {
        "claim_id": str(claim["id"]),
        "number": claim["number"],
        "policy_id": str(claim["policy_id"]),
        "status": claim["status"],
        "amount_minor": claim["amount_minor"],
        "currency": claim["currency"],
    }
    deliveries = connection.execute(SQL.insert_deliveries, {"event": event.value, "payload": Jsonb(payload)})
    for row in deliveries.fetchall():
        defer(connection, Task.DELIVER_WEBHOOK, {"delivery_id": str(row["id"])}, Queue.WEBHOOKS)


def _create(service: Service) -> bottle.HTTPResponse:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        require(caller, _ADMIN)
        new = web.json_body(NewWebhook)
        secret = "whsec_" + secrets.token_urlsafe(32)
        values = {
            "url": new.url,
            "events": sorted(event.value for event in new.events),
            "secret": secret,
            "created_by": caller.id,
        }
        webhook = only_row(connection.execute(SQL.insert_webhook, values))
    log.info("Webhook created", webhook_id=str(webhook["id"]), by=str(caller.id))
    # The only answer that ever holds the secret.
    return bottle.HTTPResponse(webhook | {"secret": secret}, 201, {"Location": f"/v1/webhooks/{webhook['id']}"})


def _list(service: Service) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        require(identify(connection, token), _ADMIN)
        wanted = web.query(Page)
        return wanted.answer(connection.execute(SQL.list_webhooks, wanted.keys()).fetchall())


def _delete(service: Service, webhook_id: str) -> bottle.HTTPResponse:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        require(caller, _ADMIN)
        if not connection.execute(SQL.delete_webhook, {"id": path_id(webhook_id, "webhook")}).rowcount:
            raise not_found("webhook")
    log.info("Webhook deleted", webhook_id=webhook_id, by=str(caller.id))
    return bottle.HTTPResponse(status=204)


def _deliveries(service: Service, webhook_id: str) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        require(identify(connection, token), _ADMIN)
        identity = {"id": path_id(webhook_id, "webhook")}
        if connection.execute(SQL.webhook_exists, identity).fetchone() is None:
            raise not_found("webhook")
        wanted = web.query(Page)
        rows = connection.execute(SQL.list_deliveries, wanted.keys() | {"webhook_id": webhook_id}).fetchall()
        return wanted.answer(rows)
