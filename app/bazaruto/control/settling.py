"""Asks hosts that could not be asked when a run ended, again and again, whether they are still at work for it.

Until they are known not to be, or an admin waives it, no other change starts in their environment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bazaruto import logs
from bazaruto.config import Settings
from bazaruto.control import launch, runs
from bazaruto.control.engine import remote
from bazaruto.database import Pool

log = logs.get(__name__)
SECONDS_BETWEEN_ASKING = 15.0  # after the last answer


class Settler:
    """The runs of one node that may have left something running."""

    def __init__(self, settings: Settings, pool: Pool, node: str) -> None:
        self._settings = settings
        self._pool = pool
        self._node = node
        self._executor = ThreadPoolExecutor(2, "settle")
        self._asked: dict[str, Future[remote.Ended]] = {}
        self._ask_at = 0.0

    def step(self) -> bool:
        """Take in answers, and ask when it is time; True when a run was settled."""
        now = time.monotonic()
        if now >= self._ask_at:
            self._ask_at = now + SECONDS_BETWEEN_ASKING
            with self._pool.connection() as connection:
                rows = connection.execute(runs.SQL.unsettled_on_node, {"node": self._node}).fetchall()
            for row in rows:
                self._ask(row)
        answered = [run for run, answer in self._asked.items() if answer.done()]
        settled = [self._record(run, self._asked.pop(run).result()) for run in answered]
        return any(settled)

    def close(self) -> None:
        """Ask nobody any more; those being asked answer within remote.DEADLINE_SECONDS."""
        self._executor.shutdown(cancel_futures=True)

    def _ask(self, row: Mapping[str, Any]) -> None:
        if row["id"] not in self._asked:
            directory = launch.directory_of(self._settings, row["id"])
            self._asked[row["id"]] = self._executor.submit(remote.end_work, directory, row["left_running"])

    def _record(self, run: str, ended: remote.Ended) -> bool:
        left = [item.host for item in ended.left]
        stopped = ", ".join(f"{item.unit} on {item.host}" for item in ended.stopped)
        reason = f"stopped {stopped}" if stopped else "nothing of it was running any more"
        if left:
            reason = "; ".join(map(str, ended.left))
        log.info("hosts of a run were asked again", run=run, left_running=left, answer=reason)
        with self._pool.connection() as connection:
            runs.settle(connection, run, left, reason)
        return not left
