"""HTTPS over real sockets: nobody holds up others, nothing is lost or cut off, certificates are renewed meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bazaruto import tls

from .certificates import Authority, Pair
from .serving import Answer, Serving, closed_by_server, json_lines, read_answer, serving, wait_for
from .test_server_streams import Streams

HELLO = b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"
LAST = b"GET /hello HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
STALLED = 20
LARGE = hashlib.sha256(b"x" * (32 * 1024 * 1024)).digest()  # of what /large answers


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.contextmanager
def encrypted(home: Path, authority: Authority, pair: Pair | None = None, **parts: Any) -> Iterator[Serving]:
    """A server with a certificate."""
    used = pair or authority.issue("server")
    with serving(home, certificate=tls.Certificate(used.certificate, used.key), **parts) as running:
        yield running


def connect(running: Serving, authority: Authority, **options: Any) -> ssl.SSLSocket:
    """A connection whose handshake is over; the server's certificate was verified."""
    return authority.trusted().wrap_socket(
        running.connect(**options), server_hostname="127.0.0.1", suppress_ragged_eofs=False
    )


def ask(running: Serving, authority: Authority, request: bytes = LAST) -> Answer:
    with connect(running, authority) as client:
        client.sendall(request)
        return read_answer(client)


def test_clients_that_never_finish_their_handshake_delay_nobody_and_are_closed(
    home: Path, authority: Authority
) -> None:
    with encrypted(home, authority, read_timeout=1.5) as running:
        hello = _client_hello(authority)
        stalled = [running.connect() for _ in range(STALLED)]
        for number, client in enumerate(stalled):
            client.sendall(hello[: number * len(hello) // STALLED])
        wait_for(lambda: len(running.server.active_channels) == STALLED)
        started = time.monotonic()
        for _ in range(5):
            assert ask(running, authority).json == {"hello": "world"}
        assert time.monotonic() - started < 1
        assert all(closed_by_server(client, 5) for client in stalled)
        assert 1.4 < time.monotonic() - started < 4


def test_what_is_in_one_record_is_read_to_its_end(home: Path, authority: Authority) -> None:
    """epoll does not know of bytes that are decrypted already."""
    with encrypted(home, authority) as running, connect(running, authority) as client:
        head = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 16000\r\n\r\n"
        client.sendall(head + b"b" * 16000)
        assert read_answer(client).json == {"bytes": 16000}
        client.sendall(HELLO * 3)
        assert client.recv(65536).count(b"HTTP/1.1 200") >= 1


def test_requests_sent_ahead_are_all_answered_while_the_server_is_still_sending(
    home: Path, authority: Authority
) -> None:
    """A request's thread sends while the loop receives, on one connection: OpenSSL can do only one of them."""
    with encrypted(home, authority) as running, connect(running, authority) as client:
        answers, data, rest = 1500, b"", HELLO * 1500
        client.setblocking(False)
        while data.count(b'{"hello":"world"}') < answers:
            select.select([client], [client] if rest else [], [], 10)
            with contextlib.suppress(ssl.SSLWantReadError):
                while part := client.recv(65536):
                    data += part
                pytest.fail(f"the connection ended after {data[-500:]!r}")
            with contextlib.suppress(ssl.SSLWantWriteError):
                rest = rest[client.send(rest[:5000]) :] if rest else b""


def test_large_answers_arrive_whole_side_by_side(home: Path, authority: Authority) -> None:
    found: list[bytes] = []

    def download() -> None:
        with connect(running, authority) as client:
            client.sendall(b"GET /large HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            data = bytearray()
            while part := client.recv(65536):
                data += part
            found.append(hashlib.sha256(data.partition(b"\r\n\r\n")[2]).digest())

    with encrypted(home, authority) as running:
        threads = [threading.Thread(target=download) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [LARGE] * 3


def test_an_answer_ends_with_the_word_that_it_is_the_end(home: Path, authority: Authority) -> None:
    """Without that word nobody can tell the end from a cut; the client here takes no other end."""
    with encrypted(home, authority, max_body_bytes=1024) as running:
        with connect(running, authority) as client:
            client.sendall(LAST)
            read_answer(client)
            assert client.recv(1) == b""
        with connect(running, authority) as client:
            client.sendall(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2000\r\n\r\n" + b"b" * 2000)
            read_answer(client).assert_problem(413)
            assert client.recv(1) == b""


def test_a_client_that_drips_is_answered_408(home: Path, authority: Authority) -> None:
    with encrypted(home, authority, read_timeout=1.0) as running, connect(running, authority) as client:
        for byte in b"GET /h":
            client.sendall(bytes([byte]))
            time.sleep(0.05)
        read_answer(client).assert_problem(408)


def test_plain_http_is_told_what_this_port_speaks(home: Path, authority: Authority) -> None:
    with encrypted(home, authority) as running:
        answer = running.get("/hello", "X-Long: " + "a" * 5000 + "\r\n")
        assert "https://" in answer.assert_problem(400)["detail"]
        assert ask(running, authority).status == 200


@pytest.mark.parametrize("end", ["says so", "half-closes", "resets"])
def test_a_client_that_leaves_frees_its_thread(home: Path, authority: Authority, end: str) -> None:
    streams = Streams()
    with encrypted(home, authority, add_routes=streams.add_routes) as running:
        streams.health = running.health
        client = connect(running, authority)
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
        assert streams.running.acquire(timeout=5)
        assert b"200 OK" in client.recv(65536)
        if end == "says so":
            _say_end(client)
        elif end == "half-closes":
            socket.socket.shutdown(client, socket.SHUT_WR)
        else:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        wait_for(lambda: streams.ended, 5)
        wait_for(lambda: not running.server.active_channels, 5)
        client.close()


def test_a_stream_outlives_every_timeout_and_ends_at_a_stop(home: Path, authority: Authority) -> None:
    streams = Streams()
    limits: dict[str, Any] = {"read_timeout": 0.5, "write_timeout": 0.5, "idle_timeout": 0.5, "drain_timeout": 10.0}
    with encrypted(home, authority, add_routes=streams.add_routes, **limits) as running:
        streams.health = running.health
        with connect(running, authority) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
            data = b""
            while b"data: 12\n" not in data:
                data += client.recv(65536)
            running.server.stop()
            while part := client.recv(65536):
                data += part
        running.thread.join(5)
        assert running.outcome == [0]


def test_a_stream_whose_client_stops_reading_is_closed_at_write_timeout(home: Path, authority: Authority) -> None:
    streams = Streams()
    with (
        encrypted(home, authority, add_routes=streams.add_routes, write_timeout=1.0) as running,
        connect(running, authority, receive_buffer=4096) as client,
    ):
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for(lambda: streams.ended)


def test_a_stop_answers_what_was_begun(home: Path, authority: Authority) -> None:
    with encrypted(home, authority) as running, connect(running, authority) as client, connect(running, authority):
        client.sendall(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")
        assert running.blocked.acquire(timeout=5)
        running.server.stop()
        wait_for(lambda: running.server._refusing_since is not None)
        running.release.set()
        assert read_answer(client).json == {"released": True}
        running.thread.join(5)
        assert running.outcome == [0]


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(home: Path, authority: Authority) -> None:
    pair = authority.issue("renewed")
    with encrypted(home, authority, pair) as running, connect(running, authority) as kept:
        first = _serial(running, authority)
        pair.write(authority.issue("next"))
        wait_for(lambda: _serial(running, authority) != first)
        second = _serial(running, authority)
        pair.key.write_bytes(authority.issue("foreign").key.read_bytes())
        log = running.log_directory / "test.log"
        wait_for(lambda: any("not the key" in line.get("error", "") for line in json_lines(log)))
        assert _serial(running, authority) == second
        pair.key.unlink()
        pair.write(authority.issue("last"))
        wait_for(lambda: _serial(running, authority) != second)
        kept.sendall(HELLO)
        assert read_answer(kept).json == {"hello": "world"}


def test_files_that_cannot_serve_are_refused_with_a_sentence(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.issue("good"), authority.issue("other")
    open_key, text = authority.issue("open"), tmp_path / "text"
    open_key.key.chmod(0o644)
    text.touch(0o600)
    text.write_text("no certificate")
    old, early = authority.issue("old", days=(-9, -1)), authority.issue("early", days=(1, 9))
    closed = authority.issue("closed", password="long enough")
    for certificate, key, sentence in (
        (good.certificate, other.key, "is not the key of the certificate"),
        (good.certificate, open_key.key, "can be read by others: `chmod 0600"),
        (good.certificate, tmp_path / "none", "cannot be read (No such file"),
        (good.certificate, tmp_path, "is no file"),
        (good.certificate, text, "is no private key"),
        (good.certificate, closed.key, "has a passphrase"),
        (text, good.key, "is no certificate in PEM"),
        (tmp_path / "none", good.key, "cannot be read (No such file"),
        (old.certificate, old.key, "expired at 20"),
        (early.certificate, early.key, "is valid only from 20"),
    ):
        with pytest.raises(tls.TlsError) as refusal:
            tls.Certificate(certificate, key)
        assert sentence in str(refusal.value)
        assert str(refusal.value).count("control_tls_") == 1
    tls.Certificate(good.certificate, good.key)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a key away")
def test_a_key_of_somebody_else_may_not_be_read_by_its_group(authority: Authority) -> None:
    pair = authority.issue("group")
    pair.key.chmod(0o640)
    with pytest.raises(tls.TlsError):
        tls.Certificate(pair.certificate, pair.key)


@pytest.mark.parametrize("encryption", [False, True], ids=["http", "https"])
def test_every_answer_tells_browsers_to_keep_off(home: Path, authority: Authority, encryption: bool) -> None:
    wanted = {
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
    post = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2000\r\n\r\n" + b"b" * 2000
    requests = {
        200: LAST,
        404: LAST.replace(b"/hello", b"/nowhere"),
        405: LAST.replace(b"GET", b"PUT"),
        413: post,
        431: LAST.replace(b"Host", b"X-Long: " + b"a" * 40_000 + b"\r\nHost"),
        400: LAST.replace(b"/hello", b"/%FF"),
        501: post.replace(b"Content-Length: 2000", b"Transfer-Encoding: br"),
    }
    certificate = authority.issue("headers")
    used = tls.Certificate(certificate.certificate, certificate.key) if encryption else None
    with serving(home, certificate=used, max_body_bytes=1024) as running:
        for status, request in requests.items():
            with connect(running, authority) if encryption else running.connect() as client:
                client.sendall(request)
                answer = read_answer(client)
            assert answer.status == status
            assert {name: answer.headers.get(name) for name in wanted} == wanted, status
            assert ("strict-transport-security" in answer.headers) is encryption


def _client_hello(authority: Authority) -> bytes:
    """The first thing a client says."""
    output = ssl.MemoryBIO()
    client = authority.trusted().wrap_bio(ssl.MemoryBIO(), output, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return output.read()


def _serial(running: Serving, authority: Authority) -> str:
    """Of the certificate that new connections are shown."""
    with connect(running, authority) as client:
        found = client.getpeercert()
        assert found
        return str(found["serialNumber"])


def _say_end(client: ssl.SSLSocket) -> None:
    """Send close_notify, and wait for nothing."""
    client.settimeout(0)
    with pytest.raises((ssl.SSLError, OSError)):
        client.unwrap()
    client.settimeout(10)
