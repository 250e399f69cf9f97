"""Who asks: looked at before any handler is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import bottle

from bazaruto import probes, web
from bazaruto.control import access
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.catalog import CatalogueError
from bazaruto.control.content import ContentError
from bazaruto.database import Pool
from bazaruto.problems import Problem

Handler = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Guard:
    """Calls handlers for those who may."""

    pool: Pool

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
            try:
                access.require(caller, endpoint.role)
                return handler(**names)
            except access.NotAllowed as error:
                raise Problem(403, detail=str(error)) from error
            except (CatalogueError, ContentError) as error:
                raise Problem(503, "The content cannot be used", str(error)) from error

        return answer

    def _identify(self) -> access.Identity:
        with self.pool.connection() as connection:
            identity = access.identify(connection, bottle.request.headers.get("Authorization", ""))
        if identity is None:
            challenge = {"WWW-Authenticate": 'Bearer realm="bazaruto"'}
            detail = "Send a valid token: Authorization: Bearer TOKEN (the first is in control/admin.token)."
            raise Problem(401, detail=detail, headers=challenge)
        return identity


def identity() -> access.Identity:
    """Whose request this thread answers."""
    caller: access.Identity = bottle.request.environ["bazaruto.identity"]
    return caller
