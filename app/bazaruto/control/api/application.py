"""The API as one application: its topics, the probes, and who may ask."""

from __future__ import annotations

import dataclasses

import procrastinate

from bazaruto import probes, web
from bazaruto.config import Settings
from bazaruto.control.acceptance import Acceptance
from bazaruto.control.api import approvals, audit, backups, operations, runs, tokens
from bazaruto.control.api.audited import Refusals
from bazaruto.control.api.guard import Guard
from bazaruto.control.api.openapi import Endpoint, document
from bazaruto.control.audit.changes import Audit
from bazaruto.control.streams import Streams
from bazaruto.database import Pool
from bazaruto.health import Health
from bazaruto.metrics import Metrics

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/livez", "Whether the process lives", None, public=True),
    Endpoint("GET", "/readyz", "Whether it can serve", None, errors=(503,), public=True),
    Endpoint("GET", "/healthz", "Whether it is well", None, errors=(503,), public=True),
    Endpoint("GET", "/healthz/detailed", "The same with details", None, errors=(503,)),
    Endpoint("GET", "/metrics", "Prometheus metrics", None, media="text/plain"),
    Endpoint("GET", "/openapi.json", "This document", None),
    *operations.ENDPOINTS,
    *runs.ENDPOINTS,
    *approvals.ENDPOINTS,
    *backups.ENDPOINTS,
    *audit.ENDPOINTS,
    *tokens.ENDPOINTS,
)


@dataclasses.dataclass(frozen=True)
class Api:
    """What the topics need."""

    settings: Settings
    acceptance: Acceptance
    audit: Audit
    pool: Pool
    jobs: procrastinate.App
    health: Health
    metrics: Metrics
    streams: Streams

    def application(self) -> web.App:
        """A WSGI application that answers every endpoint."""
        app = web.create_app("control", self.settings, self.metrics)
        handlers = {
            **{("GET", path): answer for path, answer in probes.answers(self.health, self.metrics).items()},
            ("GET", "/openapi.json"): lambda: document(ENDPOINTS),
            **operations.Operations(self.acceptance.content).handlers(),
            **runs.Runs(self.settings, self.acceptance, self.audit, self.pool, self.jobs, self.streams).handlers(),
            **audit.AuditTrail(self.audit, self.pool, self.streams).handlers(),
            **approvals.Approvals(self.acceptance, self.audit, self.pool, self.jobs).handlers(),
            **tokens.Tokens(self.audit, self.pool, self.acceptance.content).handlers(),
            **backups.Backups.of(self.settings, self.pool).handlers(),
        }
        guard = Guard(self.pool, self.settings.control_requests_per_second)
        refusals = Refusals(self.audit)
        for endpoint in ENDPOINTS:
            handler = handlers[endpoint.method, endpoint.path]
            app.route(endpoint.route, endpoint.method, refusals.entered(endpoint, guard.guarded(endpoint, handler)))
        return app
