"""The audit and the keys: entries, the proof of them, and what a person answers for when a part of it is lost."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Annotated, Any

import bottle
from pydantic import BaseModel, ConfigDict, Field

from bazaruto import web
from bazaruto.control.access import Role
from bazaruto.control.api.audited import actor
from bazaruto.control.api.guard import Handler, identity
from bazaruto.control.api.lists import ListQuery
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.audit import entries, repairs, verify
from bazaruto.control.audit.changes import Audit
from bazaruto.control.audit.entries import AuditEntry, AuditFilter, Moment
from bazaruto.control.audit.verify import Verification
from bazaruto.control.keys import KeyName
from bazaruto.control.streams import Lasting, Streams
from bazaruto.database import Pool
from bazaruto.problems import Problem

AUDIT, KEYS = "/api/v1/audit", "/api/v1/keys"
MEDIA = "application/x-ndjson"
Seq = Annotated[int, Field(ge=1, lt=2**63)]


class AuditQuery(AuditFilter, ListQuery):
    """Which entries to list."""


class ExportQuery(BaseModel):
    """From where to export."""

    since: Seq = Field(default=1, description="the entry to begin with")


class ReasonRequest(BaseModel):
    """Why; it is kept."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(max_length=1024, pattern=r"\S", description="Why, for whoever reads it later")


class KeyAnswer(BaseModel):
    """How a key stands."""

    name: KeyName
    fingerprint: str | None = Field(description="Of the key in use")
    since: Moment | None
    problem: str | None = Field(description="Why it cannot be used")


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", AUDIT, "Entries of the audit, newest first", AuditEntry, listed=True, query=AuditQuery,
             errors=(400, 422)),
    Endpoint("GET", f"{AUDIT}/export", "All entries, oldest first, each a line of JSON", None, media=MEDIA,
             query=ExportQuery, errors=(400, 422)),
    Endpoint("GET", f"{AUDIT}/verification", "Whether the audit is as it was written", Verification),
    Endpoint("POST", f"{AUDIT}/rotation", "Begin a new file of heads, since the one before is gone", AuditEntry,
             status=201, role=Role.ADMIN, body=ReasonRequest, errors=(400, 413, 415, 422)),
    Endpoint("GET", KEYS, "The control node's keys", KeyAnswer, listed=True),
    Endpoint("POST", f"{KEYS}/{{name}}/replace", "Give a key up for a new one", KeyAnswer, role=Role.ADMIN,
             body=ReasonRequest, errors=(400, 404, 413, 415, 422)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AuditTrail:
    """The handlers and what they need."""

    audit: Audit
    pool: Pool
    streams: Streams
    verifying: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {
            ("GET", AUDIT): self.list_entries,
            ("GET", f"{AUDIT}/export"): self.export,
            ("GET", f"{AUDIT}/verification"): self.verify,
            ("POST", f"{AUDIT}/rotation"): self.accept_rotation,
            ("GET", KEYS): self.list_keys,
            ("POST", f"{KEYS}/{{name}}/replace"): self.replace_key,
        }

    def list_entries(self) -> dict[str, Any]:
        wanted = web.query(AuditQuery)
        before = web.decode_cursor(wanted.cursor, Seq)[0] if wanted.cursor else entries.HIGHEST
        with self.pool.connection() as connection:
            found = entries.page(connection, wanted, identity(), before, wanted.limit + 1)
        shown = found[: wanted.limit]
        return web.page(shown, web.encode_cursor(shown[-1].seq) if len(found) > wanted.limit else None)

    def export(self) -> Lasting:
        wanted = web.query(ExportQuery)
        bottle.response.content_type = MEDIA
        return Lasting(entries.export(self.pool, identity(), wanted.since), self.streams.slots.take())

    def verify(self) -> Verification:
        """One at a time: it reads all there is."""
        if not self.verifying.acquire(blocking=False):
            raise Problem(503, detail="The audit is being verified for somebody else.", headers={"Retry-After": "5"})
        try:
            with self.pool.connection() as holding, self.pool.connection() as reading:
                return verify.verify(self.audit, holding, reading)
        finally:
            self.verifying.release()

    def accept_rotation(self) -> AuditEntry:
        _require_no_limits()
        wanted = web.json_body(ReasonRequest)
        seq = repairs.accept_rotation(self.audit, actor(), wanted.reason)
        with self.pool.connection() as connection:
            entry = entries.one(connection, seq)
        bottle.response.status = 201
        return entry

    def list_keys(self) -> dict[str, Any]:
        with self.pool.connection() as connection:
            states = self.audit.keys.states(connection)
        return web.page([KeyAnswer.model_validate(dataclasses.asdict(state)) for state in states], None)

    def replace_key(self, name: str) -> KeyAnswer:
        _require_no_limits()
        wanted = web.json_body(ReasonRequest)
        if name not in list(KeyName):
            raise Problem(404, detail=f"There is no such key, but: {', '.join(KeyName)}.")
        repairs.replace_key(self.audit, actor(), KeyName(name), wanted.reason)
        with self.pool.connection() as connection:
            found = next(state for state in self.audit.keys.states(connection) if state.name == name)
        return KeyAnswer.model_validate(dataclasses.asdict(found))


def _require_no_limits() -> None:
    """Keys and the file of heads belong to every environment."""
    if identity().environments or identity().operations:
        raise Problem(403, detail=f"{identity().name}'s token is not for everything, and this concerns everything.")
