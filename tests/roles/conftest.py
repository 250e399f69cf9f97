"""Single roles on the hosts of the lab that BAZARUTO_LAB names, as molecule/ROLE has built them there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.constants import DEFAULT_VAULT_IDENTITY
from ansible.parsing.vault import VaultLib, VaultSecret

from tests.lab.host import Host
from tests.lab.lab import REPOSITORY, Lab, directory_of
from tests.site.plays import Played, play

BUILT = "BAZARUTO_ROLE_IS_BUILT"  # said by molecule/ROLE: nobody else's lab is broken here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file only where its role was built for it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            role = item.path.stem.removeprefix("test_")
            item.add_marker(pytest.mark.hosts)
            item.add_marker(pytest.mark.timeout(900))
            if os.environ.get(BUILT) != role:
                item.add_marker(pytest.mark.skip(reason=f"needs its role on a host: `molecule test -s {role}`"))


@pytest.fixture(scope="session")
def network() -> dict[str, Any]:
    """The addresses of the lab."""
    network: dict[str, Any] = json.loads((directory_of() / "lab.json").read_text(encoding="utf-8"))
    return network


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The scenario's own."""
    return Lab(directory_of())


@pytest.fixture(scope="session")
def host(lab: Lab) -> Callable[[str], Host]:
    """A host by its name."""
    return lab.host


@pytest.fixture(scope="session")
def passwords() -> dict[str, str]:
    """The secrets of this lab's site."""
    directory = directory_of()
    password = (directory / "vault-password").read_bytes().strip()
    vault = VaultLib([(DEFAULT_VAULT_IDENTITY, VaultSecret(password))])
    values: dict[str, str] = yaml.safe_load(vault.decrypt((directory / "secrets.yml").read_bytes()))
    return values


def converge(role: str, *arguments: str) -> Played:
    """Play the scenario's converge.yml once more, with these arguments."""
    return play(*arguments, playbook=REPOSITORY / "molecule" / role / "converge.yml")


def check_tells_the_truth(role: str, host: Host, drifts: list[str]) -> frozenset[str]:
    """Drift, ask what a run would change, let it: the same, and nothing after that. Which tasks changed something."""
    for drift in drifts:
        host.run(drift)
    predicted = converge(role, "--check", "--diff")
    assert predicted.rc == 0, predicted
    done = converge(role)
    assert done.rc == 0, done
    assert predicted.changed == done.changed, (sorted(predicted.changed), sorted(done.changed))
    again = converge(role)
    assert (again.rc, again.changed) == (0, frozenset()), again
    return frozenset(task.partition(" : ")[2].rpartition(" (")[0] for _, task, _ in done.changed)


def files_with(host: Host, secret: str) -> str:
    """Where on a host a secret can be read; looked for so that what sudo logs of the search is not found."""
    return host.run(f"grep -rl -e '[{secret[0]}]{secret[1:]}' /etc /var/log /tmp /root /home || true").stdout
