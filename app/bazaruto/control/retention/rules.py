"""How long runs and their events are kept: rules by age, count and outcome, with exceptions by operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Days = Annotated[int, Field(ge=0, le=36_500)]
Runs = Annotated[int, Field(ge=0, le=1_000_000)]


class WrongRules(Exception):
    """The rules cannot be followed; the text names every wrong one."""


class Rule(BaseModel):
    """How long the runs of an operation are kept. The newest of an operation in an environment are kept whatever else
    is said; dry runs are counted apart from the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    succeeded_days: Days = 90  # after its end, until a run that succeeded goes
    other_days: Days = 365  # the same of one that ended otherwise
    events_days: Days = 90  # after its end, until events and output go; the run's record may stay longer
    keep_newest: Runs = 10  # of each operation in each environment, with their events
    keep_at_most: Runs = 0  # of each operation in each environment, however young; 0: any number

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.keep_at_most and self.keep_at_most < self.keep_newest:
            raise ValueError(f"keep_at_most ({self.keep_at_most}) is less than keep_newest ({self.keep_newest})")
        return self

    def lets_go(self, row: Mapping[str, Any]) -> bool:
        """Whether a run that is over may go."""
        if row["place"] <= self.keep_newest:
            return False
        days = self.succeeded_days if row["status"] == "succeeded" else self.other_days
        return bool(row["age_days"] >= days) or bool(self.keep_at_most and row["place"] > self.keep_at_most)

    def lets_events_go(self, row: Mapping[str, Any]) -> bool:
        """Whether the events and the output of a run that stays may go."""
        return bool(row["events"] > 0 and row["place"] > self.keep_newest and row["age_days"] >= self.events_days)

    def would_let_go(self, row: Mapping[str, Any]) -> bool:
        """Whether a run that is not over has the age at which it might go, if it were."""
        return bool(row["age_days"] >= self.other_days)


class Rules:
    """The rule of every operation."""

    def __init__(self, general: Rule, special: Mapping[str, Rule]) -> None:
        self._general = general
        self._special = special

    def of(self, operation: str) -> Rule:
        return self._special.get(operation, self._general)


def parse_rules(general: Mapping[str, Any], special: Mapping[str, Any]) -> Rules:
    """The rules as they are given: what an operation does not say itself is the general one's. Raises WrongRules."""
    found = {"": general, **{name: {**general, **_mapping(name, rule)} for name, rule in special.items()}}
    rules, problems = {}, []
    for name, values in found.items():
        try:
            rules[name] = Rule.model_validate(values)
        except ValidationError as error:
            problems += [_problem(name, item["loc"], item["msg"]) for item in error.errors()]
    if problems:
        raise WrongRules("; ".join(problems))
    return Rules(rules.pop(""), rules)


def _mapping(name: str, rule: object) -> Mapping[str, Any]:
    if not isinstance(rule, Mapping):
        raise WrongRules(f"the rule of the operation {name} is no mapping, like {{succeeded_days: 30}}")
    return rule


def _problem(operation: str, where: tuple[int | str, ...], message: str) -> str:
    name = ".".join(map(str, filter(None, [operation, *where])))
    return f"{name}: {message.removeprefix('Value error, ')}".removeprefix(": ")
