"""The operational endpoints that both faces have: liveness, readiness, health, metrics, heap profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bottle

from bazaruto import heap
from bazaruto.health import Health
from bazaruto.web import App, Problem, from_this_machine

PATHS = frozenset({"/livez", "/readyz", "/healthz", "/healthz/detailed", "/metrics"})


def add_probes(app: App, health: Health, *, may_profile: Callable[[], bool] = from_this_machine) -> None:
    """Add the routes; give PATHS to `server.serve` as probe_paths, and `health.draining.set` as on_drain.

    `may_profile` decides on a request for the heap profile: this machine's own by default.
    """
    app.get("/livez", callback=lambda: {"status": "alive"})
    app.get("/readyz", callback=lambda: _with_status(health.readiness()))
    app.get("/healthz", callback=lambda: _with_status(health.report()))
    app.get("/healthz/detailed", callback=lambda: _with_status(health.report(detailed=True)))
    app.get("/metrics", callback=lambda: _metrics(app))
    app.get("/debug/pprof/heap", callback=lambda: _heap(may_profile))


def _with_status(answer: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    bottle.response.status, body = answer
    return body


def _metrics(app: App) -> bytes:
    text, bottle.response.content_type = app.metrics.render()
    return text


def _heap(may_profile: Callable[[], bool]) -> str:
    if not may_profile():
        raise Problem(403, detail="The heap profile is for this machine itself, or an admin.")
    bottle.response.content_type = "text/plain; charset=utf-8"
    return heap.profile()
