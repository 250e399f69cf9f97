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
    """Wake a worker when, and only if, the transaction of this connection commits. Raises psycopg's own errors."""
    try:
        app.configure_task(WAKE, connection=connection).defer()
    except procrastinate.exceptions.ConnectorException as error:
        if isinstance(error.__cause__, psycopg.Error):  # a database that is away is told from a fault of ours
            raise error.__cause__ from error
        raise
