"""The inventories agree with each other, with the lab, and with what the site's wiring asks of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.lab import plan, secrets

ROOT = Path(__file__).parents[2]
WIRING = yaml.safe_load((ROOT / "playbooks/group_vars/all/site_preflight.yml").read_text())


def hosts_of(inventory: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "inventories" / inventory / "hosts.yml").read_text())["all"]
    return loaded


def test_lab_and_production_have_the_same_hosts_in_the_same_groups() -> None:
    lab, production = hosts_of("lab"), hosts_of("production")
    assert sorted(lab["hosts"]) == sorted(production["hosts"]) == sorted(plan.HOSTS)
    members = [
        {group: sorted(entry["hosts"]) for group, entry in each["children"].items()} for each in (lab, production)
    ]
    assert members[0] == members[1]
    assert sorted(members[0]) == sorted(WIRING["site_preflight_group_names"])


def test_the_same_secrets_are_made_for_a_lab_asked_for_by_preflight_and_shown_in_the_example() -> None:
    example = yaml.safe_load((ROOT / "inventories/production/group_vars/all/vault.yml.example").read_text())
    asked_for = sorted(WIRING["site_preflight_secret_names"])
    assert sorted(secrets.NAMES) == asked_for
    assert sorted(example["vault_site_secrets"]) == asked_for
    assert set(example["vault_site_secrets"].values()) == {"change-me"}


def test_nothing_is_set_twice_in_the_wiring_and_in_an_inventory() -> None:
    """What lies beside the playbooks beats an inventory's: a value there would be ignored without a word."""
    for inventory in ("lab", "production"):
        own = _names(ROOT / "inventories" / inventory / "group_vars")
        shared = _names(ROOT / "playbooks" / "group_vars")
        assert sorted(own & shared) == []


def test_every_topic_of_the_lab_has_its_example_in_production() -> None:
    topics = [
        {str(path.relative_to(top)) for path in top.rglob("*.yml")}
        for top in (ROOT / "inventories" / name / "group_vars" for name in ("lab", "production"))
    ]
    assert sorted(topics[0] - topics[1] - {"all/lab.yml"}) == []


def _names(directory: Path) -> set[tuple[str, str]]:
    """Group and variable of everything below a group_vars directory."""
    return {
        (path.parent.name, name)
        for path in directory.rglob("*.yml")
        for name in (yaml.safe_load(path.read_text()) or {})
    }
