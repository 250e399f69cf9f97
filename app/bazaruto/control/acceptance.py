"""Accepts launches: checked as a whole against the content of this moment, then durable, and a worker woken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import procrastinate

from bazaruto.config import Settings
from bazaruto.control import access, approvals, idempotency, queue, requests, runs, snapshots
from bazaruto.control.access import Identity, Role
from bazaruto.control.audit.changes import Actor, Audit
from bazaruto.control.catalog import Catalogue, Operation
from bazaruto.control.content import Content, Release
from bazaruto.control.sealing import Seal
from bazaruto.control.targets import BrokenInventory, Targets, UnmatchedLimit
from bazaruto.database import Pool


@dataclasses.dataclass(frozen=True)
class Sender:
    """Who sends a launch."""

    identity: Identity
    actor: Actor  # the same person as the audit names them
    key: str | None  # makes the launch safe to be sent again


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The run of a launch."""

    run: runs.Run
    replayed: bool  # it was launched before, with the same key


class Acceptance:
    """Where launches come in. May be shared by threads."""

    def __init__(self, settings: Settings, pool: Pool, audit: Audit, jobs: procrastinate.App) -> None:
        self.content = Content.of(settings)
        self._targets = Targets(settings.home)
        self._home = settings.home
        self._pool = pool
        self._audit = audit
        self.seal = Seal(audit.keys)
        self._jobs = jobs

    def launch(self, values: Mapping[str, Any], sender: Sender, retry_of: str | None = None) -> Accepted:
        """The run of what is asked for: a new one, or that of the same launch before.

        Raises NotAllowed, WrongKey, RefusedRequest, CatalogueError, ContentError, TargetsUnknown, KeyUnusable or
        AuditUnwritable; then nothing was started.
        """
        by = sender.identity
        asked = {"retry_of": retry_of, "launch": values}
        keyed = idempotency.launch_of(sender.key, self.seal, by.name, asked)
        if keyed and (earlier := self._earlier(keyed)):
            access.require(by, Role.VIEWER, earlier.run.environment, earlier.run.operation)
            return earlier
        with snapshots.kept(self._home):  # until the run is there that refers to the one it was checked against
            return self._accept(values, sender, keyed, retry_of)

    def _accept(
        self, values: Mapping[str, Any], sender: Sender, keyed: idempotency.Launch | None, retry_of: str | None
    ) -> Accepted:
        by, release = sender.identity, self.content.current()
        _refuse_others(release.catalogue, values, by)
        operation, request = requests.check_request(release.catalogue, values, self._limits(release))
        origin = runs.Origin(by.name, retry_of, release.revision, release.dirty, release.digest)
        try:
            with self._audit.change(sender.actor, "run.retry" if retry_of else "run.launch") as change:
                connection = change.connection
                self.seal.check(connection)
                run = runs.accept(connection, self.seal, operation, request, origin)
                change.target, change.environment, change.operation = run.id, run.environment, run.operation
                change.parameters = _shown(run)
                if approvals.needed(release.catalogue, operation, request):
                    run = approvals.ask(connection, self.seal, run.id)
                queue.wake(self._jobs, connection)
                if keyed:
                    keyed.keep(connection, run.id)
        except idempotency.AlreadyLaunched:
            earlier = self._earlier(keyed) if keyed else None
            if earlier is None:
                raise
            return earlier
        return Accepted(run, replayed=False)

    def _earlier(self, keyed: idempotency.Launch) -> Accepted | None:
        with self._pool.connection() as connection:
            run = keyed.earlier(connection)
            row = runs.find(connection, run) if run else None
        return Accepted(runs.of_row(row), replayed=True) if row else None

    def _limits(self, release: Release) -> requests.LimitCheck:
        """What is wrong with a limit, by field."""

        def wrong(operation: Operation, environment: str, limit: str) -> tuple[str, str] | None:
            try:
                self._targets.hosts(release, operation.name, environment, limit)
            except UnmatchedLimit as error:
                return "limit", str(error)
            except BrokenInventory as error:
                return "environment", str(error)
            return None

        return wrong


def _refuse_others(catalogue: Catalogue, values: Mapping[str, Any], by: Identity) -> None:
    """Raise NotAllowed before anything is said about the rest of the request; what is no name is refused after that."""
    operation, environment = (
        value if isinstance(value := values.get(name), str) else None for name in ("operation", "environment")
    )
    known = catalogue.operations.get(operation or "")
    access.require(by, known.launch if known else Role.OPERATOR, environment, operation)


def _shown(run: runs.Run) -> dict[str, Any]:
    """What was asked for, as everybody may see it."""
    told = run.model_dump(include={"parameters", "check", "diff", "limit", "reason", "retry_of"})
    return {name: value for name, value in told.items() if value not in (None, False)}
