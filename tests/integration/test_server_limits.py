"""Every limit of the HTTP server has its documented answer, over a real socket."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from .serving import Serving, closed_by_server, json_lines, read_answer, serving, wait_for

HEAD = b"POST /echo HTTP/1.1\r\nHost: test\r\n"


def drip(client: socket.socket, data: bytes, ended: threading.Event) -> None:
    """Send a byte each tenth of a second until the server has enough."""
    for byte in data:
        if ended.wait(0.1):
            return
        try:
            client.sendall(bytes([byte]))
        except OSError:
            return


@pytest.mark.parametrize("first", [b"", HEAD + b"Content-Length: 500\r\n\r\n"], ids=["in the headers", "in the body"])
def test_a_client_that_drips_is_answered_408_at_the_deadline_and_closed(home: Path, first: bytes) -> None:
    with serving(home, read_timeout=1.0) as running, running.connect() as client:
        ended = threading.Event()
        rest = b"GET /hello HTTP/1.1\r\nX-Long: " + b"a" * 300 if not first else b"b" * 400
        started = time.monotonic()
        client.sendall(first or b"G")
        sender = threading.Thread(target=drip, args=(client, rest, ended))
        sender.start()
        answer = read_answer(client)
        seconds = time.monotonic() - started
        ended.set()
        sender.join()
        answer.assert_problem(408)
        assert 0.9 <= seconds < 2.5
        assert closed_by_server(client, 5)
        assert [line["status"] for line in running.access_lines()] == [408]


def test_a_slow_request_within_the_deadline_is_served(home: Path) -> None:
    with serving(home, read_timeout=5.0) as running, running.connect() as client:
        for part in (HEAD, b"Content-Length: 2\r\n", b"\r\n", b"o", b"k"):
            client.sendall(part)
            time.sleep(0.1)
        assert read_answer(client).json == {"bytes": 2}


def test_a_client_that_does_not_read_its_answer_is_closed_at_write_timeout(home: Path) -> None:
    with serving(home, write_timeout=1.0) as running, running.connect(receive_buffer=4096) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
        started = time.monotonic()
        wait_for(lambda: running.server.active_channels)
        wait_for(lambda: not running.server.active_channels, 8)
        assert time.monotonic() - started < 4
        assert running.get("/hello").status == 200


def test_a_client_that_reads_too_slowly_is_closed_although_it_never_stops_reading(home: Path) -> None:
    with serving(home, write_timeout=1.5) as running, running.connect(receive_buffer=4096) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
        started = time.monotonic()
        wait_for(lambda: running.server.active_channels)
        while running.server.active_channels and time.monotonic() - started < 8:
            client.recv(512)
            time.sleep(0.05)
        assert time.monotonic() - started < 5


def test_a_kept_connection_is_closed_after_idle_timeout_and_not_before(home: Path) -> None:
    with serving(home, idle_timeout=1.0) as running, running.connect() as client:
        for _ in range(3):
            client.sendall(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n")
            assert read_answer(client).status == 200
            time.sleep(0.4)
        started = time.monotonic()
        assert closed_by_server(client, 5)
        assert time.monotonic() - started < 2


def test_empty_lines_do_not_keep_a_connection_open(home: Path) -> None:
    with serving(home, idle_timeout=1.0) as running, running.connect() as client:
        ended = threading.Event()
        sender = threading.Thread(target=drip, args=(client, b"\r\n" * 50, ended))
        sender.start()
        assert closed_by_server(client, 4)
        ended.set()
        sender.join()


def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_413(home: Path) -> None:
    with serving(home, max_body_bytes=100_000) as running:
        with running.connect() as client:
            client.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)
            assert read_answer(client).json == {"bytes": 100_000}
        with running.connect() as client:
            client.sendall(HEAD + b"Content-Length: 100001\r\n\r\n")
            assert "100000 bytes" in read_answer(client).assert_problem(413)["detail"]


def test_a_client_that_sends_a_huge_body_at_once_still_reads_its_413(home: Path) -> None:
    with serving(home, max_body_bytes=10_000) as running, running.connect() as client:
        client.sendall(HEAD + b"Content-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        read_answer(client).assert_problem(413)
        assert closed_by_server(client, 5)
        assert [line["status"] for line in running.access_lines()] == [413]


def test_a_chunked_body_over_the_limit_is_413(home: Path) -> None:
    with serving(home, max_body_bytes=10_000) as running, running.connect() as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n")
        client.sendall((b"1000\r\n" + b"x" * 4096 + b"\r\n") * 3)
        read_answer(client).assert_problem(413)


def test_a_too_large_body_is_refused_before_it_is_asked_for(home: Path) -> None:
    with serving(home, max_body_bytes=10_000) as running, running.connect() as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 20000\r\n\r\n")
        read_answer(client).assert_problem(413)


def test_headers_over_the_limit_are_431(home: Path) -> None:
    with serving(home, max_header_bytes=4096) as running, running.connect() as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: test\r\nX-Long: " + b"a" * 5000 + b"\r\n\r\n")
        assert "4096 bytes" in read_answer(client).assert_problem(431)["detail"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /hello HTTP/1.1\nHost: test\r\n\r\n",
        b"get /hello HTTP/1.1\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_a_400_problem_and_in_the_access_log(home: Path, request_bytes: bytes) -> None:
    with serving(home) as running, running.connect() as client:
        client.sendall(request_bytes)
        identity = read_answer(client).assert_problem(400)["request_id"]
        (line,) = running.access_lines()
        assert (line["status"], line["request_id"]) == (400, identity)
        assert running.get("/hello").status == 200


def test_requests_over_the_queue_limit_are_503_with_retry_after(home: Path) -> None:
    with serving(home, threads=2, queue_limit=3) as running:
        blocked = running.block(2)
        queued = [running.connect() for _ in range(3)]
        for client in queued:
            client.sendall(b"GET /hello HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        wait_for(lambda: running.server._lanes.waiting() == 3)
        refused = running.get("/hello")
        refused.assert_problem(503)
        assert refused.headers["retry-after"] == "1"
        running.release.set()
        assert [read_answer(client).status for client in queued + blocked] == [200] * 5
        for client in queued + blocked:
            client.close()


def test_above_the_connection_limit_probes_are_answered_and_everything_else_is_503(home: Path) -> None:
    with serving(home, threads=8, connection_limit=4) as running:
        blocked = running.block(4)
        assert running.get("/livez").status == 200
        assert running.get("/healthz").status == 200
        running.get("/hello").assert_problem(503)
        running.release.set()
        for client in blocked:
            assert read_answer(client).status == 200
            client.close()


def test_at_the_connection_limit_the_longest_idle_connection_makes_room(home: Path) -> None:
    with serving(home, connection_limit=3) as running:
        idle = [running.connect() for _ in range(3)]
        for client in idle:
            client.sendall(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n")
            assert read_answer(client).status == 200
            wait_for(lambda: all(channel.idle for channel in running.server.active_channels.values()))
        assert running.get("/hello").status == 200
        assert closed_by_server(idle[0], 5)
        idle[2].sendall(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_answer(idle[2]).status == 200
        for client in idle:
            client.close()


def test_pipelined_requests_are_answered_in_order(home: Path) -> None:
    with serving(home) as running, running.connect() as client:
        paths = ["/hello", "/livez", "/nothing", "/hello"]
        client.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode() for path in paths))
        data = b""
        while data.count(b"HTTP/1.1 ") < 4 or not data.endswith(b"}"):
            data += client.recv(65536)
        assert [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"404", b"200"]


def test_a_request_sent_in_one_thousand_pieces_is_served(home: Path) -> None:
    with serving(home) as running, running.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HEAD + b"Content-Length: 900\r\n\r\n" + b"y" * 900:
            client.sendall(bytes([byte]))
        assert read_answer(client).json == {"bytes": 900}


def test_servers_own_answers_are_counted_with_one_path_label(home: Path) -> None:
    with serving(home, max_header_bytes=1024) as running:
        with running.connect() as client:
            client.sendall(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n")
            assert read_answer(client).status == 431
        text = running.get("/metrics").body.decode()
        assert 'http_requests_total{method="OTHER",path="unmatched",status="431"} 1.0' in text


def test_every_line_of_the_process_log_is_json(home: Path) -> None:
    with serving(home) as running:
        running.get("/nothing")
        _disturb(running)
    lines = json_lines(running.log_directory / "test.log")
    assert {"level", "timestamp", "message"} <= set.intersection(*(set(line) for line in lines))


def _disturb(running: Serving) -> None:
    """A client that leaves while it is served, which waitress logs by itself."""
    client = running.block(1)[0]
    client.close()
    running.release.set()
