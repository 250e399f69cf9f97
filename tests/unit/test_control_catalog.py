"""The catalogue: what is wrong in it is named, and what it lets through is what the role and its entry say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bazaruto.control import catalog

SPECS = {
    "job_word": {"type": "str", "description": "A word.", "required": True},
    "job_count": {"type": "int", "default": 2, "choices": [1, 2, 4], "description": ["How often.", "In all."]},
    "job_key": {"type": "str", "no_log": True, "default": "hidden", "description": "A key."},
    "job_hosts": {"type": "list", "elements": "int", "description": "Numbers."},
    "job_names": {"type": "list", "elements": "str", "choices": ["a", "b1"], "description": "Names."},
    "job_login": {
        "type": "dict",
        "description": "Who.",
        "options": {"user": {"type": "str"}, "more": {"type": "dict", "options": {"password": {"no_log": True}}}},
    },
    "job_raw": {"type": "raw", "description": "Anything."},
}
ENTRY = {
    "summary": "Do the job",
    "playbook": "job.yml",
    "role": "job",
    "effect": "change",
    "launch": "operator",
    "timeout_seconds": 60,
}


def content(directory: Path, **changed: Any) -> Path:
    """A content directory with the one operation `job`."""
    (directory / "playbooks").mkdir()
    (directory / "playbooks" / "job.yml").write_text("---\n")
    meta = directory / "roles" / "job" / "meta"
    meta.mkdir(parents=True)
    (meta / "argument_specs.yml").write_text(yaml.safe_dump({"argument_specs": {"main": {"options": SPECS}}}))
    entry = {**ENTRY, **changed}
    (directory / "playbooks" / "operations.yml").write_text(yaml.safe_dump({"operations": {"job": entry}}))
    return directory


def job(directory: Path, **parameters: Any) -> catalog.Operation:
    return catalog.load(content(directory, parameters=parameters)).operations["job"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"playbook": "other.yml"}, "operations.job: playbook: playbooks/other.yml is not there"),
        ({"playbook": "../job.yml"}, "operations.job.playbook"),
        ({"role": "absent"}, "absent/meta/argument_specs.yml cannot be read"),
        ({"effect": "maybe"}, "operations.job.effect"),
        ({"launch": "anybody"}, "operations.job.launch"),
        ({"timeout_seconds": 0}, "operations.job.timeout_seconds"),
        ({"idle_timeout_seconds": 0}, "operations.job.idle_timeout_seconds"),
        ({"tolerates": ["everything"]}, "operations.job.tolerates.0"),
        ({"surprise": 1}, "operations.job.surprise"),
        ({"parameters": {"x": {"variable": "job_word", "minimum": 1}}}, "minimum and maximum are for numbers"),
        ({"parameters": {"x": {"variable": "job_hosts", "pattern": "[0-9]+"}}}, "a pattern is for texts"),
        ({"parameters": {"x": {"variable": "job_absent"}}}, "has no variable job_absent"),
        ({"parameters": {"x": {"variable": "job_raw"}}}, "type raw"),
        ({"parameters": {"x": {"variable": "job_word", "pattern": "("}}}, "is no regular expression"),
        ({"parameters": {"Not-A-Name": {"variable": "job_word"}}}, "a name is lower-case"),
        ({"parameters": {"x": {"variable": "job_word", "colour": "red"}}}, "operations.job.parameters.x.colour"),
    ],
)
def test_a_broken_entry_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(catalog.CatalogueError) as refused:
        catalog.load(content(tmp_path, **changed))
    assert sentence in str(refused.value)


def test_every_broken_entry_is_named_at_once(tmp_path: Path) -> None:
    content(tmp_path)
    operations = {name: {**ENTRY, "playbook": f"{name}.yml"} for name in ("one", "two")}
    (tmp_path / "playbooks" / "operations.yml").write_text(yaml.safe_dump({"operations": operations}))
    with pytest.raises(catalog.CatalogueError) as refused:
        catalog.load(tmp_path)
    assert "operations.one" in str(refused.value)
    assert "operations.two" in str(refused.value)


@pytest.mark.parametrize("text", ["", "operations:", "operations: []", "- x", "operations: {", "\x00"])
def test_a_catalogue_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    content(tmp_path)
    (tmp_path / "playbooks" / "operations.yml").write_text(text)
    with pytest.raises(catalog.CatalogueError, match=r"operations\.yml"):
        catalog.load(tmp_path)


def test_type_choices_default_and_description_come_from_the_role(tmp_path: Path) -> None:
    schema = job(tmp_path, count={"variable": "job_count"}, word={"variable": "job_word"}).json_schema()
    assert schema["properties"]["count"] == {
        "type": "integer",
        "description": "How often. In all.",
        "enum": [1, 2, 4],
        "default": 2,
    }
    assert schema["required"] == ["word"]


def test_a_secret_is_shown_nowhere(tmp_path: Path) -> None:
    operation = job(tmp_path, key={"variable": "job_key"}, word={"variable": "job_word", "secret": True})
    assert operation.shown({"key": "k", "word": "w"}) == {"key": "***", "word": "***"}
    assert set(operation.secret_variables()) == {"job_key", "job_word"}
    assert "hidden" not in str(operation.json_schema())


def test_what_holds_a_secret_anywhere_in_it_is_one(tmp_path: Path) -> None:
    operation = job(tmp_path, login={"variable": "job_login"})
    assert operation.shown({"login": {"more": {"password": "p"}}}) == {"login": "***"}


def test_an_operation_says_when_it_hangs_and_what_is_no_failure_of_it(tmp_path: Path) -> None:
    loaded = catalog.load(content(tmp_path, idle_timeout_seconds=30, tolerates=["unreachable"])).operations["job"]
    assert (loaded.idle_timeout_seconds, loaded.tolerates) == (30, ("unreachable",))


def test_it_does_not_hang_and_tolerates_nothing_unless_it_says_so(tmp_path: Path) -> None:
    loaded = job(tmp_path)
    assert (loaded.idle_timeout_seconds, loaded.tolerates) == (None, ())


def test_the_rules_of_a_list_are_those_of_its_items(tmp_path: Path) -> None:
    operation = job(tmp_path, names={"variable": "job_names", "pattern": "[a-z]"}, hosts={"variable": "job_hosts"})
    assert operation.json_schema()["properties"]["names"]["items"] == {
        "type": "string",
        "enum": ["a", "b1"],
        "pattern": "^(?:[a-z])$",
    }
    operation.check({"names": ["a", "a"], "hosts": [1, 2]})
    for names, message in ((["a", "c"], "item 2 must be one of a, b1"), (["b1"], "item 1 must match [a-z]")):
        with pytest.raises(catalog.WrongParameters) as wrong:
            operation.check({"names": names})
        assert wrong.value.wrong[0].message == message


def test_only_listed_parameters_become_variables(tmp_path: Path) -> None:
    operation = job(tmp_path, word={"variable": "job_word"})
    assert operation.variables({"word": "w"}) == {"job_word": "w"}
    with pytest.raises(catalog.WrongParameters) as wrong:
        operation.check({"word": "w", "job_count": 3})
    assert [each.name for each in wrong.value.wrong] == ["job_count"]


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ({"variable": "job_word"}, 1, "must be a text"),
        ({"variable": "job_word"}, "a\x00b", "must not contain NUL"),
        ({"variable": "job_word"}, "\ud800", "halves of characters"),
        ({"variable": "job_word", "pattern": "[a-z]+"}, "abc\n", "must match"),
        ({"variable": "job_word", "pattern": "[a-z]+"}, "abc1", "must match"),
        ({"variable": "job_count"}, 3, "must be one of 1, 2, 4"),
        ({"variable": "job_count"}, True, "must be a whole number"),
        ({"variable": "job_count"}, "2", "must be a whole number"),
        ({"variable": "job_count", "minimum": 2}, 1, "must be at least 2"),
        ({"variable": "job_count", "maximum": 2}, 4, "must be at most 2"),
        ({"variable": "job_hosts"}, [1, "2"], "item 2 must be a whole number"),
        ({"variable": "job_hosts"}, "1,2", "must be a list"),
    ],
)
def test_a_wrong_value_is_refused_with_the_rule(
    tmp_path: Path, entry: dict[str, Any], value: object, message: str
) -> None:
    operation = job(tmp_path, x={"required": False, **entry})
    with pytest.raises(catalog.WrongParameters) as wrong:
        operation.check({"x": value})
    assert message in wrong.value.wrong[0].message
    operation.check({})


@pytest.mark.parametrize(
    ("effect", "excludes", "exclusion"),
    [("change", None, "change"), ("destroy", None, "change"), ("read", None, None), ("read", "backup", "backup")],
)
def test_changes_exclude_changes_and_reads_only_what_they_say(
    tmp_path: Path, effect: str, excludes: str | None, exclusion: str | None
) -> None:
    loaded = catalog.load(content(tmp_path, effect=effect, **({"excludes": excludes} if excludes else {})))
    assert loaded.operations["job"].exclusion == exclusion


def test_only_inventories_with_sane_names_are_environments(tmp_path: Path) -> None:
    catalogue = catalog.load(content(tmp_path))
    for name in ("local", "prod-1", ".hidden", "Upper", "a b"):
        (tmp_path / "inventories" / name).mkdir(parents=True)
        (tmp_path / "inventories" / name / "hosts.yml").touch()
    (tmp_path / "inventories" / "empty").mkdir()
    assert catalogue.environments() == ["local", "prod-1"]


def test_an_environment_is_protected_and_an_operation_approved_where_the_catalogue_says_so(tmp_path: Path) -> None:
    directory = content(tmp_path, approval=True)
    environments(directory, production={"protected": True}, local={})
    for name in ("production", "local"):
        (directory / "inventories" / name).mkdir(parents=True)
        (directory / "inventories" / name / "hosts.yml").touch()
    catalogue = catalog.load(directory)
    assert catalogue.protected == {"production"}
    assert catalogue.operations["job"].approval


def test_an_environment_without_an_inventory_is_named(tmp_path: Path) -> None:
    directory = content(tmp_path)
    environments(directory, prodution={"protected": True})
    with pytest.raises(catalog.CatalogueError, match=r"environments\.prodution: there is no inventories/prodution"):
        catalog.load(directory)


def environments(directory: Path, **entries: Any) -> None:
    """Add environments to the catalogue."""
    path = directory / "playbooks" / "operations.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "environments": entries}))
