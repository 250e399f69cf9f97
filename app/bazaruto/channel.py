"""One client's connection: waitress' channel with whole-request, whole-response and idle deadlines."""

from __future__ import annotations

import copy
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error

from bazaruto import problems, security_headers
from bazaruto.logs import Served, encoded
from bazaruto.problems import Problem
from bazaruto.request_ids import new_request_id

if TYPE_CHECKING:
    from bazaruto.server import Server

LINGER_SECONDS = 2.0  # after a refusal: how long what the client still sends is read and thrown away
_serving = threading.local()
EVENTS = "text/event-stream"
HELD_BYTES = 256 * 1024  # of a stream that its client has not read yet; more, and the stream waits
UNKNOWN = "-"  # method and path of what was refused before they could be read


class Refusal(Error):
    """An answer the server gives itself."""

    def __init__(self, code: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.reason = problems.phrase(code)
        self.retry_after = retry_after


class Parser(HTTPRequestParser):
    """A request being received; knows since when."""

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self.started = time.monotonic()

    def received(self, data: bytes) -> int:
        """Take in bytes; a request that is refused already is not asked to go on ("100 Continue")."""
        consumed: int = super().received(data)
        if self.error is not None:
            self.expect_continue = False
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        """Parse, where whatever cannot be parsed is the client's error and never ours."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # a length of 5,000 digits, an address like http://[
            raise ParsingError(str(error)) from error
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("both Content-Length and Transfer-Encoding")


class RefusalTask(ErrorTask):
    """Writes a refusal as a problem and accounts for it, like every other answer."""

    def execute(self) -> None:
        """Write the answer."""
        error, request = self.request.error, self.request
        server: Server = self.channel.server
        identity = new_request_id()
        unread = error.code in (400, 408, 431)  # what was received may be no method and no path
        method = UNKNOWN if unread else getattr(request, "command", UNKNOWN)
        path = UNKNOWN if unread else getattr(request, "path", UNKNOWN)
        problem = Problem(error.code, detail=server.explain(error))
        body = problem.body(encoded(path, "latin-1"), identity)
        self.status = f"{error.code} {problems.phrase(error.code)}"
        self.response_headers += [
            ("Content-Type", problems.CONTENT_TYPE),
            ("X-Request-Id", identity),
            *security_headers.of(server.scheme),
            security_headers.NO_STORE,
        ]
        if getattr(error, "retry_after", None) is not None:
            self.response_headers.append(("Retry-After", str(error.retry_after)))
        self.set_close_on_finish()
        self.channel.linger = True
        self.content_length = len(body)
        seconds = time.monotonic() - getattr(request, "started", time.monotonic())
        server.on_refused(Served(method, path, "unmatched", error.code, seconds, str(self.channel.addr[0]), identity))
        self.write(b"" if method == "HEAD" else body)


class AnswerTask(WSGITask):
    """An application's answer; the last of its connection while the server stops or is over its limit."""

    def build_response_header(self) -> bytes:
        """The header, at the moment it is sent."""
        if any(name.lower() == "content-type" and EVENTS in value for name, value in self.response_headers):
            self.channel.begin_stream()
        if self.channel.excess or self.channel.server.draining:
            self.set_close_on_finish()
        header: bytes = super().build_response_header()
        return header


class Channel(HTTPChannel):
    """The connection. The server's loop calls `enforce` several times a second."""

    parser_class = Parser
    task_class = AnswerTask
    error_task_class = RefusalTask
    request: Any = None  # being received
    adj: Any  # waitress' settings

    def __init__(self, server: Server, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        self.idle_since = time.monotonic()
        self.streams = False  # server-sent events: an answer without end, whose client can resume
        self.written = 0  # bytes of answers so far
        self.output_since: float | None = None  # since when output waits for the client,
        self._output_mark = 0  # namely what was written up to here
        self.linger = False  # close only after the client had time to read the refusal
        self.linger_until: float | None = None
        self.excess = True  # until the server found room, so that it is not closed to make room for itself
        super().__init__(server, sock, addr, adj, map=map)
        self.excess = server.is_full()
        server.loop.update(self._fileno, self)

    def write_soon(self, data: Any) -> int:
        """Queue output; waits while the client has too much to read already."""
        length: int = super().write_soon(data)
        self.written += length
        return length

    def begin_stream(self) -> None:
        """From now on little is held for a client that reads too slowly, and one that vanished without a word is
        noticed by what it does not acknowledge.
        """
        self.streams = True
        self.adj = copy.copy(self.adj)
        self.adj.outbuf_high_watermark = HELD_BYTES
        milliseconds = int(self.server.limits.write_timeout * 1000)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    @property
    def held_up(self) -> bool:
        """Whether it is a stream whose client does not read."""
        return self.streams and self.output_since is not None and bool(self.total_outbufs_len)

    @property
    def idle(self) -> bool:
        """Whether nothing is received, worked on or sent."""
        return not (self.requests or self.request is not None or self.total_outbufs_len or self.lingering)

    @property
    def lingering(self) -> bool:
        """Whether everything was said, and the client's rest is thrown away."""
        return self.linger_until is not None

    def owes_an_answer(self, since: float) -> bool:
        """Whether a request is worked on, being sent back, or was begun before this time."""
        begun = self.request is not None and self.request.started < since
        return bool(self.requests or self.total_outbufs_len or begun)

    def enforce(self, now: float, limits: Any) -> None:
        """End what takes too long. Called in the server's loop."""
        if self.lingering:
            if now >= (self.linger_until or 0.0):
                self.handle_close()
        elif self.total_outbufs_len:
            if self.output_since is None or self.written - self.total_outbufs_len >= self._output_mark:
                self.output_since, self._output_mark = now, self.written
            elif now - self.output_since > limits.write_timeout:
                self.logger.info("response not read within write_timeout; connection closed")
                self.handle_close()
        else:
            self.output_since = None
            if not self.requests:
                self._enforce_on_input(now, limits)

    def _enforce_on_input(self, now: float, limits: Any) -> None:
        request = self.request
        if request is not None:
            if now - max(request.started, self.idle_since) > limits.read_timeout:
                self.refuse(request, Refusal(408, f"The request was not complete within {limits.read_timeout:g} s."))
        elif now - self.idle_since > limits.idle_timeout:
            self.handle_close()

    def refuse(self, request: Any, refusal: Refusal) -> None:
        """Answer an unfinished request, unless another one goes first."""
        with self.requests_lock:
            self.request = None
            if self.requests:
                return
            request.error = refusal
            request.completed = True
            self.requests.append(request)
            self.server.add_task(self)

    def del_channel(self, map: Any = None) -> None:
        """Leave the server's loop."""
        self.server.loop.forget(self._fileno)
        super().del_channel(map)

    def service(self) -> None:
        """Answer one request, in a thread of a lane."""
        _serving.channel = self
        try:
            super().service()
        finally:
            _serving.channel = None
            self.idle_since = time.monotonic()

    @property
    def settled(self) -> bool:
        """Whether the loop, which listens to this channel anyway, has nothing to do for it."""
        return not (self.total_outbufs_len or self.close_when_flushed or self.will_close or self.requests)

    def handle_write(self) -> None:
        """Send what waits; after a refusal, half-close first, or the client may never see it."""
        if self.linger and self.close_when_flushed and not self.will_close:
            self._flush_exception(self._flush_some)
            if not self.total_outbufs_len and not self.will_close:
                self._begin_linger()
                return
        super().handle_write()

    def _begin_linger(self) -> None:
        """From here on only read and throw away. waitress' own methods stay as they are for all others."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()
            return
        self.linger_until = time.monotonic() + LINGER_SECONDS
        self.readable = lambda: True
        self.writable = lambda: False
        self.handle_read = self._throw_away

    def _throw_away(self) -> None:
        try:
            self.recv(65536)  # at the client's end wasyncore closes the connection
        except OSError:
            self.handle_close()


def channel_in_service() -> Channel | None:
    """The connection whose request this thread is answering."""
    return getattr(_serving, "channel", None)
