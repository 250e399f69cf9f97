"""What both HTTP faces share: request ids, problems for every error, JSON answers, access log, metrics."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import bottle
import psycopg
from psycopg_pool import PoolTimeout, TooManyRequests
from pydantic import BaseModel
from pydantic_core import to_json

from bazaruto import logs, problems, security_headers
from bazaruto.config import Settings
from bazaruto.database import WritesHeld
from bazaruto.logs import Served
from bazaruto.metrics import UNMATCHED, Metrics
from bazaruto.payloads import decode_cursor, encode_cursor, headers, json_body, page, query
from bazaruto.problems import FieldError, Problem
from bazaruto.request_ids import accepted

__all__ = [
    "App",
    "FieldError",
    "Problem",
    "create_app",
    "decode_cursor",
    "encode_cursor",
    "from_this_machine",
    "headers",
    "json_body",
    "page",
    "query",
    "request_id",
    "set_user",
]

log = logs.get(__name__)
Environ = dict[str, Any]
StartResponse = Callable[..., Any]

_WILDCARD = re.compile(r"<(?:(\w+)[^>]*|:[^>]*)>")
_PROXY_HEADERS = ("HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_REAL_IP", "HTTP_VIA")
_RETRY_SOON = {"Retry-After": "1"}
# SQLSTATEs that say "not now", by their class or whole: 503, because the same request may succeed later.
_NOT_NOW = {
    "08": "The database connection was lost.",
    "57P": "The database is shutting down or starting.",
    "53": "The database has no room for more.",
    "25006": "The database is read-only at the moment.",
    "40": "Another change was made at the same moment.",
    "55P03": "What this needs is locked at the moment.",
    "57014": "The database took too long.",
}


def create_app(name: str, settings: Settings, metrics: Metrics) -> App:
    """An application without routes; `name` is for logs, everything else follows from the settings."""
    return App(name, settings, metrics)


def request_id() -> str:
    """The id of the request this thread answers, or "" outside of one."""
    return logs.request_id.get() or ""


def set_user(identity: str) -> None:
    """Name who is asking, for the access log."""
    bottle.request.environ["bazaruto.user"] = identity


def from_this_machine() -> bool:
    """Whether the request was made on this machine itself, and not through a proxy on it."""
    environ = bottle.request.environ
    try:
        local = ipaddress.ip_address(environ.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False
    return local and not any(header in environ for header in _PROXY_HEADERS)


def _forwarded_for(environ: Environ) -> str:
    """The client as our proxy saw it: the last address, because the ones before are the client's own words."""
    last = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    try:
        address = ipaddress.ip_address(last)
    except ValueError:
        return str(environ["REMOTE_ADDR"])
    return address.compressed.partition("%")[0]  # an IPv6 zone can be any text


class App(bottle.Bottle):
    """A bottle whose every answer has a request id, is counted and logged, and whose errors are problems."""

    def __init__(self, name: str, settings: Settings, metrics: Metrics) -> None:
        super().__init__()
        self.uninstall(bottle.JSONPlugin)
        self.uninstall(bottle.TemplatePlugin)
        self.install(_answers)
        self.name = name
        self.settings = settings
        self.metrics = metrics
        self._trusted_proxy = settings.server.trusted_proxy
        self._templates: dict[str, str] = {}

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        started = time.perf_counter()
        identity = accepted(environ.get("HTTP_X_REQUEST_ID", ""))
        logs.request_id.set(identity)
        if self._trusted_proxy and environ.get("REMOTE_ADDR") == self._trusted_proxy:
            environ["REMOTE_ADDR"] = _forwarded_for(environ)
        status = 500
        for_browsers = security_headers.of(environ["wsgi.url_scheme"])

        def begin(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal status
            status = int(line[:3])
            headers += (("X-Request-Id", identity), *for_browsers)
            if "Cache-Control" not in bottle.response:
                headers.append(security_headers.NO_STORE)
            return start_response(line, headers, exc_info)

        raw_path = environ["PATH_INFO"]
        problem = None if raw_path.isascii() and "\x00" not in raw_path else _path_problem(raw_path)
        answer = self.wsgi(environ, begin) if problem is None else _direct(problem, environ, begin)

        def finished() -> None:
            self._account(environ, raw_path, status, time.perf_counter() - started)
            logs.request_id.set(None)

        if isinstance(answer, list):
            finished()
            return answer
        return _Streamed(answer, identity, finished)

    def default_error_handler(self, error: bottle.HTTPError) -> bytes:
        """Bottle's own answers (404, 405, 413…) and anything unforeseen, as problems."""
        detail = {404: "There is nothing at this path.", 405: "This path does not know the method."}
        problem = Problem(error.status_code, detail=detail.get(error.status_code, ""))
        if error.status_code >= 500:
            problem.detail = "The failure is in the log under this request id."
            log.error("request failed outside of its route", error=repr(error.exception))
        bottle.response.content_type = problems.CONTENT_TYPE
        return problem.body(_instance(bottle.request.environ), request_id())

    def refused(self, served: Served) -> None:
        """Account for a request that the server answered itself, before it became one of ours."""
        self.metrics.observe(served.method, UNMATCHED, served.status, served.seconds)
        logs.access(served)

    def _account(self, environ: Environ, raw_path: str, status: int, seconds: float) -> None:
        route = environ.get("bottle.route")
        template = UNMATCHED if route is None else self._templates.get(route.rule) or self._template(route.rule)
        method = environ["REQUEST_METHOD"]
        self.metrics.observe(method, template, status, seconds)
        logs.access(
            Served(
                method,
                raw_path,
                template,
                status,
                seconds,
                environ.get("REMOTE_ADDR", ""),
                request_id(),
                environ.get("bazaruto.user"),
            )
        )

    def _template(self, rule: str) -> str:
        template = _WILDCARD.sub(lambda match: "{" + (match[1] or "rest") + "}", rule)
        self._templates[rule] = template
        return template


class _Streamed:
    """A streamed answer: accounted for when it ends, with its request id while it lasts."""

    def __init__(self, answer: Iterable[bytes], identity: str, finished: Callable[[], None]) -> None:
        self._answer = answer
        self._identity = identity
        self._finished = finished

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer)

    def close(self) -> None:
        try:
            close = getattr(self._answer, "close", None)
            if close is not None:
                close()
        finally:
            logs.request_id.set(self._identity)
            self._finished()


def _answers(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Bottle plugin: values become JSON, exceptions become problems."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            value = callback(*args, **kwargs)
        except bottle.HTTPResponse as response:
            value = response
        except Exception as error:  # noqa: BLE001 - the outermost place: every failure becomes an answer
            return _problem_response(_as_problem(error))
        if isinstance(value, dict | list | BaseModel):
            bottle.response.content_type = "application/json"
            return to_json(value, inf_nan_mode="null")
        if isinstance(value, bottle.HTTPResponse) and isinstance(value.body, dict | list | BaseModel):
            value.content_type = "application/json"
            value.body = to_json(value.body, inf_nan_mode="null")
        return value

    return answer


def _as_problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    problem = _database_problem(error)
    if problem is not None:
        log.warn("request not served", reason=problem.detail, error=f"{type(error).__name__}: {error}"[:500])
        return problem
    log.exception("request failed", error=type(error).__name__)
    return Problem(500, detail="The failure is in the log under this request id.")


def _database_problem(error: Exception) -> Problem | None:
    """503 for a database that is away, overloaded or held; None for everything else."""
    if isinstance(error, WritesHeld):
        return Problem(503, detail="Changes are held for a moment.", headers={"Retry-After": "5"})
    if isinstance(error, PoolTimeout | TooManyRequests):
        return Problem(503, detail="No database connection became free in time.", headers=_RETRY_SOON)
    if isinstance(error, psycopg.Error):
        for state, detail in _NOT_NOW.items():
            if (error.sqlstate or "").startswith(state):
                return Problem(503, detail=detail, headers=_RETRY_SOON)
        if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
            return Problem(503, detail="The database connection was lost.", headers=_RETRY_SOON)
    return None


def _problem_response(problem: Problem) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(
        problem.body(_instance(bottle.request.environ), request_id()),
        problem.status,
        headers={**problem.headers, "Content-Type": problems.CONTENT_TYPE},
    )


def _path_problem(raw_path: str) -> Problem | None:
    """400 for what no path of ours can hold; bottle would drop broken bytes silently."""
    if "\x00" in raw_path:
        return Problem(400, detail="The path has a NUL character.")
    try:
        raw_path.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return Problem(400, detail="The path is not UTF-8.")
    return None


def _direct(problem: Problem, environ: Environ, begin: StartResponse) -> list[bytes]:
    bottle.response.bind()  # or it would be the one of this thread's last request
    body = problem.body(_instance(environ), request_id())
    headers = [("Content-Type", problems.CONTENT_TYPE), ("Content-Length", str(len(body)))]
    begin(f"{problem.status} {problems.phrase(problem.status)}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _instance(environ: Environ) -> str:
    path: str = environ.get("bottle.raw_path") or environ["PATH_INFO"]
    return logs.encoded(path, "latin-1")
