"""What the business rules decide, and what may be written in their file."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bazaruto.service.assessment import Facts, assess
from bazaruto.service.fields import Product
from bazaruto.service.rules import ActiveRules, BusinessRules, Refusal, RulesError, RulesFile, parse

limits = st.dictionaries(
    st.sampled_from(list(Product)), st.dictionaries(st.sampled_from(["EUR", "USD"]), st.integers(0, 10**6))
)
periods = st.fixed_dictionaries({product: st.integers(0, 3660) for product in Product})
rules = st.builds(BusinessRules, version=st.integers(1, 99), auto_approval_limits=limits, waiting_periods_days=periods)
days = st.dates(dt.date(2020, 1, 1), dt.date(2030, 1, 1))
facts = st.builds(
    Facts,
    product=st.sampled_from(list(Product)),
    amount_minor=st.integers(1, 2 * 10**6),
    currency=st.sampled_from(["EUR", "USD", "JPY"]),
    policy_starts_on=days,
    incident_on=days,
)


@given(facts, rules)
def test_only_what_limit_and_waiting_period_allow_is_approved(claim: Facts, active: BusinessRules) -> None:
    decision = assess(claim, active)
    limit = active.auto_approval_limits.get(claim.product, {}).get(claim.currency)
    waited = (claim.incident_on - claim.policy_starts_on).days >= active.waiting_periods_days[claim.product]
    assert decision.approved == (limit is not None and claim.amount_minor <= limit and waited)
    assert str(active.version) in decision.reason
    assert len(decision.reason) <= 1000


@given(facts)
def test_without_rules_nothing_is_approved(claim: Facts) -> None:
    assert not assess(claim, None).approved


@given(rules)
def test_rules_survive_their_file(active: BusinessRules) -> None:
    assert parse(active.model_dump_json().encode()) == active


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_the_file_holds_it_is_a_named_problem(content: bytes) -> None:
    with pytest.raises(RulesError) as refused:
        parse(content)
    assert all(refused.value.problems)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_json_the_file_holds_it_is_a_named_problem(document: object) -> None:
    with pytest.raises(RulesError):
        parse(json.dumps(document).encode())


def test_the_rules_in_force_are_the_last_right_ones(tmp_path: Path) -> None:
    news: list[ActiveRules | Refusal] = []
    path = tmp_path / "rules.json"
    file = RulesFile(path, news.append, check_seconds=0)
    good = {"version": 1, "auto_approval_limits": {}, "waiting_periods_days": dict.fromkeys(Product, 0)}

    def write(content: str) -> None:
        (tmp_path / "new").write_text(content)
        (tmp_path / "new").replace(path)

    assert file.current() is None
    assert isinstance(news.pop(), Refusal)
    write(json.dumps(good))
    assert (active := file.current()) is not None
    assert active.rules.version == 1
    assert file.refusal() is None
    write("{")
    assert file.current() == active
    assert file.refusal() is not None
    write(json.dumps(good, indent=1))
    assert file.refusal() is None
    write(json.dumps(good | {"auto_approval_limits": {"home": {"EUR": 1}}}))
    assert file.current() is not None
    assert file.current().rules == active.rules  # type: ignore[union-attr] # asserted the line above
    assert "give it another version" in (file.refusal() or pytest.fail("was taken")).error
    write(json.dumps(good | {"auto_approval_limits": {"home": {"EUR": 1}}, "version": 2}))
    assert file.refusal() is None
    assert len(news) == 5


def _good(version: int | str) -> dict[str, object]:
    periods = dict.fromkeys(("motor", "home", "health", "travel", "life"), 0)
    return {"version": version, "auto_approval_limits": {"motor": {"EUR": 5}}, "waiting_periods_days": periods}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ("not JSON",)),
        ("{", ("not JSON",)),
        ("[]", ("document",)),
        ('{"version": 1, "version": 2}', ("named twice",)),
        ('{"version": NaN}', ("NaN",)),
        ("[" * 100_000, ("nested too deeply",)),
        (json.dumps(_good(0)), ("version",)),
        (json.dumps(_good(1) | {"waiting_periods_days": {"motor": 1}}), ("home", "health", "travel", "life")),
        (
            json.dumps(_good(1) | {"auto_approval_limits": {"yacht": {}, "home": {"EURO": 1}}, "extra": 1}),
            ("yacht", "EURO", "extra"),
        ),
        (json.dumps(_good(1) | {"auto_approval_limits": {"home": {"EUR": 1.5}}}), ("home.EUR",)),
    ],
)
def test_each_error_of_a_file_is_named(text: str, named: tuple[str, ...]) -> None:
    with pytest.raises(RulesError) as refused:
        parse(text.encode())
    assert all(name in str(refused.value) for name in named), refused.value
