"""The API's client: what the CLI says, over HTTP; every failure is one sentence."""

from __future__ import annotations

import dataclasses
import json
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from bazaruto.config import Settings
from bazaruto.control import login as logins
from bazaruto.control import trust
from bazaruto.control.client_errors import RefusedError, UnreachableError

__all__ = ["Client", "RefusedError", "Step", "UnreachableError", "connect", "here", "trusted"]

PAGE = 1000  # events asked for at once
SOON_SECONDS, LATER_SECONDS = 0.1, 0.5  # between two looks at a run: while something happens, and while nothing does
STREAM_AGAIN_SECONDS = 2.0  # after a stream was refused or broke off; until then there are pages
PATIENCE_SECONDS = 20.0  # how long a control plane that is away is waited for while a run is followed
TERMINAL = frozenset({"succeeded", "failed", "canceled", "timed_out", "interrupted", "rejected"})


@dataclasses.dataclass(frozen=True)
class Step:
    """What is new of a followed run."""

    run: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def ended(self) -> bool:
        return self.run["status"] in TERMINAL

    @property
    def last_seq(self) -> int | None:
        return self.events[-1]["seq"] if self.events else None


class Client:
    """One person's connection to one control plane."""

    def __init__(self, url: str, token: str, timeout: float = 30.0, ca_file: Path = Path()) -> None:
        self.url = url
        self._patience = min(PATIENCE_SECONDS, timeout)
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            timeout=httpx.Timeout(timeout, connect=min(5.0, timeout)),
            verify=trust.context(url, ca_file),
            trust_env=False,  # a proxy for the world is not one for this machine
        )

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._ask("GET", path, params={name: value for name, value in query.items() if value is not None})

    def items(self, path: str, limit: int, **query: Any) -> list[dict[str, Any]]:
        """Up to `limit` items of a list, over as many pages as that takes."""
        found: list[dict[str, Any]] = []
        cursor = None
        while len(found) < limit:
            page = self.get(path, cursor=cursor, limit=min(500, limit - len(found)), **query)
            found += page["items"]
            cursor = page["next"]
            if not cursor:
                break
        return found

    def launch(self, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Launch; may be asked again with the same key until there is an answer: it is one run."""
        return self._launch("/api/v1/runs", request, key)

    def retry(self, run: str, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        """The new run; may be asked again, as `launch`."""
        return self._launch(f"/api/v1/runs/{run}/retry", request, key)

    def post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, json=dict(content))

    def cancel(self, run: str, reason: str | None) -> dict[str, Any]:
        return self._ask("POST", f"/api/v1/runs/{run}/cancel", json={"reason": reason})

    def waive(self, run: str, reason: str) -> dict[str, Any]:
        return self._ask("POST", f"/api/v1/runs/{run}/waive", json={"reason": reason})

    def _launch(self, path: str, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        return self._ask("POST", path, json=dict(request), headers={"Idempotency-Key": key})

    def events(self, run: str, after: int) -> dict[str, Any]:
        return self.get(f"/api/v1/runs/{run}/events", after=after, limit=PAGE)

    def follow(self, run: str, after: int = 0) -> Iterator[Step]:
        """What happens in a run, until it has ended and every event was given.

        What is there already is read in pages, what comes is heard from the stream; where the stream breaks off, or
        there is no room for it, pages go on. A control plane that restarts meanwhile is waited for.
        """
        pause, patient_until, stream_from = SOON_SECONDS, time.monotonic() + PATIENCE_SECONDS, 0.0
        while True:
            try:
                step = self._page(run, after)
            except UnreachableError:
                if time.monotonic() > patient_until:
                    raise
                time.sleep(LATER_SECONDS)
                continue
            patient_until = time.monotonic() + PATIENCE_SECONDS
            yield step
            after = step.last_seq or after
            if step.ended and not step.events:
                return
            pause = SOON_SECONDS if step.events else min(LATER_SECONDS, pause * 1.3)
            if step.ended or len(step.events) == PAGE:
                continue
            if time.monotonic() >= stream_from:
                for heard in self._stream(step.run, after):
                    yield heard
                    after = heard.last_seq or after
                    if heard.ended:
                        return
                stream_from = time.monotonic() + STREAM_AGAIN_SECONDS
                patient_until = time.monotonic() + PATIENCE_SECONDS
            time.sleep(pause)

    def stdout(self, run: str, offset: int = 0) -> Iterator[bytes]:
        """What Ansible has printed in a run until now, from a byte on, in parts; goes on where it was cut off."""
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._http.stream("GET", f"/api/v1/runs/{run}/stdout", params={"offset": offset}) as answer:
                    if _made_to_wait(answer, patient_until):
                        continue
                    self._check(answer)
                    for part in answer.iter_bytes():
                        offset += len(part)
                        yield part
                    return
            except (UnreachableError, httpx.TransportError) as error:
                if time.monotonic() > patient_until:
                    raise error if isinstance(error, UnreachableError) else self._silent(error) from error
                time.sleep(LATER_SECONDS)

    def parts(self, path: str, **query: Any) -> Iterator[bytes]:
        """A long answer as it comes. What breaks off is said, since nobody could see that it is not all."""
        try:
            with self._http.stream("GET", path, params=query) as answer:
                self._check(answer)
                yield from answer.iter_bytes()
        except httpx.TransportError as error:
            raise self._silent(error) from error

    def _page(self, run: str, after: int) -> Step:
        now = self.get(f"/api/v1/runs/{run}")  # before its events: those of an ended run are complete
        return Step(now, self.events(run, after)["events"])

    def _stream(self, run: dict[str, Any], after: int) -> Iterator[Step]:
        """What the run's stream says, as long as it lasts: the run's end comes after its last event."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        try:
            with self._http.stream("GET", f"/api/v1/runs/{run['id']}/events", headers=headers) as answer:
                for messages in _messages(answer.iter_bytes()) if answer.is_success else ():
                    run = next((value for kind, value in reversed(messages) if kind != "event"), run)
                    yield Step(run, [value for kind, value in messages if kind == "event"])
        except httpx.TransportError:
            return  # the pages, asked next, say whether anything is wrong

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        patient_until = time.monotonic() + self._patience
        while True:
            try:
                answer = self._http.request(method, path, **content)
            except httpx.TransportError as error:
                raise self._silent(error) from error
            if not _made_to_wait(answer, patient_until):
                break
        self._check(answer)
        value: dict[str, Any] = answer.json()
        return value

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_error:
            answer.read()
        if answer.is_server_error:
            raise UnreachableError(f"The control plane at {self.url} cannot answer: {_sentence(answer)}")
        if answer.is_error:
            raise RefusedError(_sentence(answer))

    def _silent(self, error: Exception) -> UnreachableError:
        heard = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        why = trust.why_not(self.url, error) or f"The control plane at {self.url} does not answer ({error})."
        return UnreachableError(why, heard=heard)


def connect(settings: Settings, timeout: float = 30.0) -> Client:
    """A client with this user's login; without one, with the admin token of this control node. Raises RefusedError
    for a login that cannot be used, UnreachableError without any token.
    """
    if login := logins.read():
        return trusted(settings, login.url, login.token, timeout)
    return trusted(settings, here(settings), _token(settings.home / "control" / "admin.token"), timeout)


def trusted(settings: Settings, url: str, token: str, timeout: float = 30.0) -> Client:
    """A client that believes whom the settings believe."""
    return Client(url, token, timeout, settings.control_ca_file)


def here(settings: Settings) -> str:
    """Where the settings say the control plane is; if they do not, where `bazaruto up` put it."""
    said = settings.model_fields_set & {"control_host", "control_port", "control_url", "control_tls_certificate"}
    if settings.local_file.is_file():
        recorded = json.loads(settings.local_file.read_text(encoding="utf-8")).get("control", {}).get("url")
        same_port = recorded and urllib.parse.urlsplit(recorded).port == settings.control_port
        if recorded and (not said or (said == {"control_port"} and same_port)):
            return str(recorded)
    return settings.control_address


def _token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UnreachableError(
            f"There is no token to ask with: {path} cannot be read ({error.strerror}). Run `bazaruto login`, on a "
            "control node `bazaruto token admin`, or for a new installation `bazaruto up`."
        ) from error


def _made_to_wait(answer: httpx.Response, patient_until: float) -> bool:
    """Whether it was answered "too many requests" and the time it names is over now: then it can be asked again."""
    if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
        return False
    pause = answer.headers.get("Retry-After", "")
    if not pause.isdecimal() or time.monotonic() + int(pause) > patient_until:
        return False
    time.sleep(int(pause))
    return True


def _messages(parts: Iterable[bytes]) -> Iterator[list[tuple[str, Any]]]:
    """Server-sent events as (event, value), those that arrive together in one list; a heartbeat is an empty one."""
    rest = b""
    for part in parts:
        *blocks, rest = (rest + part).split(b"\n\n")
        if blocks:
            fields = [dict(line.split(b": ", 1) for line in block.split(b"\n")) for block in blocks]
            yield [(each[b"event"].decode(), json.loads(each[b"data"])) for each in fields if b"data" in each]


def _sentence(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        fields = "; ".join(f"{error['field']}: {error['message']}" for error in problem.get("errors", []))
        return f"{problem.get('detail') or problem['title']} {fields}".strip()
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"it answered {answer.status_code} without saying why"
