"""The list of backups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bazaruto import web
from bazaruto.control import backups
from bazaruto.control.api.guard import Handler
from bazaruto.control.api.lists import ListQuery
from bazaruto.control.api.openapi import Endpoint
from bazaruto.problems import Problem

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/v1/backups", "Backups, newest first", backups.Backup, listed=True, query=ListQuery,
             errors=(400, 422)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Backups:
    """Answers from the backup directory."""

    directory: Path

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {("GET", "/api/v1/backups"): self.list_backups}

    def list_backups(self) -> dict[str, Any]:
        wanted = web.query(ListQuery)
        before = web.decode_cursor(wanted.cursor, str)[0] if wanted.cursor else None
        try:
            found, last = backups.page(self.directory, before, wanted.limit)
        except backups.StorageUnreadableError as error:
            raise Problem(503, detail=str(error)) from error
        return web.page(found, web.encode_cursor(last) if last else None)
