"""Logins: opaque tokens for a password, few attempts, the same answer and time whatever was wrong."""

from __future__ import annotations

import datetime as dt
import math
import secrets
from functools import partial
from typing import Annotated, Any

import bottle
from pydantic import Field

from bazaruto import logs, web
from bazaruto.problems import Problem
from bazaruto.service.access import (
    SQL,
    TOKEN_PREFIX,
    hash_token,
    identify,
    path_id,
    presented_hash,
    require,
    unauthorized,
)
from bazaruto.service.context import Service, changing, only_row, reading
from bazaruto.service.fields import Input, Role, Text

log = logs.get(__name__)


class Credentials(Input):
    """Who wants a token."""

    email: Annotated[Text, Field(min_length=1, max_length=254)]
    password: Annotated[Text, Field(min_length=1, max_length=200, repr=False)]


def routes(app: web.App, service: Service) -> None:
    """Put logins under /v1/auth, and the revocation of a user's tokens."""
    app.route("/v1/auth/login", "POST", partial(_login, service))
    app.route("/v1/auth/logout", "POST", partial(_logout, service))
    app.route("/v1/users/<user_id>/tokens", "DELETE", partial(_revoke, service))


def _login(service: Service) -> dict[str, Any]:
    credentials = web.json_body(Credentials)
    address = bottle.request.environ.get("REMOTE_ADDR", "")
    wait = service.attempts.begin(credentials.email, address)
    if wait is not None:
        logs.authentication_failed(email=_shown(credentials.email), client=address, reason="too many attempts")
        raise Problem(
            429,
            detail="Too many failed logins for this e-mail or from this address.",
            headers={"Retry-After": str(math.ceil(wait) or 1)},
        )
    with reading(service.pool) as connection:
        user = connection.execute(SQL.user_for_login, {"email": credentials.email}).fetchone()
    known_hash = user["password_hash"] if user else None
    if not service.passwords.matches(known_hash, credentials.password) or user is None:
        logs.authentication_failed(email=_shown(credentials.email), client=address, reason="wrong e-mail or password")
        raise unauthorized("The e-mail or the password is wrong.")
    service.attempts.succeeded(credentials.email, address)
    token, expires_at = _new_token(service, user["id"])
    web.set_user(str(user["id"]))
    log.info("User logged in", user_id=str(user["id"]))
    shown = {name: user[name] for name in ("id", "email", "name", "role")}
    return {"token": token, "token_type": "Bearer", "expires_at": expires_at, "user": shown}


def _shown(email: str) -> str:
    """For the log: people type passwords into the wrong field."""
    return email if "@" in email else "(no address)"


def _new_token(service: Service, user_id: object) -> tuple[str, dt.datetime]:
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    values = {
        "user_id": user_id,
        "token_sha256": hash_token(token),
        "lifetime": service.settings.auth.token_lifetime,
    }
    with changing(service.pool) as connection:
        return token, only_row(connection.execute(SQL.insert_token, values))["expires_at"]


def _logout(service: Service) -> bottle.HTTPResponse:
    token = presented_hash()
    with changing(service.pool) as connection:
        identify(connection, token)
        connection.execute(SQL.delete_token, {"token_sha256": token})
    return bottle.HTTPResponse(status=204)


def _revoke(service: Service, user_id: str) -> dict[str, int]:
    token = presented_hash()
    with changing(service.pool) as connection:
        caller = identify(connection, token)
        if str(caller.id) != user_id.lower():
            require(caller, frozenset({Role.ADMIN}))
        revoked = connection.execute(SQL.delete_tokens_of_user, {"user_id": path_id(user_id, "user")}).rowcount
    log.info("Tokens revoked", user_id=user_id.lower(), count=revoked, by=str(caller.id))
    return {"revoked": revoked}
