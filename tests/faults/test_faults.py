"""A part of the fault suite, small enough for every test run; all of it is `make faults`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .catalogue import FAULTS, PARTS
from .rig import Rig, rig
from .suite import attempt

pytestmark = pytest.mark.embedded
PATIENCE = 3.0  # other tests run beside; that an end comes in time is held by `make faults`, which has the machine
CHOSEN = (
    "SIGKILL of ansible-playbook with a family",
    "SIGKILL of all at once",
    "SIGKILL of a supervisor that writes",
    "cancel of async task, daemons, a shell deaf to SIGTERM",
    "cancel of a pg_restore",
    "SIGKILL of the API between acceptance and answer",
    "disk full until after the end",
)


@pytest.fixture(scope="module")
def broken() -> Iterator[Rig]:
    """One control plane for all of them: each must leave it as it was."""
    with rig(PATIENCE) as built:
        yield built


@pytest.mark.parametrize("name", CHOSEN)
def test_no_record_is_untrue_after(broken: Rig, name: str) -> None:
    row = attempt(broken, FAULTS[name], 2)
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.fine, "\n".join(row.lies)
    assert row.counted == 2


def test_every_part_enters_its_faults() -> None:
    for part in PARTS:
        assert any(each.play.__module__ == part.__name__ for each in FAULTS.values())
