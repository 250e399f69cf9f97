"""Plans: two say the same exactly when the same would change, and the record of a long one stays short."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from bazaruto.control import plans
from bazaruto.control.engine import journal, steady

PLAN, RUN = "20261123-120000-aaaaaa", "20261123-115959-bbbbbb"
NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)


def told(host: str, task: str, diff: str | None = None, items: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """What a check run says of one task that would change something on a host."""
    place = {"host": host, "task": task}
    for item in items or (None,):
        if diff is not None:
            yield {**place, "type": "runner_on_file_diff", "stdout": diff}
        if item:
            printed = f"changed: [{host}] => (item={item})"
            yield {**place, "type": "runner_item_on_ok", "changed": True, "stdout": printed}
    yield {**place, "type": "runner_on_ok", "changed": True, "stdout": f"changed: [{host}]" if not items else ""}


def predicted(*tasks: Iterator[dict[str, Any]], plan: str = PLAN) -> list[plans.PredictedChange]:
    return plans.predicted([event for task in tasks for event in task], plan, RUN)


def digest(*tasks: Iterator[dict[str, Any]], plan: str = PLAN) -> str:
    return plans.digest(predicted(*tasks, plan=plan), RUN)


def test_hosts_may_answer_in_any_order() -> None:
    one = digest(told("a", "Write", "+x"), told("b", "Write", "+x"))
    assert one == digest(told("b", "Write", "+x"), told("a", "Write", "+x"))


@pytest.mark.parametrize(
    "other",
    [
        [told("a", "Write", "+y"), told("a", "Restart")],
        [told("b", "Write", "+x"), told("a", "Restart")],
        [told("a", "Restart"), told("a", "Write", "+x")],
        [told("a", "Write", "+x")],
        [told("a", "Write", "+x"), told("a", "Restart"), told("a", "Reload")],
        [told("a", "Write", "+x", items=("1",)), told("a", "Restart")],
    ],
    ids=["another diff", "another host", "another order", "less", "more", "an item"],
)
def test_what_differs_has_another_digest_and_is_named(other: list[Iterator[dict[str, Any]]]) -> None:
    before, after = predicted(told("a", "Write", "+x"), told("a", "Restart")), predicted(*other)
    assert plans.digest(before, RUN) != plans.digest(after, RUN)
    assert plans.difference(before, after).startswith('task "')


def test_the_difference_names_task_item_and_host() -> None:
    before = predicted(told("a", "Write", "+x", items=("1", "2")))
    after = predicted(told("a", "Write", "+y", items=("1", "2")))
    assert plans.difference(before, after) == 'task "Write" (1) on a would change something else'
    assert plans.difference(before, before[:1]) == 'task "Write" (2) on a would no longer change anything'
    assert plans.difference(before[:1], before) == 'task "Write" (2) on a would now change something'


def test_each_item_of_a_loop_is_a_change_with_its_own_diff() -> None:
    found = predicted(told("a", "Write", "+x", items=("one", "{'name': 'two (2)'}")))
    assert [(each.item, each.diff) for each in found] == [("one", "+x"), ("{'name': 'two (2)'}", "+x")]


def test_names_made_of_the_runs_id_differ_in_no_two_plans() -> None:
    def named(run: str) -> Iterator[dict[str, Any]]:
        return told("a", f"Keep {run}", f"+live_before_{run.replace('-', '_')}")

    again = "20261124-120000-cccccc"
    assert digest(named(PLAN)) == digest(named(again), plan=again)
    assert predicted(named(PLAN))[0].diff == "+live_before_20261123_115959_bbbbbb"


def test_temporary_files_and_the_banner_of_the_task_are_no_difference() -> None:
    one = "--- before: /etc/x\n+++ after: /a home/tmp/ansible-local-12ab/tmp3/x.j2\n@@ -1 +1 @@\n-a\n+b"
    two = "\nTASK [r : Write] *****\n" + one.replace("ansible-local-12ab/tmp3", "ansible-local-99zz/tmp9")
    assert steady.diff(one) == steady.diff(two)
    assert steady.diff(one) != steady.diff(one.replace("+b", "+c"))


def test_a_diff_too_long_for_an_event_still_tells_changes_apart() -> None:
    def cut(end: str) -> Iterator[dict[str, Any]]:
        text = "+line\n" * journal.TEXT_LIMIT + end
        event = {"type": "runner_on_file_diff", "host": "a", "task": "Write", "stdout": text}
        yield journal.cut(event)
        yield {"type": "runner_on_ok", "host": "a", "task": "Write", "changed": True, "stdout": ""}

    assert digest(cut("+b")) == digest(cut("+b"))
    assert digest(cut("+b")) != digest(cut("+c"))


def test_the_record_of_a_plan_is_short_and_says_what_it_left_out() -> None:
    many = predicted(*(told("a", f"Write {number}", "+x" * 500) for number in range(300)))
    plan = plans.summary(many, RUN, "digest", NOW)
    assert (plan.count, len(plan.changes), plan.cut) == (300, plans.KEPT_CHANGES, True)
    assert sum(len(change.diff or "") for change in plan.changes) <= plans.KEPT_CHARACTERS
    assert plan.digest == plans.digest(many, RUN)
    few = plans.summary(many[:2], RUN, "digest", NOW)
    assert (few.cut, few.changes) == (False, many[:2])
