"""What every level of tests shares: marks that follow from the fixtures a test asks for."""

from __future__ import annotations

import pytest

SERVERS = {"postgres_cluster", "redis_server"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by need, and keep all tests of the one whole installation in one test process."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & SERVERS:
            item.add_marker(pytest.mark.embedded)
        if "platform" in fixtures:
            item.add_marker(pytest.mark.acceptance)
            item.add_marker(pytest.mark.xdist_group("platform"))
