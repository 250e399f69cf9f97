"""waitress made bounded: deadlines, limits, lanes for probes, and a stop that loses no request."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer
from waitress.trigger import trigger

from bazaruto import logs, systemd
from bazaruto.channel import Channel, Refusal, channel_in_service
from bazaruto.config import ServerSettings
from bazaruto.event_loop import EventLoop
from bazaruto.lanes import Lanes
from bazaruto.logs import Served
from bazaruto.tls import Certificate, TlsChannel
from bazaruto.web import App

TICK_SECONDS = 0.25  # how often deadlines are looked at
NEW_CONNECTION_SECONDS = 0.5  # at a stop: how long a connection without a request is left open
RESERVED_CONNECTIONS = 64  # above connection_limit, for probes; everything else there is refused

log = logs.get(__name__)
Application = Callable[..., Any]


class CannotListen(Exception):
    """The address cannot be listened on; the text says which and what to do."""


def serve(  # noqa: PLR0913 - a server has these parts
    app: Application,
    *,
    host: str,
    port: int,
    limits: ServerSettings,
    probe_paths: Collection[str],
    on_drain: Callable[[], None] = lambda: None,
    certificate: Certificate | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then stop gracefully; returns the process' exit status.

    With a certificate it is HTTPS. `on_drain` is called first, and makes readiness fail; streams should end when
    it is called. A second signal ends the process at once.
    """
    server = Server(app, listen(host, port), limits, probe_paths, on_drain, certificate)
    log.info("listening", host=host, port=server.port, scheme=server.scheme)
    with _signals(server):
        systemd.ready()
        return server.run()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, or CannotListen."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise CannotListen(
            f"{host} port {port} cannot be listened on ({error.strerror or error}): "
            "end what uses it, or set another host or port"
        ) from error


class Server(TcpWSGIServer):
    """The listening socket, its connections and the loop; `run` returns when it was stopped."""

    def __init__(  # noqa: PLR0913, PLR0917 - a server has these parts
        self,
        app: Application,
        listener: socket.socket,
        limits: ServerSettings,
        probe_paths: Collection[str],
        on_drain: Callable[[], None] = lambda: None,
        certificate: Certificate | None = None,
    ) -> None:
        _allow_descriptors(limits.connection_limit)
        self.limits = limits
        self.on_refused: Callable[[Served], None] = app.refused if isinstance(app, App) else _unaccounted
        self.draining = False
        self.scheme = "https" if certificate else "http"
        self.channel_class = TlsChannel if certificate else Channel
        self._certificate = certificate
        self._on_drain = on_drain
        self._stop_wanted = False
        self._serve_until: float | None = None  # draining: until then all is served, only readiness fails
        self._refusing_since: float | None = None  # then new requests are refused, those begun may end
        self._next_tick = 0.0
        self._accept_from = 0.0  # after descriptors ran out: no connection is accepted before
        self.loop = EventLoop()
        self._lanes = Lanes(limits.threads, probe_paths)
        address = listener.getsockname()
        super().__init__(
            app,
            map={},
            _sock=listener,
            dispatcher=self._lanes,  # waitress only keeps it
            adj=Adjustments(
                sockets=[listener],
                threads=limits.threads,
                ident="",
                url_scheme=self.scheme,
                connection_limit=limits.connection_limit + RESERVED_CONNECTIONS + 3,
                max_request_body_size=limits.max_body_bytes + 1,
                max_request_header_size=limits.max_header_bytes + 1,
                channel_request_lookahead=1,
                clear_untrusted_proxy_headers=False,
                log_socket_errors=False,
            ),
            bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, address),
        )
        self.port: int = address[1]

    def run(self) -> int:
        """Serve until a stop was asked for and done: 0 when no request was cut off, else 1."""
        status: int | None = None
        connections = self.active_channels
        wakers = [descriptor for descriptor, target in self._map.items() if target is not self]
        self.loop.review(self._map)
        while status is None:
            woken = self.loop.wait(TICK_SECONDS, self._map, wakers)
            now = time.monotonic()
            if now >= self._next_tick or self._stop_wanted:
                self._next_tick = now + TICK_SECONDS
                self._enforce(now)
                status = self._stop_step(now)
                self.loop.review(self._map)
            elif woken:
                self.loop.review(connections)
        self.loop.close()
        self._lanes.end()
        wasyncore.close_all(self._map, ignore_all=True)
        log.info("stopped", clean=status == 0)
        return status

    def stop(self) -> None:
        """Ask for a graceful stop, from any thread or a signal handler; noticed at the next tick."""
        self._stop_wanted = True

    def accept(self) -> Any:
        """Take a new connection; without a free descriptor wait a tick, because the loop would spin."""
        try:
            accepted = super().accept()
            if accepted is None or self._certificate is None:
                return accepted
            return self._certificate.encrypted(accepted[0]), accepted[1]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if not self._accept_from:
                    log.warn("no connection can be accepted: too many open files", limit=_descriptors())
                self._accept_from = time.monotonic() + TICK_SECONDS
            raise

    def readable(self) -> bool:
        """Whether the loop shall accept connections."""
        if self._accept_from and time.monotonic() < self._accept_from:
            return False
        return bool(super().readable())

    def add_task(self, task: Channel) -> None:
        """Hand a connection whose next request is complete to a lane, or refuse that request."""
        request = task.requests[0]
        if request.error is None and not self._lanes.is_probe(request.path):
            request.error = self._refusal(task, request.started)
        self._lanes.add(task)

    def pull_trigger(self) -> None:
        """Wake the loop, unless it has nothing to do for this thread's connection: that saves three
        system calls a request.
        """
        channel = channel_in_service()
        if channel is None or not channel.settled:
            super().pull_trigger()

    def is_full(self) -> bool:
        """Whether a new connection is above the limit, even after an idle one was closed for it."""
        if len(self.active_channels) <= self.limits.connection_limit:
            return False
        idle = [channel for channel in self.active_channels.values() if channel.idle and not channel.excess]
        oldest = min(idle, key=lambda channel: channel.idle_since, default=None)
        if oldest is None:
            return True
        oldest.handle_close()
        return False

    def explain(self, error: Any) -> str:
        """What the client did wrong, with the limit."""
        if isinstance(error, Refusal):
            return str(error.body)
        limits = self.limits
        known = {
            400: "This is not a valid HTTP request.",
            413: f"The body is larger than {limits.max_body_bytes} bytes.",
            431: f"The headers are larger than {limits.max_header_bytes} bytes.",
            500: "The failure is in the log.",
            501: "Only chunked transfer encoding is known.",
        }
        return known.get(error.code, str(error.body))

    def maintenance(self, now: float) -> None:
        """Nothing: waitress' own idle rule is replaced by `Channel.enforce`."""

    def _refusal(self, channel: Channel, started: float) -> Refusal | None:
        if self._refusing_since is not None and started >= self._refusing_since:
            return Refusal(503, "This server is stopping.", retry_after=1)
        if channel.excess:
            return Refusal(503, "Too many connections are open.", retry_after=1)
        if self._lanes.waiting() >= self.limits.queue_limit:
            return Refusal(503, "Too many requests are waiting.", retry_after=1)
        return None

    def _enforce(self, now: float) -> None:
        if self._certificate is not None:
            self._certificate.review()
        for channel in list(self.active_channels.values()):
            channel.enforce(now, self.limits)

    def _stop_step(self, now: float) -> int | None:
        """Readiness fails, then new requests are refused, then what was begun ends: the exit status then."""
        if not self._stop_wanted:
            return None
        if self._serve_until is None:
            log.info("stopping: readiness fails from now on")
            self.draining = True
            self._on_drain()
            self._serve_until = now + self.limits.drain_delay
        if self._refusing_since is None:
            if now < self._serve_until:
                return None
            self._refusing_since = now
        self._close_idle(now)
        busy = sum(channel.owes_an_answer(self._refusing_since) for channel in self.active_channels.values())
        if not busy:
            return 0
        if now >= self._refusing_since + self.limits.drain_timeout:
            log.warn("drain_timeout is over; requests were cut off", requests=busy)
            return 1
        return None

    def _close_idle(self, now: float) -> None:
        """Close kept connections; one just opened has a moment to send its request and hear the refusal.

        So does a stream whose client does not read: it will resume elsewhere.
        """
        for channel in list(self.active_channels.values()):
            since = channel.output_since if channel.held_up else channel.idle_since if channel.idle else None
            if since is not None and now - since > NEW_CONNECTION_SECONDS:
                channel.handle_close()


def _unaccounted(_: Served) -> None:
    """For applications that are not ours."""


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _allow_descriptors(connections: int) -> None:
    """Raise the soft limit of open files, as far as the hard one allows, to what the connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + RESERVED_CONNECTIONS + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            log.warn("fewer open files are allowed than connection_limit needs", allowed=allowed, needed=needed)


@contextmanager
def _signals(server: Server) -> Iterator[None]:
    """SIGTERM and SIGINT stop the server; a second one ends the process. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    alarm = trigger(server._map)
    os.set_blocking(alarm.trigger, False)

    def handle(number: int, _: FrameType | None) -> None:
        if server._stop_wanted:
            os._exit(128 + number)
        server.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    woken = signal.set_wakeup_fd(alarm.trigger, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
