"""What can be launched, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from bazaruto import web
from bazaruto.control import access
from bazaruto.control.access import Role
from bazaruto.control.api.guard import Handler, identity
from bazaruto.control.api.openapi import Endpoint
from bazaruto.control.catalog import Catalogue, Operation
from bazaruto.control.content import Content
from bazaruto.problems import Problem


class OperationSummary(BaseModel):
    """An operation in the list of all."""

    name: str
    summary: str
    effect: str
    launch: str = Field(description="The lowest role that may launch it")
    timeout_seconds: float


class OperationDetails(OperationSummary):
    """An operation with the JSON Schema of its parameters."""

    playbook: str
    excludes: str | None = Field(description="Runs of one kind in one environment exclude each other")
    approval: bool = Field(description="Whether another person has to approve its plan, wherever it is launched")
    parameters: dict[str, Any] = Field(description="JSON Schema")


class EnvironmentAnswer(BaseModel):
    """An inventory that operations can be launched in."""

    name: str
    protected: bool = Field(description="Whether another person has to approve every change there")


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/api/v1/operations", "What can be launched", OperationSummary, listed=True),
    Endpoint("GET", "/api/v1/operations/{name}", "One operation and its parameters", OperationDetails, errors=(404,)),
    Endpoint("GET", "/api/v1/environments", "Where it can be launched", EnvironmentAnswer, listed=True),
)


@dataclasses.dataclass(frozen=True)
class Operations:
    """Answers about the content of this moment."""

    content: Content

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        return {
            ("GET", "/api/v1/operations"): self.list_operations,
            ("GET", "/api/v1/operations/{name}"): self.show_operation,
            ("GET", "/api/v1/environments"): self.list_environments,
        }

    def list_operations(self) -> dict[str, Any]:
        allowed = identity().operations
        known = self._catalogue().operations.values()
        return web.page([_summary(each) for each in known if not allowed or each.name in allowed], None)

    def show_operation(self, name: str) -> OperationDetails:
        operation = self._catalogue().operations.get(name)
        if operation is None:
            raise Problem(404, detail="There is no such operation.")
        access.require(identity(), Role.VIEWER, operation=name)
        return OperationDetails(
            **_summary(operation).model_dump(),
            playbook=operation.playbook,
            excludes=operation.exclusion,
            approval=operation.approval,
            parameters=operation.json_schema(),
        )

    def list_environments(self) -> dict[str, Any]:
        catalogue, allowed = self._catalogue(), identity().environments
        found = [
            EnvironmentAnswer(name=name, protected=name in catalogue.protected)
            for name in catalogue.environments()
            if not allowed or name in allowed
        ]
        return web.page(found, None)

    def _catalogue(self) -> Catalogue:
        return self.content.current().catalogue


def _summary(operation: Operation) -> OperationSummary:
    return OperationSummary(
        name=operation.name,
        summary=operation.summary,
        effect=operation.effect,
        launch=operation.launch,
        timeout_seconds=operation.timeout_seconds,
    )
