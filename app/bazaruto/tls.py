"""TLS of an HTTP face: a certificate that may be renewed while it serves, and connections encrypted with it."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import stat
import threading
from pathlib import Path
from typing import Any

from waitress.channel import HTTPChannel

from bazaruto import logs
from bazaruto.channel import Channel, Refusal
from bazaruto.config import SettingsError

RECORD_BYTES = 16 * 1024  # the most that TLS encrypts at once

log = logs.get(__name__)


class TlsError(SettingsError):
    """The certificate or its key cannot be used; the text says which, why, and what to do."""


class Certificate:
    """A certificate and its key, in two files that are read again when they have changed."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._read = self._marks()
        self._context, self.expires_at = _loaded(certificate, key)

    def encrypted(self, connection: socket.socket) -> ssl.SSLSocket:
        """The connection with TLS on it; its handshake happens with its first bytes, and waits for nothing."""
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def review(self) -> None:
        """Take up a renewed certificate, for new connections; what cannot be used is said, and the old one stays.

        To be called several times a second: files that have just changed may not be complete, or not match yet.
        """
        before, self._seen = self._seen, self._marks()
        if self._seen == self._read or self._seen != before:
            return
        self._read = self._seen
        try:
            self._context, self.expires_at = _loaded(*self._files)
        except TlsError as error:
            log.error("a renewed certificate cannot be used, the one before stays in use", error=str(error))  # noqa: TRY400 - one sentence
        else:
            log.info("a renewed certificate is in use", certificate=str(self._files[0]))

    def _marks(self) -> tuple[tuple[int, ...], ...]:
        """What changes when a file does; nothing of one that is not there."""
        marks = []
        for path in self._files:
            with contextlib.suppress(OSError):
                found = path.stat()
                marks.append((found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size))
        return tuple(marks)


class TlsChannel(Channel):
    """A connection with TLS.

    One side of it may be sent in a request's thread while the loop receives the other; OpenSSL allows only one of
    them at a time. What it has decrypted is always taken out whole, because epoll knows only of what is encrypted.
    """

    socket: Any

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        self._turn = threading.Lock()
        self._encrypted = True  # False: somebody speaks plain HTTP
        self._receives_when_writable = False  # OpenSSL has to send something before it can go on
        super().__init__(server, sock, addr, adj, map=map)
        self.sendbuf_len = RECORD_BYTES

    def recv(self, buffer_size: int) -> bytes:
        """What was sent to us; b"" after the end of the connection; _NothingYet while there is only a part."""
        try:
            with self._turn:
                data: bytes = self.socket.recv(buffer_size)
                if self._encrypted and (rest := self.socket.pending()):
                    data += self.socket.recv(rest)
        except ssl.SSLWantReadError:
            raise _NothingYet from None
        except ssl.SSLWantWriteError:
            self._receives_when_writable = True
            raise _NothingYet from None
        except OSError as error:
            if getattr(error, "reason", "") == "HTTP_REQUEST":
                self._refuse_plain_http()
                raise _NothingYet from None
            data = b""
        if not data:
            self.handle_close()
        return data

    def send(self, data: bytes, do_close: bool = True) -> int:  # noqa: ARG002 - waitress' signature
        """Send what can be sent now, and say how much that was; a connection that is lost is closed by the loop."""
        try:
            with self._turn:
                sent: int = super().send(data, do_close=False)
                return sent
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def handle_read_event(self) -> None:
        """Receive what there is."""
        with contextlib.suppress(_NothingYet):
            super().handle_read_event()

    def writable(self) -> bool:
        """Whether the loop shall say when something can be sent."""
        return self._receives_when_writable or bool(HTTPChannel.writable(self))

    def handle_write(self) -> None:
        """Go on with what waited for this."""
        if self._receives_when_writable:
            self._receives_when_writable = False
            self.handle_read_event()
        else:
            super().handle_write()

    def handle_close(self) -> None:
        """Close; where all was said, say that this is the end, since it might otherwise have been cut off."""
        if not self.total_outbufs_len:
            self._say_end()
        super().handle_close()

    def close(self) -> None:
        """The same at the end of the server, which was waited for."""
        self._say_end()
        super().close()

    def _enforce_on_input(self, now: float, limits: Any) -> None:
        if self._encrypted and self.socket.version() is None:  # the handshake is not over
            if now - self.idle_since > limits.read_timeout:
                self.handle_close()
        else:
            super()._enforce_on_input(now, limits)

    def _begin_linger(self) -> None:
        self._say_end()
        self._encrypted = False
        super()._begin_linger()

    def _say_end(self) -> None:
        if self._encrypted and self.socket is not None:
            with self._turn, contextlib.suppress(OSError, ValueError):
                self.socket.unwrap()

    def _refuse_plain_http(self) -> None:
        """Answer in the client's own language, and throw away what else it says."""
        self.socket = socket.socket(fileno=self.socket.detach())
        self.socket.setblocking(False)
        self._encrypted = False
        self.handle_read = self._throw_away
        request = self.parser_class(self.adj)
        request.version = "1.1"
        self.refuse(request, Refusal(400, "This port speaks HTTPS: ask with https:// instead of http://."))


class _NothingYet(Exception):
    """What arrived is not enough to be decrypted."""


def _loaded(certificate: Path, key: Path) -> tuple[ssl.SSLContext, datetime.datetime]:
    """What to serve with, and until when. Raises TlsError, with one sentence on what is wrong with the files."""
    _refuse_open_key(key)
    expires_at = _time_left(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])

    def passphrase() -> str:
        raise TlsError(f"control_tls_key: {key} has a passphrase, which nobody can type: store it without one.")

    try:
        context.load_cert_chain(certificate, key, password=passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(
                f"control_tls_key: {key} is not the key of the certificate in {certificate}: set the pair."
            ) from None
        raise TlsError(f"control_tls_key: {key} is no private key in PEM ({error.reason or error}).") from None
    except OSError as error:
        raise TlsError(f"control_tls_key: {key} cannot be read ({error.strerror}).") from None
    return context, expires_at


def _refuse_open_key(key: Path) -> None:
    """Only its owner may read a key; where that is root, and we are not, a group may."""
    try:
        found = key.stat()
    except OSError as error:
        raise TlsError(f"control_tls_key: {key} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(found.st_mode):
        raise TlsError(f"control_tls_key: {key} is no file.")
    of_a_group = found.st_uid == 0 != os.geteuid()
    if found.st_mode & (0o037 if of_a_group else 0o077):
        mend = "chmod 0640" if of_a_group else "chmod 0600"
        raise TlsError(f"control_tls_key: {key} can be read by others: `{mend} {key}`, and think of a new key.")


def _time_left(certificate: Path) -> datetime.datetime:
    """When it expires, for one that is valid now."""
    from cryptography import x509  # late, because most processes need it never

    try:
        first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except OSError as error:
        raise TlsError(f"control_tls_certificate: {certificate} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise TlsError(f"control_tls_certificate: {certificate} is no certificate in PEM.") from None
    now = datetime.datetime.now(datetime.UTC)
    if now > first.not_valid_after_utc:
        raise TlsError(
            f"control_tls_certificate: {certificate} expired at {_utc(first.not_valid_after_utc)}: renew it."
        )
    if now < first.not_valid_before_utc:
        raise TlsError(
            f"control_tls_certificate: {certificate} is valid only from {_utc(first.not_valid_before_utc)} on: "
            "look at this machine's clock."
        )
    return first.not_valid_after_utc


def _utc(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
