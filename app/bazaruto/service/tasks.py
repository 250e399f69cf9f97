"""What a worker does: assesses claims, lapses policies, delivers webhooks, sweeps; each may be repeated safely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg
from procrastinate.jobs import Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from psycopg_pool import PoolTimeout

from bazaruto import database, logs
from bazaruto.service import access, claims, deliveries, jobs, policies
from bazaruto.service.assessment import Facts, assess
from bazaruto.service.claims import ClaimStatus
from bazaruto.service.context import Service
from bazaruto.service.fields import Product
from bazaruto.service.jobs import SQL, Queue, Task

log = logs.get(__name__)
HELD_RETRY_SECONDS = 5  # while writes are held, for as long as it takes
LONGEST_RETRY_SECONDS = 300
_MAX_DELAY_SECONDS = 20 * 3600  # a nightly task is made up for by a worker that starts later in the day


class ClaimMissing(Exception):
    """There is no such claim (any more)."""


class Retry(BaseRetryStrategy):
    """Again soon while writes are held, later and later after what may pass, never after what will not."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """When to run the job again; None: it has failed."""
        if isinstance(exception, database.WritesHeld):
            return RetryDecision(retry_in={"seconds": HELD_RETRY_SECONDS})
        if not _may_pass(exception) or job.attempts + 1 >= jobs.MAX_ATTEMPTS:
            return None
        return RetryDecision(retry_in={"seconds": min(2 ** (job.attempts + 1), LONGEST_RETRY_SECONDS)})


def _may_pass(exception: BaseException) -> bool:
    transient = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, deliveries.NotDelivered)
    return isinstance(exception, transient)


def build(service: Service, connector: procrastinate.BaseConnector) -> procrastinate.App:
    """The tasks of this process, bound to its pool and rules."""
    app = procrastinate.App(connector=connector, periodic_defaults={"max_delay": _MAX_DELAY_SECONDS})

    def register(task: Task, function: Callable[..., None], queue: Queue = Queue.DEFAULT) -> Any:
        run = _remembering(service.pool, function)
        return app.task(name=task.value, queue=queue.value, pass_context=True, retry=Retry())(run)

    register(Task.ASSESS_CLAIM, lambda claim_id: assess_claim(service, claim_id))
    register(
        Task.DELIVER_WEBHOOK,
        lambda delivery_id: deliveries.deliver(service.pool, service.settings.webhooks, delivery_id),
        Queue.WEBHOOKS,
    )
    lapse = register(Task.LAPSE_ENDED_POLICIES, lambda **_: lapse_ended_policies(service.pool))
    sweep = register(Task.SWEEP, lambda **_: sweep_old(service.pool))
    app.periodic(cron="5 0 * * *")(lapse)
    app.periodic(cron="35 0 * * *")(sweep)
    return app


def assess_claim(service: Service, claim_id: str) -> None:
    """Take a submitted claim into review, and approve it when the rules allow; nothing when someone was faster."""
    with database.write(service.pool) as connection:
        claim = connection.execute(claims.SQL.claim_for_assessment, {"id": claim_id}).fetchone()
        if claim is None:
            raise ClaimMissing(f"there is no claim {claim_id}")
        if claim["status"] != ClaimStatus.SUBMITTED:
            return
        active = service.rules.current()
        facts = Facts(
            product=Product(claim["product"]),
            amount_minor=claim["amount_minor"],
            currency=claim["currency"],
            policy_starts_on=claim["starts_on"],
            incident_on=claim["incident_on"],
        )
        decision = assess(facts, active.rules if active else None)
        claims.attribute(connection, via=f"job:{Task.ASSESS_CLAIM}", reason=decision.reason)
        claims.advance(connection, claim["id"], ClaimStatus.SUBMITTED, ClaimStatus.IN_REVIEW)
        if decision.approved:
            claims.advance(connection, claim["id"], ClaimStatus.IN_REVIEW, ClaimStatus.APPROVED)
    log.info("Claim assessed", claim_id=claim_id, approved=decision.approved, reason=decision.reason)


def lapse_ended_policies(pool: database.Pool) -> None:
    """Lapse active policies whose term is over."""
    with database.write(pool) as connection:
        lapsed = policies.lapse_ended(connection)
    log.info("Ended policies lapsed", count=lapsed)


def sweep_old(pool: database.Pool) -> None:
    """Forget expired tokens and finished jobs of long ago."""
    with database.write(pool) as connection:
        tokens = connection.execute(access.SQL.delete_expired_tokens).rowcount
        finished = connection.execute(SQL.delete_old, {"days": jobs.KEEP_DAYS}).rowcount
    log.info("Swept", expired_tokens=tokens, finished_jobs=finished)


def _remembering(pool: database.Pool, function: Callable[..., None]) -> Callable[..., None]:
    """The function, with the reason of a failure written down before procrastinate decides what follows."""

    def run(context: procrastinate.JobContext, **arguments: Any) -> None:
        try:
            function(**arguments)
        except database.WritesHeld:
            raise
        except Exception as error:
            log.warn("Job attempt failed", job_id=context.job.id, task=context.job.task_name, error=_reason(error))
            _remember(pool, context.job, _reason(error))
            raise

    return run


def _remember(pool: database.Pool, job: Job, reason: str) -> None:
    try:
        with pool.connection() as connection:
            values = {"job_id": job.id, "attempt": job.attempts + 1, "error": reason}
            connection.execute(SQL.record_failure, values)
    except (psycopg.Error, PoolTimeout) as error:
        # The database is what failed, most likely: the log has the reason, and the job runs again.
        log.warn("A job's failure could not be written down", job_id=job.id, error=type(error).__name__)


def _reason(error: Exception) -> str:
    """Class and message; a database's message can hold a row's values, so only its SQLSTATE is given."""
    if isinstance(error, psycopg.Error):
        name = error.diag.constraint_name
        return f"{type(error).__name__}: SQLSTATE {error.sqlstate or 'none'}" + (f", {name}" if name else "")
    text = logs.redacted(str(error).strip().splitlines()[0] if str(error).strip() else "no message")
    return f"{type(error).__name__}: {text}"[:1000]
