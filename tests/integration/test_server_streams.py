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

PART = b"data: " + b"x" * 32 * 1024 + b"\n\n"


class Streams:
    """/stream says a number each tenth of a second, until its client leaves or it shall end; /flood says all it can."""

    def __init__(self) -> None:
        self.running = threading.Semaphore(0)
        self.ended: list[str] = []
        self.health: Health | None = None
        self.flooded = 0  # bytes given in /flood

    def add_routes(self, app: web.App) -> None:
        """Add /stream."""

        @app.get("/stream")
        def stream() -> Iterator[bytes]:
            bottle.response.content_type = "text/event-stream"
            left = bottle.request.environ["waitress.client_disconnected"]
            return self._numbers(left)

        @app.get("/flood")
        def flood() -> Iterator[bytes]:
            bottle.response.content_type = "text/event-stream"
            return self._flood(bottle.request.environ["waitress.client_disconnected"])

    def _flood(self, left: Callable[[], bool]) -> Iterator[bytes]:
        self.running.release()
        try:
            while not left():
                self.flooded += len(PART)
                yield PART
        finally:
            self.ended.append(web.request_id())

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


FLOOD = b"GET /flood HTTP/1.1\r\nHost: test\r\n\r\n"


def test_a_stream_whose_client_stops_reading_is_held_back_and_closed_at_write_timeout(home: Path) -> None:
    streams = Streams()
    with serving(home, add_routes=streams.add_routes, write_timeout=1.0) as running:
        with running.connect(receive_buffer=4096) as client:
            started = time.monotonic()
            client.sendall(FLOOD)
            wait_for(lambda: streams.ended)
            assert 0.9 < time.monotonic() - started < 4
            kernel = 8 * 1024 * 1024  # what socket buffers may hold
            assert streams.flooded < kernel
        wait_for(lambda: [line["path"] for line in running.access_lines()] == ["/flood"])


def test_a_stream_whose_output_always_waits_lasts_while_its_client_reads_on(home: Path) -> None:
    streams = Streams()
    with serving(home, add_routes=streams.add_routes, write_timeout=0.6) as running:
        with running.connect(receive_buffer=64 * 1024) as client:
            client.sendall(FLOOD)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert client.recv(64 * 1024)
                time.sleep(0.002)  # slower than the stream, which is held back
            assert not streams.ended
        wait_for(lambda: streams.ended)


def test_a_stop_does_not_wait_for_a_stream_whose_client_does_not_read(home: Path) -> None:
    streams = Streams()
    with serving(home, add_routes=streams.add_routes, drain_timeout=10.0) as running, running.connect() as client:
        client.sendall(FLOOD)
        assert streams.running.acquire(timeout=5)
        running.server.stop()
        running.thread.join(5)
        assert running.outcome == [0]
        wait_for(lambda: streams.ended)
