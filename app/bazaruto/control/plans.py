"""Plans: what a check run says that its run would change, host by host, and whether two say the same."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from bazaruto.control.engine import steady

KEPT_CHANGES = 200  # in a run's record; the plan run's events have all
KEPT_CHARACTERS = 24 * 1024  # of their diffs together
SHOWN_ITEM = 100  # characters of an item that a sentence repeats
ANY_RUN = "RUN"  # in digests, where a run is named
ITEM = re.compile(r"=> \(item=(.*)\)(?: => \{)?$")  # of a loop, at the end of what Ansible prints first


class PredictedChange(BaseModel):
    """One thing that would change."""

    host: str
    task: str
    item: str | None = Field(default=None, description="Of a task that loops")
    diff: str | None = Field(default=None, description="How, where the task can tell")

    @property
    def where(self) -> str:
        """For a sentence."""
        item = f" ({self.item[:SHOWN_ITEM]})" if self.item else ""
        return f'task "{self.task}"{item} on {self.host}'


class Plan(BaseModel):
    """What an approval is bound to, besides the run's parameters and limit."""

    digest: str = Field(description="SHA-256 of all predicted changes")
    content_digest: str | None = Field(description="The snapshot of playbooks, roles and inventories")
    planned_at: Annotated[datetime.datetime, AfterValidator(lambda moment: moment.astimezone(datetime.UTC))]
    count: int = Field(description="How many changes are predicted")
    changes: list[PredictedChange] = Field(description="By host, in the order of the tasks")
    cut: bool = Field(description="Whether changes or diffs were left out here; the plan run's events have all")


def predicted(events: Iterable[Mapping[str, Any]], plan_run: str, run: str) -> list[PredictedChange]:
    """The changes that a plan's events tell of, by host; where the plan names itself, its run is meant."""
    found: list[PredictedChange] = []
    diffs: dict[tuple[str, str], list[str]] = {}
    looped: set[tuple[str, str]] = set()
    for event in events:
        host, task = str(event["host"]), _of_the_run(str(event["task"]), plan_run, run)
        place = host, task
        if event["type"] == "runner_on_file_diff":
            diffs.setdefault(place, []).append(_of_the_run(_diff(event), plan_run, run))
            continue
        is_item = str(event["type"]).startswith("runner_item_on_")
        diff = "\n".join(diffs.pop(place, [])) or None
        if is_item or place not in looped or diff:
            item = _of_the_run(_item(event), plan_run, run) if is_item else None
            found.append(PredictedChange(host=host, task=task, item=item, diff=diff))
        if is_item:
            looped.add(place)
        else:
            looped.discard(place)
    return sorted(found, key=lambda change: change.host)


def digest(changes: Sequence[PredictedChange], run: str) -> str:
    """What two plans have in common exactly when they predict the same; whichever run is to do it."""
    told = json.dumps([change.model_dump() for change in changes], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(_of_the_run(told, run, ANY_RUN).encode()).hexdigest()


def summary(
    changes: Sequence[PredictedChange], run: str, content_digest: str | None, planned_at: datetime.datetime
) -> Plan:
    """A plan for the record of its run, which holds the first changes only when there are very many."""
    kept, room = [], KEPT_CHARACTERS
    for change in changes[:KEPT_CHANGES]:
        diff = change.diff[:room] if change.diff else None
        room -= len(diff or "")
        kept.append(change.model_copy(update={"diff": diff or None}))
    return Plan(
        digest=digest(changes, run),
        content_digest=content_digest,
        planned_at=planned_at,
        count=len(changes),
        changes=kept,
        cut=kept != list(changes),
    )


def difference(before: Sequence[PredictedChange], after: Sequence[PredictedChange]) -> str:
    """The first change in which two plans differ, in words; they must differ."""
    for old, new in zip(before, after, strict=False):
        if old == new:
            continue
        if (old.host, old.task, old.item) == (new.host, new.task, new.item):
            return f"{new.where} would change something else"
        if new not in before:
            return f"{new.where} would now change something"
        return f"{old.where} would no longer change anything, or later"
    if len(after) > len(before):
        return f"{after[len(before)].where} would now change something"
    return f"{before[len(after)].where} would no longer change anything"


def _diff(event: Mapping[str, Any]) -> str:
    text = steady.diff(str(event["stdout"]))
    if cut := event.get("cut"):
        text += f"\n[cut: it was {cut.get('stdout', '?')} characters long, SHA-256 {event.get('digest', 'unknown')}]"
    return text


def _item(event: Mapping[str, Any]) -> str:
    first = str(event["stdout"]).partition("\n")[0]
    found = ITEM.search(first)
    return found[1] if found else first


def _of_the_run(text: str, plan_run: str, run: str) -> str:
    """Names that are made of the run's id are another's in a plan; some have no dashes."""
    return text.replace(plan_run, run).replace(plan_run.replace("-", "_"), run.replace("-", "_"))
