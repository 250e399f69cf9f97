"""A server of ours in this process, with an application that tests shape, and raw sockets to it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bottle

from bazaruto import config, logs, metrics, probes, server, web
from bazaruto.health import Check, Health
from bazaruto.tls import Certificate


@dataclass
class Serving:
    """A running server and what a test steers it with."""

    server: server.Server
    app: web.App
    health: Health
    log_directory: Path
    thread: threading.Thread
    blocked: threading.Semaphore  # counts requests that arrived in /block
    release: threading.Event  # lets the requests in /block end
    outcome: list[int] = field(default_factory=list)  # what run() returned

    @property
    def port(self) -> int:
        return self.server.port

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """A raw connection that gives up after 20 seconds."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(20)
        client.connect(("127.0.0.1", self.port))
        return client

    def get(self, path: str, headers: str = "") -> Answer:
        """One request on a connection of its own."""
        with self.connect() as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n".encode())
            return read_answer(client)

    def block(self, count: int) -> list[socket.socket]:
        """Occupy that many request threads; returns when they are occupied."""
        clients = []
        for _ in range(count):
            client = self.connect()
            client.sendall(b"GET /block HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            assert self.blocked.acquire(timeout=10)
            clients.append(client)
        return clients

    def access_lines(self) -> list[dict[str, Any]]:
        """access.log so far; every line must be JSON."""
        return json_lines(self.log_directory / "access.log")


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def assert_problem(self, status: int) -> Any:
        """The body of a problem of this status, complete."""
        assert self.status == status
        assert self.headers["content-type"] == "application/problem+json"
        document = self.json
        assert document["status"] == status
        assert document["title"]
        assert {"type", "detail", "instance"} <= document.keys()
        assert document["request_id"] == self.headers["x-request-id"]
        return document


def read_answer(client: socket.socket) -> Answer:
    """Read one answer, by its Content-Length, or to the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = client.recv(65536)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    length = int(headers["content-length"]) if "content-length" in headers else None
    while length is None or len(body) < length:
        chunk = client.recv(65536)
        if not chunk:
            break
        body += chunk
    return Answer(int(lines[0].split()[1]), headers, body)


def closed_by_server(client: socket.socket, within: float) -> bool:
    """Whether the server ends the connection within that many seconds."""
    client.settimeout(within)
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Every line of the file, each of which must be a JSON object; none before the first was written."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    documents = [json.loads(line) for line in lines]
    assert all(isinstance(document, dict) for document in documents)
    return documents


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for an event that nothing announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(
    home: Path,
    *,
    add_routes: Callable[[web.App], None] | None = None,
    checks: tuple[Check, ...] = (),
    certificate: Certificate | None = None,
    **limits: Any,
) -> Iterator[Serving]:
    """A server with these limits and /hello, /block, /echo, /large beside the probes."""
    limits = {"drain_delay": 0.0, "drain_timeout": 5.0, "threads": 4} | limits
    settings = config.load({"BAZARUTO_HOME": str(home)}).model_copy(update={"server": config.ServerSettings(**limits)})
    logs.configure(settings, "test", echo=False)
    app = web.create_app("test", settings, metrics.Metrics())
    health = Health(checks)
    probes.add_probes(app, health)
    blocked, release = threading.Semaphore(0), threading.Event()
    _add_routes(app, blocked, release)
    if add_routes is not None:
        add_routes(app)
    running = server.Server(
        app,
        server.listen("127.0.0.1", 0),
        settings.server,
        probes.PATHS,
        health.draining.set,
        certificate,
    )
    outcome: list[int] = []
    thread = threading.Thread(target=lambda: outcome.append(running.run()))
    thread.start()
    try:
        yield Serving(running, app, health, settings.log_directory, thread, blocked, release, outcome)
    finally:
        release.set()
        running.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()


def _add_routes(app: web.App, blocked: threading.Semaphore, release: threading.Event) -> None:
    @app.get("/hello")
    def hello() -> dict[str, str]:
        return {"hello": "world"}

    @app.get("/block")
    def block() -> dict[str, bool]:
        blocked.release()
        return {"released": release.wait(60)}

    @app.post("/echo")
    def echo() -> dict[str, int]:
        return {"bytes": len(bottle.request.environ["wsgi.input"].read())}

    @app.get("/large")
    def large() -> bytes:
        return b"x" * (32 * 1024 * 1024)
