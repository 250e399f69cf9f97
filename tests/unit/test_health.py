"""A check that hangs hangs nobody, and is asked by one thread only."""

from __future__ import annotations

import threading
import time

import pytest

from bazaruto.health import Check, Health, SingleFlight, Status, StillRunning


def health_threads() -> int:
    """Threads that run checks."""
    return sum(thread.name == "health-check" for thread in threading.enumerate())


def test_a_hanging_call_is_given_up_at_the_deadline_and_at_once_afterwards() -> None:
    release = threading.Event()
    flight = SingleFlight(lambda: release.wait(30), 0.2)
    before = health_threads()
    started = time.monotonic()
    with pytest.raises(StillRunning):
        flight.get()
    assert 0.15 < time.monotonic() - started < 1
    started = time.monotonic()
    for _ in range(50):
        with pytest.raises(StillRunning):
            flight.get()
    assert time.monotonic() - started < 0.2
    assert health_threads() == before + 1
    release.set()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert flight.get()[0] is True
            break
        except StillRunning:
            assert time.monotonic() < deadline


def test_callers_at_the_same_time_share_one_call() -> None:
    calls: list[int] = []
    begun, release = threading.Event(), threading.Event()

    def call() -> int:
        calls.append(1)
        begun.set()
        release.wait(10)
        return len(calls)

    flight = SingleFlight(call, 5)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(flight.get()[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(5)
    release.set()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(calls) <= 2  # a thread that came after the first call had ended starts the second
    flight.get()
    assert len(calls) >= 2  # answers are not kept


def test_several_hanging_checks_take_one_deadline_together() -> None:
    release = threading.Event()
    checks = [Check(f"check{number}", lambda: {"waited": release.wait(30)}) for number in range(5)]
    started = time.monotonic()
    status, document = Health(checks, 0.3).report()
    assert time.monotonic() - started < 1.2
    assert status == 503
    assert {check["status"] for check in document["checks"].values()} == {"unhealthy"}
    assert "no answer within 0.3 s" in document["checks"]["check0"]["error"]
    release.set()


def failing() -> None:
    """A probe that says why, with a password in it."""
    raise ConnectionError("postgresql://u:hunter2@h/d refused\nsecond line")


@pytest.mark.parametrize(
    ("when_failing", "status", "word"), [(Status.UNHEALTHY, 503, "unhealthy"), (Status.DEGRADED, 200, "degraded")]
)
def test_a_failing_check_decides_as_it_was_declared(when_failing: Status, status: int, word: str) -> None:
    code, document = Health([Check("good", lambda: None), Check("bad", failing, when_failing)]).report()
    assert (code, document["status"]) == (status, word)
    assert document["checks"]["good"]["status"] == "healthy"
    assert document["checks"]["bad"]["status"] == word
    assert "refused" in document["checks"]["bad"]["error"]
    assert "hunter2" not in str(document)
    assert "second line" not in str(document)


def test_details_are_shown_in_the_detailed_report_only() -> None:
    health = Health([Check("database", lambda: None), Check("disk", lambda: {"free_bytes": 5}, detailed_only=True)])
    assert list(health.report()[1]["checks"]) == ["database"]
    assert health.report(detailed=True)[1]["checks"]["disk"]["free_bytes"] == 5


def test_readiness_fails_while_draining_and_without_what_serving_needs() -> None:
    health = Health([Check("database", failing, needed_to_serve=True), Check("redis", failing)])
    assert health.readiness() == (503, {"status": "unready", "failing": ["database"]})
    health = Health([Check("database", lambda: None, needed_to_serve=True), Check("redis", failing)])
    assert health.readiness() == (200, {"status": "ready"})
    health.draining.set()
    assert health.readiness() == (503, {"status": "draining"})
