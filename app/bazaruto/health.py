"""Checks with a deadline, and the documented health response; something frozen never hangs an answer."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, NoReturn, TypeVar

from bazaruto import __version__, logs

DEADLINE_SECONDS = 1.0
T = TypeVar("T")
log = logs.get(__name__)


class StillRunning(Exception):
    """The answer did not come in time; the one call goes on in its thread."""


class NotWell(Exception):
    """What a probe raises for a person to read: why, and what to do; shown as it is."""


class SingleFlight(Generic[T]):
    """Runs one function in one thread of its own; any number of callers wait for the same call.

    A call that hangs keeps its one thread: callers get StillRunning after the deadline, and at once
    while an earlier call is already overdue.
    """

    def __init__(self, call: Callable[[], T], deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._call = call
        self._deadline = deadline_seconds
        self._condition = threading.Condition()
        self._wanted = 0  # calls asked for so far
        self._finished = 0  # calls that ended
        self._started_at: float | None = None  # of the call under way
        self._outcome: Callable[[], tuple[T, float]] = _nothing_yet
        self._thread: threading.Thread | None = None

    def get(self) -> tuple[T, float]:
        """The function's answer and how many seconds it took; raises what it raised, or StillRunning."""
        with self._condition:
            now = time.monotonic()
            if self._started_at is None:
                self._started_at = now
                self._wanted += 1
                self._ensure_thread()
                self._condition.notify_all()
            ticket, give_up = self._wanted, self._started_at + self._deadline
            while self._finished < ticket:
                if not self._condition.wait(give_up - time.monotonic()) and time.monotonic() >= give_up:
                    raise StillRunning
            outcome = self._outcome
        return outcome()

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="health-check", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._started_at is None:
                    self._condition.wait()
            outcome = _outcome_of(self._call)
            with self._condition:
                self._outcome = outcome
                self._finished += 1
                self._started_at = None
                self._condition.notify_all()


def _nothing_yet() -> NoReturn:
    raise StillRunning


def _outcome_of(call: Callable[[], T]) -> Callable[[], tuple[T, float]]:
    """Run the call now; what is returned gives its value, or raises its error, to every caller."""
    begun = time.monotonic()
    try:
        value = call()
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller of get() shall have it
        failure = error

        def fail() -> NoReturn:
            raise failure

        return fail
    seconds = time.monotonic() - begun
    return lambda: (value, seconds)


class Status(enum.StrEnum):
    """What the platform is able to do."""

    HEALTHY = "healthy"  # everything
    DEGRADED = "degraded"  # its work, more slowly or with less protection: still 200
    UNHEALTHY = "unhealthy"  # not its work: 503


@dataclass(frozen=True)
class Check:
    """One thing the process needs. The probe returns details (or None), or raises why it is not well."""

    name: str
    probe: Callable[[], dict[str, Any] | None]
    when_failing: Status = Status.UNHEALTHY
    detailed_only: bool = False  # shown by /healthz/detailed only, and not part of /healthz' status
    needed_to_serve: bool = False  # its failure makes /readyz say 503


@dataclass
class Health:
    """All checks of one process, and whether it is being drained."""

    checks: Sequence[Check]
    deadline_seconds: float = DEADLINE_SECONDS
    draining: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._flights = {check.name: SingleFlight(check.probe, self.deadline_seconds) for check in self.checks}

    def report(self, *, detailed: bool = False) -> tuple[int, dict[str, Any]]:
        """HTTP status and the documented response."""
        wanted = [check for check in self.checks if detailed or not check.detailed_only]
        results = self._run(wanted)
        worst = Status.HEALTHY
        for check in wanted:
            if results[check.name]["status"] != Status.HEALTHY:
                worst = _worse(worst, check.when_failing)
        body = {
            "status": worst,
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "version": __version__,
            "checks": results,
        }
        return (503 if worst is Status.UNHEALTHY else 200), body

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """503 while draining or without what serving needs; 200 else."""
        if self.draining.is_set():
            return 503, {"status": "draining"}
        results = self._run([check for check in self.checks if check.needed_to_serve])
        failing = [name for name, result in results.items() if result["status"] != Status.HEALTHY]
        return (503, {"status": "unready", "failing": failing}) if failing else (200, {"status": "ready"})

    def _run(self, checks: Sequence[Check]) -> dict[str, dict[str, Any]]:
        """Ask all at once, so that together they take one deadline and not one each."""
        results: dict[str, dict[str, Any]] = {}
        threads = [threading.Thread(target=self._ask, args=(check, results), daemon=True) for check in checks[1:]]
        for thread in threads:
            thread.start()
        for check in checks[:1]:
            self._ask(check, results)
        for thread in threads:
            thread.join()
        return {check.name: results[check.name] for check in checks}

    def _ask(self, check: Check, results: dict[str, dict[str, Any]]) -> None:
        begun = time.monotonic()
        try:
            details, seconds = self._flights[check.name].get()
        except StillRunning:
            seconds = time.monotonic() - begun
            error = f"no answer within {self.deadline_seconds:g} s"
        except Exception as caught:  # noqa: BLE001 - whatever a probe raises means: not well
            seconds = time.monotonic() - begun
            kind = "" if isinstance(caught, NotWell) else f"{type(caught).__name__}: "
            error = logs.redacted(f"{kind}{caught}".strip().splitlines()[0])[:300]
        else:
            results[check.name] = {
                "status": Status.HEALTHY,
                "response_time": _milliseconds(seconds),
                **(details or {}),
            }
            return
        results[check.name] = {
            "status": check.when_failing,
            "response_time": _milliseconds(seconds),
            "error": error,
        }


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _worse(one: Status, other: Status) -> Status:
    order = (Status.HEALTHY, Status.DEGRADED, Status.UNHEALTHY)
    return max(one, other, key=order.index)
