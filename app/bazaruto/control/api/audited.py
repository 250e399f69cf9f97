"""Who asks, as the audit names them; and what they were refused, as entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bottle

from bazaruto import web
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.audit.changes import Actor, Audit
from bazaruto.control.audit.heads import AuditUnwritable
from bazaruto.control.keys import KeyUnusable
from bazaruto.control.throttle import Throttle
from bazaruto.problems import Problem

Handler = Callable[..., Any]
REFUSALS = frozenset({401, 403, 409, 422, 429})
NOBODY = "nobody"  # who shows no valid token
STRANGERS, STRANGERS_SECONDS = 60, 60.0  # refusals of nobody that are entered, from one address
HASTE_SECONDS = 60.0  # in which one token's 429 is entered once


class Refusals:
    """Enters what was refused. May be shared by threads."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._strangers = Throttle(STRANGERS, STRANGERS_SECONDS)
        self._haste = Throttle(1, HASTE_SECONDS)

    def entered(self, endpoint: Endpoint, answer: Handler) -> Handler:
        """The handler; its refusals become entries, and what keeps the audit from being written is told."""
        if endpoint.method == "GET":
            return answer

        def answered(**names: str) -> Any:
            try:
                return answer(**names)
            except AuditUnwritable as error:
                raise Problem(503, "The audit cannot be written", str(error)) from error
            except KeyUnusable as error:
                raise Problem(503, "A key cannot be used", f"{error} Nothing was started.") from error
            except Problem as problem:
                if problem.status in REFUSALS and self._is_new(problem.status):
                    self._enter(endpoint, problem, names)
                raise

        return answered

    def _is_new(self, status: int) -> bool:
        """Whether there are not so many of its kind that entering them would serve only who sends them."""
        who = actor()
        if status == 429 and self._haste.take(who.token or who.address or ""):
            return False
        return who.name != NOBODY or not self._strangers.take(who.address or "")

    def _enter(self, endpoint: Endpoint, problem: Problem, names: dict[str, str]) -> None:
        wrong = "; ".join(f"{error.field}: {error.message}" for error in problem.errors)
        known = {"target": names.get("id") or names.get("name"), **bottle.request.environ.get("bazaruto.about", {})}
        self._audit.refused(
            actor(),
            action_of(endpoint),
            f"{problem.status}: {problem.detail} {wrong}".strip(),
            target=known.get("target"),
            environment=known.get("environment"),
            operation=known.get("operation"),
        )


def actor() -> Actor:
    """Whose request this thread answers."""
    environ = bottle.request.environ
    caller = environ.get("bazaruto.identity")
    name, token = (caller.name, caller.token or None) if caller else (NOBODY, None)
    return Actor(name, token, environ.get("REMOTE_ADDR"), web.request_id())


def concerns(**known: Any) -> None:
    """Remember what a request is about (environment, operation, target), for when it is refused; only texts count."""
    texts = {name: value for name, value in known.items() if isinstance(value, str)}
    bottle.request.environ["bazaruto.about"] = {**bottle.request.environ.get("bazaruto.about", {}), **texts}


def action_of(endpoint: Endpoint) -> str:
    """What an endpoint does, as the audit calls it: run.launch, run.cancel, token.create, key.replace, …"""
    topic, *rest = endpoint.path.removeprefix("/api/v1/").split("/")
    action = rest[-1] if rest else "create"
    return "run.launch" if (topic, action) == ("runs", "create") else f"{topic.removesuffix('s')}.{action}"
