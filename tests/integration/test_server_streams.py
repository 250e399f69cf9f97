"""Streamed answers: each part at once, for as long as they last, and no thread kept by a client that left."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bottle

from bazaruto import web
from bazaruto.health import Health

from .serving import closed_by_server, serving, wait_for


class Streams:
    """A route that says a number each tenth of a second, until its client leaves or it shall end."""

    def __init__(self) -> None:
        self.running = threading.Semaphore(0)
        self.ended: list[str] = []
        self.health: Health | None = None

    def add_routes(self, app: web.App) -> None:
        """Add /stream."""

        @app.get("/stream")
        def stream() -> Iterator[bytes]:
            bottle.response.content_type = "text/event-stream"
            left = bottle.request.environ["waitress.client_disconnected"]
            return self._numbers(left)

    def _numbers(self, left: Callable[[], bool]) -> Iterator[bytes]:
        self.running.release()
        try:
            for number in itertools.count():
                yield f"data: {number}\n\n".encode()
                if left() or (self.health is not None and self.health.draining.wait(0.1)):
                    break
        finally:
            self.ended.append(web.request_id())


REQUEST = b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n"


def test_a_stream_outlives_every_timeout_as_long_as_its_client_reads(home: Path) -> None:
    streams = Streams()
    limits = {"read_timeout": 0.5, "write_timeout": 0.5, "idle_timeout": 0.5}
    with serving(home, add_routes=streams.add_routes, **limits) as running, running.connect() as client:
        streams.health = running.health
        client.sendall(REQUEST)
        data, started = b"", time.monotonic()
        while b"data: 20\n" not in data:
            part = client.recv(65536)
            assert part
            data += part
        assert 1.5 < time.monotonic() - started < 6


def test_a_client_that_leaves_frees_its_thread_at_once_and_is_in_the_access_log(home: Path) -> None:
    streams = Streams()
    with serving(home, add_routes=streams.add_routes) as running:
        streams.health = running.health
        clients = [running.connect() for _ in range(4)]
        for client in clients:
            client.sendall(REQUEST)
            assert streams.running.acquire(timeout=5)
        for client in clients:
            client.close()
        started = time.monotonic()
        assert running.get("/hello").status == 200
        wait_for(lambda: len(streams.ended) == 4)
        assert time.monotonic() - started < 1
        wait_for(lambda: sum(line["path"] == "/stream" for line in running.access_lines()) == 4)


def test_a_stop_ends_streams_through_on_drain(home: Path) -> None:
    streams = Streams()
    with serving(home, add_routes=streams.add_routes, drain_timeout=10.0) as running, running.connect() as client:
        streams.health = running.health
        client.sendall(REQUEST)
        assert streams.running.acquire(timeout=5)
        running.server.stop()
        assert closed_by_server(client, 3)
        running.thread.join(5)
        assert running.outcome == [0]
