"""A clock of the control plane that jumps over an expiry expires nothing and revives nothing: PostgreSQL's decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults import clocks
from tests.faults.rig import Rig, rig

from .test_control_approvals import LATER, decide, launched, pending, person, tamper, token_of

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def broken() -> Iterator[Rig]:
    with rig(patience=3) as built:
        if reason := clocks.missing(built):
            pytest.skip(reason)
        yield built


@pytest.fixture(scope="module")
def clock(broken: Rig) -> Iterator[clocks.Clock]:
    with clocks.shifted(broken) as shifted:
        yield shifted


def clock_of_the_api(http: httpx.Client) -> str:
    """The time that the process wrote into its answer."""
    return http.get("/livez").headers["Date"]


def test_a_jump_over_an_expiry_expires_neither_token_nor_approval(
    broken: Rig, clock: clocks.Clock, tmp_path: Path
) -> None:
    plane = broken.plane
    ivo, mia = token_of(plane, "ivo", "viewer", expires="2h"), person(plane, "mia")
    run = launched(plane, tmp_path / "file")
    pending(plane, run)
    before = clock_of_the_api(plane.http)
    clock.jump(2 * clocks.DAY)
    assert clock_of_the_api(plane.http)[:11] != before[:11]
    assert httpx.get(f"{plane.url}/api/v1/whoami", headers={"Authorization": f"Bearer {ivo}"}).status_code == 200
    assert plane.finished(plane.launch("say")["id"])["status"] == "succeeded"  # the worker has looked, too
    assert plane.run(run)["status"] == "waiting"
    assert decide(mia, run, "approve").status_code == 202
    assert plane.finished(run)["status"] == "succeeded"
    clock.jump(0)


def test_a_jump_back_before_an_expiry_revives_no_approval(broken: Rig, clock: clocks.Clock, tmp_path: Path) -> None:
    plane = broken.plane
    eva = person(plane, "eva")
    run = launched(plane, tmp_path / "file")
    pending(plane, run)
    tamper(plane, LATER, run)
    assert plane.finished(run)["status"] == "rejected"
    clock.jump(-2 * clocks.DAY)
    refused = decide(eva, run, "approve")
    assert (refused.status_code, plane.run(run)["status"]) == (409, "rejected"), refused.text
    assert not (tmp_path / "file").exists()
    clock.jump(0)
