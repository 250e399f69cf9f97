"""Business rules: read from one JSON file, checked, and replaced while the process runs."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, field_validator

from bazaruto.service.fields import MAX_MINOR, Currency, Name, Product

MAX_BYTES = 1024 * 1024
CHECK_SECONDS = 1.0  # a change of the file is seen after this long at the latest

Limit = Annotated[StrictInt, Field(ge=0, le=MAX_MINOR)]
Days = Annotated[StrictInt, Field(ge=0, le=3660)]
Version = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)] | Annotated[Name, Field(max_length=64)]


class BusinessRules(BaseModel):
    """What decides about a claim without a person."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Business rules of Bazaruto")

    version: Version = Field(description="Another one for every change of the content")
    auto_approval_limits: dict[Product, dict[Currency, Limit]] = Field(
        description="Per product and currency, in minor units: claims up to here are approved without review; "
        "what is not listed is always reviewed"
    )
    waiting_periods_days: dict[Product, Days] = Field(
        description="Per product: days from the policy's start within which every claim is reviewed"
    )

    @field_validator("waiting_periods_days")
    @classmethod
    def _names_every_product(cls, days: dict[Product, int]) -> dict[Product, int]:
        if missing := [product.value for product in Product if product not in days]:
            raise ValueError(f"must name every product; missing: {', '.join(missing)}")
        return days

    def auto_approval_limit(self, product: Product, currency: str) -> int:
        """The largest amount that is approved without review; 0: none is."""
        return self.auto_approval_limits.get(product, {}).get(currency, 0)


class RulesError(Exception):
    """The rules cannot be used; `problems` has one sentence for every error."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class ActiveRules:
    """Rules in force, and where they came from."""

    rules: BusinessRules
    sha256: str
    loaded_at: dt.datetime


@dataclass(frozen=True)
class Refusal:
    """A file that was not taken: why, and when."""

    error: str
    at: dt.datetime


def parse(content: bytes) -> BusinessRules:
    """Turn the file's bytes into rules; raises RulesError naming every problem."""
    if len(content) > MAX_BYTES:
        raise RulesError([f"the file has {len(content)} bytes, at most {MAX_BYTES} are read"])
    try:
        document = json.loads(
            content.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
        return BusinessRules.model_validate(document)
    except ValidationError as error:
        raise RulesError([_sentence(item["loc"], item["msg"]) for item in error.errors()]) from error
    except RecursionError as error:
        raise RulesError(["the file is nested too deeply"]) from error
    except ValueError as error:
        raise RulesError([f"the file is not JSON in UTF-8: {error}"]) from error


def check(path: Path) -> BusinessRules:
    """Read and check the rules of one file; raises RulesError."""
    try:
        with path.open("rb") as file:
            return parse(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise RulesError([f"{path} cannot be read: {error.strerror}"]) from error


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return BusinessRules.model_json_schema()


def schema_text() -> str:
    """The same as it stands in `business_rules.schema.json`."""
    return json.dumps(schema(), indent=2) + "\n"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named twice in one object: {', '.join(twice)}")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    place = ".".join(str(part) for part in location if part != "[key]") or "the document"
    return f"{place}: {message}"


class RulesFile:
    """The rules in force in this process; a changed file replaces them when it is right."""

    def __init__(
        self,
        path: Path,
        report: Callable[[ActiveRules | Refusal], None],
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self.path = path
        self._report = report
        self._check_seconds = check_seconds
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | str | None = None
        self._checked = float("-inf")
        self._active: ActiveRules | None = None
        self._refusal: Refusal | None = None

    def current(self) -> ActiveRules | None:
        """The rules in force; None while no valid file was ever seen: then nothing is decided without a person."""
        if time.monotonic() - self._checked >= self._check_seconds:
            with self._lock:
                if time.monotonic() - self._checked >= self._check_seconds:
                    self._look()
                    self._checked = time.monotonic()
        return self._active

    def refusal(self) -> Refusal | None:
        """Why the file as it is now is not in force; None when it is."""
        self.current()
        return self._refusal

    def _look(self) -> None:
        try:
            status = self.path.stat()
            state: tuple[int, int, int] | str = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError as error:
            state = f"{self.path} cannot be read: {error.strerror}"
        if state == self._seen:
            return
        self._seen = state
        try:
            self._take()
        except RulesError as error:
            self._refusal = Refusal(str(error), dt.datetime.now(dt.UTC))
            self._report(self._refusal)

    def _take(self) -> None:
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise RulesError([f"{self.path} cannot be read: {error.strerror}"]) from error
        rules = parse(content)
        digest = hashlib.sha256(content).hexdigest()
        active = self._active
        if active and active.rules.version == rules.version and active.rules != rules:
            raise RulesError([f"version {rules.version} is in force with other content: give it another version"])
        self._refusal = None
        if active and active.sha256 == digest:
            return
        self._active = ActiveRules(rules, digest, dt.datetime.now(dt.UTC))
        self._report(self._active)
