"""What every list of the API is asked with."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ListQuery(BaseModel):
    """A page of a list."""

    cursor: str | None = Field(default=None, max_length=512, description="`next` of the page before")
    limit: int = Field(default=50, ge=1, le=500)
