"""The list of backups."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from bazaruto import web
from bazaruto.config import Settings
from bazaruto.control import backups
from bazaruto.control.api.guard import Handler, identity
from bazaruto.control.api.lists import ListQuery
from bazaruto.control.api.openapi import Endpoint
from bazaruto.database import Pool
from bazaruto.problems import Problem


class BackupQuery(ListQuery):
    """Which backups."""

    kind: backups.Kind | None = Field(default=None, description="Only these")


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/v1/backups", "Backups, newest first", backups.Backup, listed=True, query=BackupQuery,
             errors=(400, 422)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Backups:
    """Answers from the directories backups lie in."""

    directories: Mapping[backups.Kind, Path]
    pool: Pool

    @classmethod
    def of(cls, settings: Settings, pool: Pool) -> Backups:
        """Those of this node."""
        kinds = {
            backups.Kind.DATABASE: settings.backup_directory,
            backups.Kind.CONTROL: settings.control_backup_directory,
        }
        return cls(kinds, pool)

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {("GET", "/api/v1/backups"): self.list_backups}

    def list_backups(self) -> dict[str, Any]:
        wanted = web.query(BackupQuery)
        asked = {kind: path for kind, path in self.directories.items() if wanted.kind in (None, kind)}
        before = web.decode_cursor(wanted.cursor, str)[0] if wanted.cursor else None
        try:
            found = list(itertools.islice(self._within_limits(asked, before, wanted.limit + 1), wanted.limit + 1))
        except backups.StorageUnreadableError as error:
            raise Problem(503, detail=str(error)) from error
        shown = found[: wanted.limit]
        return web.page(shown, web.encode_cursor(shown[-1].place) if len(found) > wanted.limit else None)

    def _within_limits(
        self, asked: Mapping[backups.Kind, Path], before: str | None, batch: int
    ) -> Iterator[backups.Backup]:
        """Those made in the environments of whoever asks, newest first."""
        environments = identity().environments
        while True:
            found, before = backups.page(asked, before, batch)
            if environments:
                with self.pool.connection() as connection:
                    found = backups.made_in(connection, found, environments)
            yield from found
            if before is None:
                return
