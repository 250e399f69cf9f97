"""Decisions on a run: made and entered into the audit together, and refused where they do not fit how it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from bazaruto.control import runs
from bazaruto.control.api.audited import actor
from bazaruto.control.audit.changes import Audit
from bazaruto.control.sealing import CannotUnsealError
from bazaruto.database import Connection
from bazaruto.problems import Problem

Look = Callable[[Connection, str], Mapping[str, Any]]  # the run's row, for whoever may decide on it


def decided(  # noqa: PLR0913, PLR0917 - what is decided, on what, by whose words
    audit: Audit, action: str, id: str, wanted: BaseModel, look: Look, decide: Callable[[Connection], None]
) -> runs.Run:
    """The run after somebody's decision."""
    with audit.change(actor(), action, target=id) as change:
        row = look(change.connection, id)
        change.environment, change.operation = row["environment"], row["operation"]
        change.parameters = wanted.model_dump(exclude_none=True) or None
        try:
            decide(change.connection)
        except (runs.ClashError, CannotUnsealError) as error:
            raise Problem(409, detail=str(error)) from error
        return runs.of_row(look(change.connection, id))
