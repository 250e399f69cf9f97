"""The operational endpoints that both faces have: liveness, readiness, health, metrics; and a heap profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import bottle

from bazaruto import heap
from bazaruto.health import Health
from bazaruto.metrics import Metrics
from bazaruto.web import App, Problem, from_this_machine

PATHS = frozenset({"/livez", "/readyz", "/healthz", "/healthz/detailed", "/metrics"})
HEAP_PATH = "/debug/pprof/heap"  # none of PATHS: who may read it can depend on the database, which may hang


def answers(health: Health, metrics: Metrics) -> Mapping[str, Callable[[], Any]]:
    """What to answer to a GET of each of PATHS."""
    return {
        "/livez": lambda: {"status": "alive"},
        "/readyz": lambda: _with_status(health.readiness()),
        "/healthz": lambda: _with_status(health.report()),
        "/healthz/detailed": lambda: _with_status(health.report(detailed=True)),
        "/metrics": lambda: _metrics(metrics),
    }


def add_probes(app: App, health: Health, *, may_profile: Callable[[], bool] = from_this_machine) -> None:
    """Add the routes; give PATHS to `server.serve` as probe_paths, and `health.draining.set` as on_drain.

    `may_profile` decides on a request for the heap profile: this machine's own by default.
    """
    for path, answer in answers(health, app.metrics).items():
        app.get(path, callback=answer)
    app.get(HEAP_PATH, callback=lambda: _heap(may_profile))


def _with_status(answer: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    bottle.response.status, body = answer
    return body


def _metrics(metrics: Metrics) -> bytes:
    text, bottle.response.content_type = metrics.render()
    return text


def _heap(may_profile: Callable[[], bool]) -> str:
    if not may_profile():
        raise Problem(403, detail="The heap profile is for this machine itself, or an admin.")
    bottle.response.content_type = "text/plain; charset=utf-8"
    return heap.profile()
