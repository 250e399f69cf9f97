"""Who asks, and whether they may: looked at before any handler is called."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import bottle

from bazaruto import probes, web
from bazaruto.control import access
from bazaruto.control.access import Identity
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.catalog import CatalogueError
from bazaruto.control.content import ContentError
from bazaruto.control.throttle import Throttle
from bazaruto.database import Connection, Pool
from bazaruto.problems import Problem

Handler = Callable[..., Any]
WRONG_SECRETS, WRONG_SECRETS_SECONDS = 10, 900.0  # for one token, from one address
STRANGERS, STRANGERS_SECONDS = 60, 60.0  # tokens that there are not, from one address
RATE_SECONDS = 10.0  # over which requests a second are averaged
KNOWN_SECONDS = 1.0  # how old the list of tokens may be that decides who is a stranger
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="bazaruto"'}
HINT = "Send a valid one: Authorization: Bearer TOKEN (on a control node it is in control/admin.token)."


class Guard:
    """Calls handlers for those who may. May be shared by threads."""

    def __init__(self, pool: Pool, requests_per_second: int) -> None:
        self._pool = pool
        self._guesses = Guesses(pool)
        self._requests = (
            Throttle(round(requests_per_second * RATE_SECONDS), RATE_SECONDS) if requests_per_second else None
        )

    def guarded(self, endpoint: Endpoint, handler: Handler) -> Handler:
        """The handler, for whoever shows a token of the right role; probes also for this machine."""
        if endpoint.public:
            return handler

        def answer(**names: str) -> Any:
            if endpoint.path in probes.PATHS and web.from_this_machine():
                return handler(**names)
            caller = self._identify()
            bottle.request.environ["bazaruto.identity"] = caller
            web.set_user(caller.name)
            self._refuse_haste(caller)
            try:
                access.require(caller, endpoint.role)
                return handler(**names)
            except access.NotAllowed as error:
                raise Problem(403, detail=str(error)) from error
            except (CatalogueError, ContentError) as error:
                raise Problem(503, "The content cannot be used", str(error)) from error

        return answer

    def _identify(self) -> Identity:
        header, address = bottle.request.headers.get("Authorization", ""), _address()
        if not header:
            raise Problem(401, detail=f"This needs a token. {HINT}", headers=CHALLENGE)
        token = access.shown(header)
        self._guesses.refuse(token, address)
        try:
            with self._pool.connection() as connection:
                return access.identify(connection, token)
        except access.NotIdentified as error:
            self._guesses.count(error, token, address)
            raise Problem(401, detail=f"{error} {HINT}", headers=CHALLENGE) from error

    def _refuse_haste(self, caller: Identity) -> None:
        wait = self._requests.take(caller.token) if self._requests else 0.0
        if wait:
            raise _later(wait, "This token asks more often than control_requests_per_second allows.")


class Guesses:
    """Keeps those out who try tokens, and nobody else at their address. May be shared by threads."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wrong_secrets = Throttle(WRONG_SECRETS, WRONG_SECRETS_SECONDS)
        self._strangers = Throttle(STRANGERS, STRANGERS_SECONDS)
        self._known: frozenset[str] = frozenset()
        self._known_until = 0.0
        self._reading = threading.Lock()

    def refuse(self, token: access.Shown | None, address: str) -> None:
        """429 for who guessed too often, before the database is asked about the token."""
        if token and (wait := self._wrong_secrets.wait(f"{token.id} {address}")):
            raise _later(wait, "Too many wrong secrets for this token came from this address.")
        wait = self._strangers.wait(address)
        if wait and not (token and self._is_known(token.id)):
            raise _later(wait, "Too many tokens that there are not came from this address.")

    def count(self, error: access.NotIdentified, token: access.Shown | None, address: str) -> None:
        """Remember what was wrong."""
        if isinstance(error, access.WrongSecret) and token:
            self._wrong_secrets.count(f"{token.id} {address}")
        elif isinstance(error, access.UnknownToken):
            self._strangers.count(address)

    def _is_known(self, token: str) -> bool:
        """Whether there is such a token, by a list read once for all guesses of a second."""
        with self._reading:
            if time.monotonic() >= self._known_until:
                with self._pool.connection() as connection:
                    self._known = frozenset(_ids(connection))
                self._known_until = time.monotonic() + KNOWN_SECONDS
            return token in self._known


def identity() -> Identity:
    """Whose request this thread answers."""
    caller: Identity = bottle.request.environ["bazaruto.identity"]
    return caller


def _ids(connection: Connection) -> list[str]:
    return [row["id"] for row in connection.execute(access.SQL.token_ids)]


def _address() -> str:
    """Whom guesses count for: of IPv6 the network, since whoever has one address there has all of them."""
    text: str = bottle.request.environ.get("REMOTE_ADDR", "")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return text


def _later(seconds: float, why: str) -> Problem:
    return Problem(429, detail=f"{why} Ask again later.", headers={"Retry-After": str(max(1, math.ceil(seconds)))})
