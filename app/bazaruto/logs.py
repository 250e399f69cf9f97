"""The guide's JSON line for every log of every process: levels, request ids, redaction, access log."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import MutableMapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

from pydantic_core import to_json

from bazaruto.config import Settings
from bazaruto.log_files import LineFile
from bazaruto.plain_structlog import structlog
from bazaruto.redaction import redact, redacted

LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50}
LEVEL_CHECK_SECONDS = 1.0  # how often the level file is looked at, at most

_PLAIN = re.compile(r"[A-Za-z0-9/_.~@:+-]*")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

__all__ = [
    "Served",
    "access",
    "authentication_failed",
    "configure",
    "encoded",
    "get",
    "level_file",
    "redacted",
    "request_id",
]


class _State:
    """What `configure` decided for this process."""

    def __init__(self) -> None:
        self.threshold = LEVELS["info"]
        self.configured_level = "info"
        self.process: LineFile = LineFile(None)
        self.access: LineFile = LineFile(None)
        self.level_path: Path | None = None
        self.level_mark: tuple[int, int] | None = None
        self.next_check = 0.0
        self.lock = threading.Lock()


_state = _State()


class Logger(structlog.BoundLoggerBase):
    """`log.info("User created successfully", user_id=…)`; five levels, as in the guide."""

    def debug(self, message: str, /, **fields: Any) -> None:
        """Detailed information for debugging."""
        if _enabled(10):
            self._proxy_to_logger("write", message, level="debug", **fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """General information about the flow."""
        if _enabled(20):
            self._proxy_to_logger("write", message, level="info", **fields)

    def warn(self, message: str, /, **fields: Any) -> None:
        """A potential issue."""
        if _enabled(30):
            self._proxy_to_logger("write", message, level="warn", **fields)

    def error(self, message: str, /, **fields: Any) -> None:
        """A failed operation."""
        if _enabled(40):
            self._proxy_to_logger("write", message, level="error", **fields)

    def exception(self, message: str, /, **fields: Any) -> None:
        """A failed operation, with the traceback of the exception being handled."""
        if _enabled(40):
            self._proxy_to_logger("write", message, level="error", exc_info=sys.exc_info(), **fields)

    def fatal(self, message: str, /, **fields: Any) -> None:
        """What makes the process end."""
        if _enabled(50):
            self._proxy_to_logger("write", message, level="fatal", **fields)


class Served(NamedTuple):
    """What access.log says about one request."""

    method: str
    path: str  # as WSGI has it: the decoded bytes as latin-1
    template: str  # the route's, with {names} for its variables
    status: int
    seconds: float
    client: str  # address
    identity: str  # request id
    user: str | None = None  # who asked, when known


class _Sink:
    """Where structlog hands over finished lines."""

    def write(self, line: bytes) -> None:
        _state.process.write(line)


def get(name: str) -> Logger:
    """A logger; its name is in every line as `logger`."""
    logger: Logger = structlog.wrap_logger(
        _Sink(),
        processors=[_complete, _render],
        wrapper_class=Logger,
        context_class=dict,
    ).bind(logger=name)
    return logger


def configure(settings: Settings, process_name: str, *, echo: bool | None = None) -> None:
    """Write this process' lines to <log_directory>/<process_name>.log, and requests to access.log.

    Python's own logging, warnings and uncaught exceptions become such lines too. `echo` repeats each line on
    stderr; by default when that is a terminal.
    """
    echo = sys.stderr.isatty() if echo is None else echo
    _state.process = LineFile(settings.log_directory / f"{process_name}.log", echo=echo)
    _state.access = LineFile(settings.log_directory / "access.log")
    _state.configured_level = settings.log.level
    _state.level_path = level_file(settings)
    _state.level_mark = None
    _set_level(settings.log.level)
    _state.next_check = 0.0
    bridge = _Bridge()
    logging.root.handlers[:] = [bridge]
    for chatty, level in (("psycopg.pool", "WARNING"), ("waitress.queue", "ERROR"), ("yoyo", "WARNING")):
        logging.getLogger(chatty).setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def level_file(settings: Settings) -> Path:
    """The file whose one word (debug, info, warn, error, fatal) rules over log.level while it exists."""
    return settings.home / "config" / "log-level"


def access(served: Served) -> None:
    """One line of access.log. Written at every level: who looks for status=403 must not miss any."""
    method, path, template, status, seconds, client, identity, user = served
    shown = encoded(path, "latin-1")
    verb = encoded(method, "latin-1")
    who = f'"user_id":"{encoded(user)}",' if user else ""
    milliseconds = f"{seconds * 1000:.1f}"
    _state.access.write(
        f'{{"level":"info","timestamp":"{_timestamp()}","message":"request served method={verb} path={shown}'
        f' status={status} duration={milliseconds}ms client={client}","method":"{verb}","path":"{shown}",'
        f'"route":"{template}","status":{status},"duration_ms":{milliseconds},"client":"{client}",{who}'
        f'"request_id":"{identity}"}}\n'.encode()
    )


def authentication_failed(*, email: str, client: str, reason: str) -> None:
    """The line of access.log that the guide greps for; nothing a client sends can imitate it."""
    who, where, why = encoded(email), encoded(client), encoded(reason)
    _state.access.write(
        f'{{"level":"warn","timestamp":"{_timestamp()}","message":"authentication failed email={who}'
        f' client={where} reason={why}","email":"{who}","client":"{where}","reason":"{why}",'
        f'"request_id":"{request_id.get() or ""}"}}\n'.encode()
    )


def encoded(text: str, encoding: str = "utf-8") -> str:
    """Percent-encoded, so that no space, '=', quote or control character of a client's is left; without secrets."""
    text = text[:1024]
    if _PLAIN.fullmatch(text) and "bz" not in text and "whsec_" not in text:  # nearly always: nothing to hide
        return text
    return quote(redacted(text), safe="/@:+*", encoding=encoding, errors="replace")


def _enabled(level: int) -> bool:
    now = time.monotonic()
    if now >= _state.next_check:
        _look_at_level_file(now)
    return level >= _state.threshold


def _look_at_level_file(now: float) -> None:
    with _state.lock:
        _state.next_check = now + LEVEL_CHECK_SECONDS
        if _state.level_path is None:
            return
        try:
            status = _state.level_path.stat()
            mark: tuple[int, int] | None = (status.st_mtime_ns, status.st_ino)
            wanted = _state.level_path.read_text(encoding="utf-8")[:20].strip().lower()
        except (OSError, UnicodeDecodeError):
            mark, wanted = None, _state.configured_level  # no such file: the setting rules
        if mark == _state.level_mark:
            return
        _state.level_mark = mark
    if wanted in LEVELS:
        _set_level(wanted)
        get(__name__).info("log level set", to=wanted)
    else:
        get(__name__).error("the level file holds none of the five levels; nothing was changed", found=wanted)


def _set_level(level: str) -> None:
    _state.threshold = LEVELS[level]
    logging.root.setLevel(LEVELS[level])


def _timestamp() -> str:
    now = time.time()
    return f"{_second(int(now))}.{int(now % 1 * 1000):03d}Z"


_second_cache: tuple[int, str] = (0, "1970-01-01T00:00:00")


def _second(second: int) -> str:
    global _second_cache  # noqa: PLW0603 - a cache of the last formatted second, for the request path
    cached, text = _second_cache
    if cached != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second_cache = (second, text)
    return text


def _complete(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Order the guide's fields first, add the request's id, and take out secrets."""
    fields: dict[str, Any] = {
        "level": event.pop("level"),
        "timestamp": _timestamp(),
        "message": event.pop("event"),
    }
    exc_info = event.pop("exc_info", None)
    fields.update(event)
    if exc_info and exc_info[0] is not None:
        fields["exception"] = "".join(traceback.format_exception(*exc_info))[-8000:]
    identity = request_id.get()
    if identity is not None:
        fields.setdefault("request_id", identity)
    cleaned: MutableMapping[str, Any] = redact(fields)
    return cleaned


def _render(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    try:
        return to_json(event, inf_nan_mode="null", fallback=repr) + b"\n"
    except ValueError:  # a lone surrogate, which UTF-8 cannot carry
        printable = {key: str(value).encode("utf-8", "backslashreplace").decode() for key, value in event.items()}
        return to_json(printable) + b"\n"


class _Bridge(logging.Handler):
    """Turns records of Python's logging (waitress, procrastinate, psycopg…) into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        level = next((name for name, number in reversed(LEVELS.items()) if record.levelno >= number), "debug")
        if not _enabled(LEVELS[level]):
            return
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        line = _render(
            None,
            "",
            _complete(
                None,
                "",
                {"level": level, "event": message, "logger": record.name, "exc_info": record.exc_info},
            ),
        )
        _state.process.write(line)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("uncaught").critical("ended by an error: %s", error, exc_info=(kind, error, trace))


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is not None:
        logging.getLogger("uncaught").error(
            "a thread ended by an error: %s", error, exc_info=(type(error), error, arguments.exc_traceback)
        )
