"""What every level of tests shares: marks that follow from fixtures, and which tests one process takes together."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

SERVERS = {"postgres_cluster", "redis_server"}
# Tests that share something of the machine, or are costly to set up: run one after another, by one process of xdist.
# xdist's own groups are marks in a test's id, which this pytest has no room for: they would be ignored in silence.
TOGETHER = {
    r"tests/acceptance/(?!test_environment)": "the whole installation",
    r"tests/hosts/": "the booted host",
    r"tests/integration/control/test_control_secrets": "what Ansible leaves in the user's home",
    r"tests/(faults/|integration/control/test_control_recovery)": "a control plane that is broken on purpose",
}

# A shell without job control makes what it starts in the background deaf to SIGINT, and tests' programs inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Together(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Gives each test to the next free process, but for those that belong together."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for pattern, name in TOGETHER.items() if re.match(pattern, nodeid)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """The scheduler, whatever --dist says."""
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by need."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & SERVERS:
            item.add_marker(pytest.mark.embedded)
        if "platform" in fixtures:
            item.add_marker(pytest.mark.acceptance)
