"""Ends of runs as entries of the audit. An end is recorded whatever becomes of the audit; its entry follows."""

from __future__ import annotations

import time

from bazaruto import logs
from bazaruto.control.audit.changes import SQL, Actor, Audit, AuditUnwritable

log = logs.get(__name__)
WORKER = Actor("worker")
AT_ONCE = 20  # entries, so that living runs do not wait
AGAIN_SECONDS = 5.0  # after the audit could not be written


class Ends:
    """The ends that wait for their entries; any worker of any node may write them."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._not_before = 0.0
        self._unwritable = False

    def step(self) -> None:
        """Enter some of those that wait."""
        if time.monotonic() < self._not_before:
            return
        try:
            for _ in range(AT_ONCE):
                if not self._enter_one():
                    break
        except AuditUnwritable as error:
            self._not_before = time.monotonic() + AGAIN_SECONDS
            if not self._unwritable:
                log.warn("ends of runs wait for their entries in the audit", error=str(error))
            self._unwritable = True
        else:
            self._unwritable = False

    def _enter_one(self) -> bool:
        with self._audit.change(WORKER, "run.end") as change:
            row = change.connection.execute(SQL.take_end).fetchone()
            if row is None:
                change.needless = True
                return False
            change.target, change.operation, change.environment = row["run"], row["operation"], row["environment"]
            change.outcome, change.detail = row["status"], row["error"]
            change.parameters = {"node": row["node"]} if row["node"] else None
        return True
