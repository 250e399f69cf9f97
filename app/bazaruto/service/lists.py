"""Keyset pages: newest first, neither shifted nor repeated by what is added meanwhile."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Annotated, Any

from psycopg.rows import DictRow
from pydantic import Field

from bazaruto import web
from bazaruto.service.fields import Input, Text


class Page(Input):
    """What every list understands."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Text | None = None  # `next` of the page before

    def keys(self) -> dict[str, Any]:
        """The parameters of a list's statement; one row more than asked tells whether there is another page."""
        keys: dict[str, Any] = {"limit": self.limit + 1, "before_time": None, "before_id": None}
        if self.cursor is not None:
            before = web.decode_cursor(self.cursor, dt.datetime, uuid.UUID)
            keys["before_time"], keys["before_id"] = before
        return keys

    def answer(self, rows: list[DictRow]) -> dict[str, Any]:
        """The page, and the cursor of the next when there is one."""
        items = rows[: self.limit]
        following = None
        if len(rows) > self.limit:
            following = web.encode_cursor(items[-1]["created_at"], items[-1]["id"])
        return web.page(items, following)
