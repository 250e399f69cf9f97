"""How often something may happen to each of many keys; counted in memory, by a clock that cannot jump."""

from __future__ import annotations

import collections
import threading
import time

KEYS = 10_000  # counted at once; beyond that the one that rested longest is forgotten


class Throttle:
    """At most `number` times in any `seconds`, for each key. May be shared by threads."""

    def __init__(self, number: int, seconds: float) -> None:
        self._number = number
        self._seconds = seconds
        self._moments: collections.OrderedDict[str, collections.deque[float]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: str) -> float:
        """In how many seconds it may happen again; 0.0: now."""
        with self._lock:
            return self._wait(key, time.monotonic())

    def count(self, key: str) -> None:
        """It has happened."""
        with self._lock:
            self._count(key, time.monotonic())

    def take(self, key: str) -> float:
        """Count it and give 0.0 when it may happen now; else in how many seconds it may."""
        with self._lock:
            now = time.monotonic()
            wait = self._wait(key, now)
            if not wait:
                self._count(key, now)
            return wait

    def _wait(self, key: str, now: float) -> float:
        moments = self._moments.get(key)
        if moments is None or len(moments) < self._number:
            return 0.0
        return max(0.0, moments[0] + self._seconds - now)

    def _count(self, key: str, now: float) -> None:
        if key not in self._moments and len(self._moments) >= KEYS:
            self._moments.popitem(last=False)
        self._moments.setdefault(key, collections.deque(maxlen=self._number)).append(now)
        self._moments.move_to_end(key)
