"""How often a login may be tried: counted in Redis for all instances, and in this process in any case."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from redis.client import Pipeline

MAX_KEYS = 20_000  # counters kept in this process; the oldest go first
AWAY_SECONDS = 5.0  # after Redis failed: how long it is not asked again


@dataclass(frozen=True)
class Count:
    """A counter after it was changed."""

    value: int
    seconds_left: float  # until it starts anew


class ProcessCounters:
    """Counters of this process, bounded in number; a restart forgets them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counters: OrderedDict[str, tuple[int, float]] = OrderedDict()  # value, end of the window

    def add(self, key: str, amount: int, window_seconds: float) -> Count:
        """Count `amount` more."""
        now = self._clock()
        with self._lock:
            value, end = self._counters.get(key, (0, 0.0))
            if end <= now:
                value, end = 0, now + window_seconds
            value = max(0, value + amount)
            self._counters[key] = (value, end)
            self._counters.move_to_end(key)
            if len(self._counters) > MAX_KEYS:
                self._counters.popitem(last=False)
        return Count(value, end - now)

    def forget(self, key: str) -> None:
        """Start this counter anew."""
        with self._lock:
            self._counters.pop(key, None)


@dataclass(frozen=True)
class Limit:
    """What is counted under which key, and how much of it is too much."""

    key: str
    attempts: int


class LoginAttempts:
    """Counts an attempt before its password is looked at, so that parallel attempts count as well.

    Redis may be lost, and may evict a counter; this process' own count is the floor that remains.
    """

    def __init__(
        self,
        client: redis.Redis | None,
        per_email: int,
        per_address: int,
        window_seconds: float,
        report: Callable[[Exception], None],
    ) -> None:
        self._client = client
        self._per_email = per_email
        self._per_address = per_address
        self._window = window_seconds
        self._report = report
        self._own = ProcessCounters()
        self._away_until = 0.0

    @property
    def _milliseconds(self) -> int:
        return int(self._window * 1000)

    def begin(self, email: str, address: str) -> float | None:
        """Count one attempt; returns the seconds to wait when it is one too many."""
        limits = self._limits(email, address)

        def count(pipeline: Pipeline) -> None:
            for limit in limits:
                pipeline.set(limit.key, 0, px=self._milliseconds, nx=True)
                pipeline.incrby(limit.key, 1)
                pipeline.pttl(limit.key)

        answers = self._ask(count)
        waits = []
        for number, limit in enumerate(limits):
            counts = [self._own.add(limit.key, 1, self._window)]
            if answers is not None:
                _, value, milliseconds = answers[3 * number : 3 * number + 3]
                counts.append(Count(int(value), max(0.0, int(milliseconds) / 1000)))
            waits += [count.seconds_left for count in counts if count.value > limit.attempts]
        return max(waits) if waits else None

    def succeeded(self, email: str, address: str) -> None:
        """Take back what `begin` counted: only failures are limited, and a success clears its e-mail's."""
        by_email, by_address = self._limits(email, address)
        self._own.forget(by_email.key)
        self._own.add(by_address.key, -1, self._window)

        def take_back(pipeline: Pipeline) -> None:
            pipeline.delete(by_email.key)
            pipeline.set(by_address.key, 0, px=self._milliseconds, nx=True)  # or it would have no end
            pipeline.incrby(by_address.key, -1)

        self._ask(take_back)

    def _limits(self, email: str, address: str) -> tuple[Limit, Limit]:
        return (
            Limit(_key("email", email.lower()), self._per_email),
            Limit(_key("address", address), self._per_address),
        )

    def _ask(self, commands: Callable[[Pipeline], None]) -> list[Any] | None:
        """Redis' answers in one journey; None without Redis, and for a while after it failed: threads wait for it."""
        if self._client is None or time.monotonic() < self._away_until:
            return None
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                commands(pipeline)
                answers: list[Any] = pipeline.execute()
        except redis.RedisError as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            self._report(error)
            return None
        return answers


def _key(kind: str, value: str) -> str:
    """Redis learns no e-mail and no address."""
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return f"bazaruto:login:{kind}:{digest[:32]}"
