"""Tokens: who has which, made, revoked; and whose the one is that asks."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import bottle
from pydantic import BaseModel, Field

from bazaruto import web
from bazaruto.control import tokens
from bazaruto.control.access import Role
from bazaruto.control.api.audited import actor, concerns
from bazaruto.control.api.guard import Handler, identity
from bazaruto.control.api.lists import ListQuery
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.audit.changes import Audit
from bazaruto.control.content import Content
from bazaruto.database import Pool
from bazaruto.problems import FieldError, Problem

TOKENS, WHOAMI = "/api/v1/tokens", "/api/v1/whoami"
REVOKE = f"{TOKENS}/{{id}}/revoke"


class Whoami(BaseModel):
    """Whose token asks, and what it is good for."""

    name: str
    role: Role
    token: str = Field(description="The token's id")
    environments: list[str] = Field(description="Those it is good for; empty: every one")
    operations: list[str] = Field(description="Likewise")


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", WHOAMI, "Whose token asks", Whoami),
    Endpoint("GET", TOKENS, "Tokens, newest first, without their secrets", tokens.Token, listed=True, role=Role.ADMIN,
             query=ListQuery, errors=(400, 422)),
    Endpoint("POST", TOKENS, "Make a token, which is shown this once", tokens.NewToken, status=201, role=Role.ADMIN,
             body=tokens.TokenRequest, errors=(400, 413, 415, 422)),
    Endpoint("POST", REVOKE, "End a token at once", tokens.Token, role=Role.ADMIN, body=tokens.RevokeRequest,
             errors=(400, 404, 409, 413, 415, 422)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The handlers and what they need."""

    audit: Audit
    pool: Pool
    content: Content

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {
            ("GET", WHOAMI): self.whoami,
            ("GET", TOKENS): self.list_tokens,
            ("POST", TOKENS): self.create,
            ("POST", REVOKE): self.revoke,
        }

    def whoami(self) -> Whoami:
        return Whoami.model_validate(dataclasses.asdict(identity()))

    def list_tokens(self) -> dict[str, Any]:
        wanted = web.query(ListQuery)
        before = web.decode_cursor(wanted.cursor, datetime.datetime, str) if wanted.cursor else None
        with self.pool.connection() as connection:
            found = tokens.page(connection, identity(), before, wanted.limit + 1)
        shown = found[: wanted.limit]
        more = web.encode_cursor(shown[-1].created_at, shown[-1].id) if len(found) > wanted.limit else None
        return web.page(shown, more)

    def create(self) -> tokens.NewToken:
        wanted = web.json_body(tokens.TokenRequest)
        concerns(target=wanted.name)
        catalogue = self.content.current().catalogue
        there_are = catalogue.environments(), list(catalogue.operations)
        asked = wanted.model_dump(mode="json", exclude_none=True)
        try:
            with self.audit.change(actor(), "token.create", parameters=asked) as change:
                made = tokens.create(change.connection, wanted, identity(), *there_are)
                change.target = made.id
        except tokens.WrongToken as error:
            errors = [FieldError(*each) for each in error.errors]
            raise Problem(422, "Wrong input", "No token was made.", errors=errors) from error
        bottle.response.status = 201
        return made

    def revoke(self, id: str) -> tokens.Token:
        wanted = web.json_body(tokens.RevokeRequest)
        try:
            with self.audit.change(actor(), "token.revoke", target=id) as change:
                revoked = tokens.revoke(change.connection, id, identity(), wanted.reason)
                change.parameters = {"name": revoked.name, "reason": wanted.reason}
                return revoked
        except tokens.NoSuchToken as error:
            raise Problem(404, detail=str(error)) from error
        except tokens.TokenClash as error:
            raise Problem(409, detail=str(error)) from error
