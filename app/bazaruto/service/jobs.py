"""The job queue as the rest of the service sees it: what can be queued, what failed, what is held."""

from __future__ import annotations

import enum
from typing import Any

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from bazaruto import database
from bazaruto.service.context import only_row

SQL = database.statements(__package__, "jobs.sql")
HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 20.0  # without a heartbeat; then its jobs go back into the queue
MAX_ATTEMPTS = 8  # of a job that meets transient failures, or whose workers die
KEEP_DAYS = 30  # finished jobs; failed ones stay until someone retries them


class Task(enum.StrEnum):
    """What a worker can do."""

    ASSESS_CLAIM = "assess_claim"  # decide about a new claim by the business rules
    DELIVER_WEBHOOK = "deliver_webhook"  # tell one subscriber of one event
    LAPSE_ENDED_POLICIES = "lapse_ended_policies"  # nightly
    SWEEP = "sweep"  # nightly: expired tokens, old finished jobs


class Queue(enum.StrEnum):
    """Queues that workers serve; those named held:… wait until someone releases them."""

    DEFAULT = "default"
    WEBHOOKS = "webhooks"


def defer(
    connection: psycopg.Connection[DictRow], task: Task, arguments: dict[str, Any], queue: Queue = Queue.DEFAULT
) -> int:
    """Queue a job in the caller's transaction: it exists when, and only when, what caused it does."""
    values = {"queue": queue.value, "task": task.value, "args": Jsonb(arguments)}
    return int(only_row(connection.execute(SQL.defer_job, values))["id"])
