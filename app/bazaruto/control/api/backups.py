"""The list of backups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from bazaruto import web
from bazaruto.config import Settings
from bazaruto.control import backups
from bazaruto.control.api.guard import Handler
from bazaruto.control.api.lists import ListQuery
from bazaruto.control.api.openapi import Endpoint
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

    @classmethod
    def of(cls, settings: Settings) -> Backups:
        """Those of this node."""
        kinds = {
            backups.Kind.DATABASE: settings.backup_directory,
            backups.Kind.CONTROL: settings.control_backup_directory,
        }
        return cls(kinds)

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {("GET", "/api/v1/backups"): self.list_backups}

    def list_backups(self) -> dict[str, Any]:
        wanted = web.query(BackupQuery)
        asked = {kind: path for kind, path in self.directories.items() if wanted.kind in (None, kind)}
        before = web.decode_cursor(wanted.cursor, str)[0] if wanted.cursor else None
        try:
            found, last = backups.page(asked, before, wanted.limit)
        except backups.StorageUnreadableError as error:
            raise Problem(503, detail=str(error)) from error
        return web.page(found, web.encode_cursor(last) if last else None)
