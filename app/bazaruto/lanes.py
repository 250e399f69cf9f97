"""Threads that answer requests; probes have some of their own, and what waits for nothing has others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection

from bazaruto import logs
from bazaruto.channel import Channel

PROBE_THREADS = 4
QUICK_THREADS = 2  # for /livez and refusals, which wait for nothing
LIVE_PATH = "/livez"

log = logs.get(__name__)


class _Lane:
    """Some threads that answer requests in the order in which they came."""

    def __init__(self, name: str, threads: int) -> None:
        self._queue: queue.SimpleQueue[Channel | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, channel: Channel) -> None:
        self._queue.put(channel)

    def waiting(self) -> int:
        return self._queue.qsize()

    def end(self) -> None:
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (channel := self._queue.get()) is not None:
            try:
                channel.service()
            except Exception:
                log.exception("a connection failed outside of its request")


class Lanes:
    """Threads for requests, and some that only probes, and only /livez and refusals, use."""

    def __init__(self, threads: int, probe_paths: Collection[str]) -> None:
        self._probe_paths = frozenset({*probe_paths, LIVE_PATH})
        self._requests = _Lane("request", threads)
        self._probes = _Lane("probe", PROBE_THREADS)
        self._quick = _Lane("quick", QUICK_THREADS)

    def is_probe(self, path: str) -> bool:
        return path in self._probe_paths

    def waiting(self) -> int:
        """Requests that no thread is free for."""
        return self._requests.waiting()

    def add(self, channel: Channel) -> None:
        request = channel.requests[0]
        if request.error is not None or request.path == LIVE_PATH:
            self._quick.add(channel)
        elif request.path in self._probe_paths:
            self._probes.add(channel)
        else:
            self._requests.add(channel)

    def end(self) -> None:
        for lane in (self._requests, self._probes, self._quick):
            lane.end()
