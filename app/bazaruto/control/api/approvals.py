"""Approvals: what somebody else decides about a planned run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import bottle
import procrastinate
from pydantic import BaseModel

from bazaruto import web
from bazaruto.control import access, approvals, queue, requests, runs
from bazaruto.control.acceptance import Acceptance
from bazaruto.control.access import Role
from bazaruto.control.api.audited import concerns
from bazaruto.control.api.decisions import decided
from bazaruto.control.api.guard import Handler, identity
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.api.runs import RUN
from bazaruto.control.audit.changes import Audit
from bazaruto.database import Connection, Pool
from bazaruto.problems import Problem

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", f"{RUN}/approve", "Approve what another person has planned", runs.Run, status=202,
             body=requests.ApproveRequest, errors=(400, 404, 409, 413, 415, 422), role=Role.APPROVER),
    Endpoint("POST", f"{RUN}/reject", "Reject what is planned", runs.Run, body=requests.RejectRequest,
             errors=(400, 404, 409, 413, 415, 422), role=Role.APPROVER),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Approvals:
    """The handlers and what they need."""

    acceptance: Acceptance
    audit: Audit
    pool: Pool
    jobs: procrastinate.App

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", f"{RUN}/approve"): self.approve, ("POST", f"{RUN}/reject"): self.reject}

    def approve(self, id: str) -> runs.Run:
        """Approve a plan; what changed since it was made, or came too late, is rejected instead."""
        wanted = web.json_body(requests.ApproveRequest)
        by = identity().name

        def decide(connection: Connection) -> None:
            approvals.approve(connection, self.acceptance.seal, id, by, wanted)

        with self.pool.connection() as connection:
            row = self._row(connection, id)
            approvals.refuse_own(row, by)
            if row["approval"] == runs.Approval.PENDING and wanted.plan in (None, row["plan_run"]):
                self._void_if_changed(connection, row)
        run = self._decide(id, "run.approve", wanted, decide)
        bottle.response.status = 202
        return run

    def reject(self, id: str) -> runs.Run:
        """Say no, with a reason."""
        wanted = web.json_body(requests.RejectRequest)

        def decide(connection: Connection) -> None:
            approvals.reject(connection, id, identity().name, wanted.reason)

        return self._decide(id, "run.reject", wanted, decide)

    def _void_if_changed(self, connection: Connection, row: Mapping[str, Any]) -> None:
        """In a transaction of its own: it stays, whatever is answered then."""
        if changed := approvals.changed_content(row, self.acceptance.content):
            approvals.void(connection, row["id"], changed)

    def _decide(self, id: str, action: str, wanted: BaseModel, decide: Callable[[Connection], None]) -> runs.Run:
        """A worker is woken in the decision's transaction, since there may be something to do."""

        def decide_and_wake(connection: Connection) -> None:
            decide(connection)
            queue.wake(self.jobs, connection)

        return decided(self.audit, action, id, wanted, self._row, decide_and_wake)

    def _row(self, connection: Connection, run: str) -> Mapping[str, Any]:
        """The run, for whoever may decide on it."""
        approvals.expire(connection)
        row = runs.find(connection, run)
        if row is None:
            raise Problem(404, detail="There is no such run.")
        concerns(environment=row["environment"], operation=row["operation"])
        access.require(identity(), Role.APPROVER, row["environment"], row["operation"])
        return row
