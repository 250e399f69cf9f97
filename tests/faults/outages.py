"""PostgreSQL away for a while, and an API that dies between acceptance and answer: nothing accepted is lost."""

from __future__ import annotations

import functools
import secrets
import signal
import subprocess
import threading
import time
from typing import Any

import httpx
import psycopg

from bazaruto import embedded, processes
from tests.integration.conftest import OWNER, frozen

from .kills import must_succeed, release
from .rig import Case, Rig
from .suite import fault

AWAY_SECONDS = 3.0


@fault("PostgreSQL frozen during runs")
def frozen_server(rig: Rig, count: int) -> list[Case]:
    """Runs go on, and so do the supervisors."""
    cases = rig.in_task(count)
    with frozen([rig.cluster.identity, *processes.descendants(rig.cluster.pid)]):
        rig.provably_running(cases)
        release(cases)
        for case in cases:
            rig.plane.until((rig.plane.directory(case.run) / "outcome.json").exists)
    return must_succeed(cases)


@fault("PostgreSQL away during launches", batch=6)
def away_during_launches(rig: Rig, count: int) -> list[Case]:
    """Each launch is refused clearly or accepted durably; sent again with its key it is one run."""
    sent = [Sent(rig) for _ in range(count)]
    threads = [threading.Thread(target=each.send, args=(0.1 * number,)) for number, each in enumerate(sent)]
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    rig.kill_postgresql()
    time.sleep(AWAY_SECONDS)
    for thread in threads:
        thread.join()
    rig.start_postgresql()
    return _sent_again(rig, sent)


@fault("SIGKILL of the API between acceptance and answer", batch=6)
def killed_while_accepting(rig: Rig, count: int) -> list[Case]:
    """Sent again with its key, a launch is one run."""
    sent = [Sent(rig) for _ in range(count)]
    threads = [threading.Thread(target=each.send, args=(0.02 * number,)) for number, each in enumerate(sent)]
    for thread in threads:
        thread.start()
    time.sleep(0.08)
    rig.kill("serve")
    for thread in threads:
        thread.join()
    rig.restart("serve")
    return _sent_again(rig, sent)


class Sent:
    """A launch with a key, and what was answered to it."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.trace = rig.new_trace()
        (self.trace / "go").touch()
        self.key = secrets.token_hex(8)
        self.status: int | None = None  # none: no answer at all
        self.body: dict[str, Any] = {}

    def send(self, after: float = 0.0) -> None:
        time.sleep(after)
        body = {"operation": "trace", "environment": "local", "parameters": {"trace": str(self.trace)}}
        try:
            answer = self._rig.plane.http.post("/api/v1/runs", json=body, headers={"Idempotency-Key": self.key})
        except httpx.TransportError:
            self.status = None
            return
        self.status, self.body = answer.status_code, answer.json()

    def accepted(self) -> bool:
        """Send it once more."""
        self.send()
        return self.status == 202


def _sent_again(rig: Rig, sent: list[Sent]) -> list[Case]:
    """Until each is accepted: then it is the run that was accepted before, and the only one."""
    cases = []
    for each in sent:
        first, accepted = each.status, each.body.get("id") if each.status == 202 else None
        rig.plane.until(each.accepted)
        case = Case(each.body["id"], each.trace)
        case.must_be("succeeded", end=True)
        if first not in (None, 202, 503):
            case.lies.append(f"a launch was answered {first}")
        if accepted not in (None, case.run):
            case.lies.append(f"was accepted as {accepted} before")
        cases.append(case)
    return cases


@fault("PostgreSQL away during cancels", batch=4)
def away_during_cancels(rig: Rig, count: int) -> list[Case]:
    """What is refused changes nothing, and may be asked again."""
    cases = rig.in_task(count)
    rig.kill_postgresql()
    rig.provably_running(cases)
    refused = [rig.cancel(case.run).status_code for case in cases]
    rig.start_postgresql()
    for case, status in zip(cases, refused, strict=True):
        if status != 503:
            case.lies.append(f"a cancel without a database was answered {status}")
        rig.plane.until(functools.partial(_canceled, rig, case))
        case.must_be("canceled", end=False, says="canceled by admin", within=15)
    return cases


def _canceled(rig: Rig, case: Case) -> bool:
    return rig.cancel(case.run).status_code == 202


@fault("PostgreSQL restored from an older state", batch=2)
def restored(rig: Rig, count: int) -> list[Case]:
    """Rows say running and queued, directories say finished: the directories are right, nothing is started again."""
    cases = rig.in_task(count)
    first = rig.launch("trace_change")
    rig.plane.in_task(first.run, "Wait for the file")
    second = rig.launch("trace_change")
    rig.plane.with_status(second.run, "waiting")
    everyone = [*cases, first, second]
    bin_directory = embedded.postgresql_bin()
    url = rig.cluster.cluster.url("postgres", OWNER)
    dump = rig.root / f"{secrets.token_hex(4)}.dump"
    subprocess.run([bin_directory / "pg_dump", "-Fc", f"--file={dump}", url], check=True)
    release(everyone)
    for case in everyone:
        rig.plane.finished(case.run)
    for what in ("serve", "worker"):
        rig.plane.stop(what)
    with psycopg.connect(rig.cluster.url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{OWNER}" WITH (FORCE)'.encode())
        connection.execute(f'CREATE DATABASE "{OWNER}" OWNER "{OWNER}"'.encode())
    subprocess.run([bin_directory / "pg_restore", "--exit-on-error", f"--dbname={url}", dump], check=True)
    rig.restart("serve", "worker")
    return must_succeed(everyone)


@fault("SIGKILL of PostgreSQL again and again", batch=3)
def again_and_again(rig: Rig, count: int) -> list[Case]:
    """While many events are written: each is there once."""
    cases = rig.in_task(count, "chatter", items=400)
    for _ in range(3):
        processes.end(rig.cluster.identity, embedded.STOP_SECONDS, first_signal=signal.SIGKILL)
        rig.start_postgresql()
        time.sleep(0.5)  # time to begin with what was missed
    rig.provably_running(cases)
    for case in cases:
        case.must_be("succeeded", end=True, within=30)
    return cases
