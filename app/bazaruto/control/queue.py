"""procrastinate's part: a job for each accepted or ended run, which only wakes a worker. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg

WAKE = "wake"
POLL_SECONDS = 1.0  # LISTEN does not come back after PostgreSQL was away; this does


def application(connector: procrastinate.BaseConnector, wake: Callable[[], None] | None = None) -> procrastinate.App:
    """The queue; with `wake`, the end that is woken."""
    app = procrastinate.App(connector=connector)

    @app.task(name=WAKE, queue=WAKE)
    def woken() -> None:
        if wake is not None:
            wake()

    return app


def wake(app: procrastinate.App, connection: psycopg.Connection[Any]) -> None:
    """Wake a worker when, and only if, the transaction of this connection commits."""
    app.configure_task(WAKE, connection=connection).defer()
