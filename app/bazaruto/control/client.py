"""The API's client: what the CLI says, over HTTP; every failure is one sentence."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from bazaruto.config import Settings

PAGE = 1000  # events asked for at once
SOON_SECONDS, LATER_SECONDS = 0.1, 0.5  # between two looks at a run: while something happens, and while nothing does
PATIENCE_SECONDS = 20.0  # how long a control plane that is away is waited for while a run is followed
TERMINAL = frozenset({"succeeded", "failed", "canceled", "timed_out", "interrupted", "rejected"})


class UnreachableError(Exception):
    """The control plane does not answer."""


class RefusedError(Exception):
    """The control plane refused; the text says why, and names every wrong field."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What is new of a followed run."""

    run: dict[str, Any]
    events: list[dict[str, Any]]


class Client:
    """One person's connection to one control plane."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            timeout=httpx.Timeout(30.0, connect=5.0),
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

    def launch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask("POST", "/api/v1/runs", json=dict(request))

    def events(self, run: str, after: int) -> dict[str, Any]:
        return self.get(f"/api/v1/runs/{run}/events", after=after, limit=PAGE)

    def follow(self, run: str, after: int = 0) -> Iterator[Step]:
        """What happens in a run, until it has ended and every event was given.

        A control plane that restarts meanwhile is waited for.
        """
        pause, patient_until = SOON_SECONDS, time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                now = self.get(f"/api/v1/runs/{run}")  # before its events: those of an ended run are complete
                new = self.events(run, after)
            except UnreachableError:
                if time.monotonic() > patient_until:
                    raise
                time.sleep(LATER_SECONDS)
                continue
            patient_until = time.monotonic() + PATIENCE_SECONDS
            after = new["next"]
            yield Step(now, new["events"])
            if now["status"] in TERMINAL and not new["events"]:
                return
            pause = SOON_SECONDS if new["events"] else min(LATER_SECONDS, pause * 1.3)
            if len(new["events"]) < PAGE and now["status"] not in TERMINAL:
                time.sleep(pause)

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise UnreachableError(f"The control plane at {self.url} does not answer ({error}).") from error
        if answer.is_server_error:
            raise UnreachableError(f"The control plane at {self.url} cannot answer: {_sentence(answer)}")
        if answer.is_error:
            raise RefusedError(_sentence(answer))
        value: dict[str, Any] = answer.json()
        return value


def connect(settings: Settings) -> Client:
    """A client with this machine's admin token. Raises UnreachableError without one."""
    return Client(_url(settings), _token(settings.home / "control" / "admin.token"))


def _url(settings: Settings) -> str:
    """Where the settings say the control plane is; if they do not, where `bazaruto up` put it."""
    if not settings.model_fields_set & {"control_host", "control_port"} and settings.local_file.is_file():
        recorded = json.loads(settings.local_file.read_text(encoding="utf-8")).get("control", {}).get("url")
        if recorded:
            return str(recorded)
    return f"http://{_host(settings.control_host)}:{settings.control_port}"


def _token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UnreachableError(
            f"There is no token to ask with: {path} cannot be read ({error.strerror}). Run `bazaruto up`."
        ) from error


def _host(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - it listens everywhere: here too
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _sentence(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        fields = "; ".join(f"{error['field']}: {error['message']}" for error in problem.get("errors", []))
        return f"{problem.get('detail') or problem['title']} {fields}".strip()
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"it answered {answer.status_code} without saying why"
