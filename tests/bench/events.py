"""How fast events get from supervisors to their readers: stored by the real worker, streamed by the real API."""

from __future__ import annotations

import concurrent.futures
import datetime
import http.client
import itertools
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg

from bazaruto.control import events
from bazaruto.control.engine import journal, rundir

from .figures import Figure

RUNS = 4  # supervisors at once, and subscribers
EVENTS = 50_000  # of each
EVENT_BYTES = 1400
LONG_RUN = 100_000
CALM_EVENTS, CALM_PER_SECOND = 1000, 100  # the moderate rate, at which delays are measured
PAGES = 40
DEADLINE_SECONDS = 180.0
IDS = re.compile(rb"^id: (\d+)\n", re.MULTILINE)
SENT = re.compile(rb'"sent":(\d+)')


@dataclass(frozen=True)
class Place:
    """The control plane that is measured."""

    home: Path
    url: str
    connection: psycopg.Connection[dict[str, Any]]  # commits by itself

    @property
    def headers(self) -> dict[str, str]:
        token = (self.home / "control" / "admin.token").read_text(encoding="utf-8").strip()
        return {"Authorization": f"Bearer {token}"}


def measure(home: Path, url: str, database_url: str) -> list[Figure]:
    """Events a second from N supervisors to N subscribers, the delay of one event, and the first page of a long run."""
    with psycopg.connect(database_url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        return _figures(Place(home, url, connection))


def _figures(place: Place) -> list[Figure]:
    recorded = _recorded(place.home)
    bare = _bare_copy(place, recorded)
    stored, delivered = _flood(place)
    delays = _calm(place)
    p50, p95 = statistics.median(delays) * 1e3, statistics.quantiles(delays, n=20)[-1] * 1e3
    long, short = _first_pages(place, recorded)
    name = f"events of {RUNS} supervisors stored while {RUNS} subscribers read"
    return [
        Figure(f"{name} ÷ bare COPY", stored, bare, "1/s", ">= 20000 1/s"),
        Figure("the same delivered to the subscribers ÷ stored", delivered, stored, "1/s", ""),
        Figure(f"event → subscriber at {CALM_PER_SECOND}/s, p95 ÷ p50", p95, p50, "ms", "p95 < 200 ms"),
        Figure(f"first page of {LONG_RUN} events ÷ of 1000", long, short, "ms", "< 100 ms"),
    ]


def _recorded(home: Path) -> list[dict[str, Any]]:
    """Events of a real run, each as long as an event of a large play; kept in a file for the writers."""
    kept = home / "recorded.json"
    if not kept.exists():
        file = max(home.glob("control/runs/*/events.jsonl"), key=lambda path: path.stat().st_size)
        found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for event in found:
            event["stdout"] = event["stdout"].ljust(EVENT_BYTES - len(json.dumps({**event, "stdout": ""})), "x")
        kept.write_text(json.dumps(found), encoding="utf-8")
    events_of_it: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    return events_of_it


def _lines(recorded: list[dict[str, Any]], number: int) -> Iterator[tuple[int, str]]:
    """So many events, numbered."""
    rest = [json.dumps(event, separators=(",", ":")).partition(",")[2] for event in recorded]
    return ((seq, f'{{"seq":{seq},{rest[seq % len(rest)]}') for seq in range(1, number + 1))


class _Run:
    """A run that a process writes events of, as a supervisor would; the worker of the place follows it."""

    def __init__(self, place: Place, number: int, per_second: int) -> None:
        self.place, self.number, self.id = place, number, _new_id()
        directory = rundir.RunDirectory(place.home / "control" / "runs" / self.id)
        directory.path.mkdir(mode=0o700)
        lock = rundir.try_lock(directory.supervisor_lock)  # its sign of life, before the worker can look for it
        assert lock is not None
        arguments = [str(place.home), self.id, str(number), str(per_second)]
        program = [sys.executable, "-m", __name__, *arguments]
        self.writer = subprocess.Popen(program, stdin=subprocess.PIPE, pass_fds=[lock])
        os.close(lock)
        _insert_run(place, self.id, "running")

    def __enter__(self) -> Self:
        _until(lambda: self.stored() == 1)  # the worker has found it
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.communicate(timeout=DEADLINE_SECONDS)

    def go(self) -> None:
        assert self.writer.stdin is not None
        self.writer.stdin.write(b"go\n")
        self.writer.stdin.flush()

    def stored(self) -> int:
        return _stored(self.place, [self])

    def subscribe(self) -> tuple[float, list[float]]:
        """Read the whole stream: when its last event came, and how old events were; SystemExit when one is missing."""
        seen, delays, last = 0, [], 0.0
        connection = http.client.HTTPConnection(self.place.url.removeprefix("http://"), timeout=DEADLINE_SECONDS)
        connection.request(
            "GET", f"/api/v1/runs/{self.id}/events", headers={"Accept": "text/event-stream", **self.place.headers}
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"a stream was refused: {answer.read()!r}")
        for block in _whole_messages(iter(lambda: answer.read1(256 * 1024), b"")):
            now = time.time_ns()
            numbers = [int(each) for each in IDS.findall(block)]
            if numbers != list(range(seen + 1, seen + 1 + len(numbers))):
                raise SystemExit(f"after event {seen} of {self.id} came {numbers[:3]}")
            if numbers:
                seen, last = numbers[-1], time.perf_counter()
            delays += [(now - int(sent)) / 1e9 for sent in SENT.findall(block)]
        if seen != self.number:
            raise SystemExit(f"the stream of {self.id} ended with event {seen} of {self.number}")
        return last, delays


def _stored(place: Place, runs: Sequence[_Run]) -> int:
    """How many events of these PostgreSQL has."""
    return sum(events.stored(place.connection, _today(), run.id) for run in runs)


def _flood(place: Place) -> tuple[float, float]:
    """Events a second that reached PostgreSQL, and that reached their subscribers, from the first one on."""
    with concurrent.futures.ThreadPoolExecutor(RUNS) as readers:
        runs = [_Run(place, EVENTS, 0) for _ in range(RUNS)]
        try:
            for run in runs:
                run.__enter__()
            subscribers = [readers.submit(run.subscribe) for run in runs]
            started = time.perf_counter()
            for run in runs:
                run.go()
            _until(lambda: _stored(place, runs) == RUNS * EVENTS)
            stored = RUNS * EVENTS / (time.perf_counter() - started)
            delivered = RUNS * EVENTS / (max(each.result(DEADLINE_SECONDS)[0] for each in subscribers) - started)
        finally:
            for run in runs:
                run.__exit__()
    ids = [run.id for run in runs]
    row = place.connection.execute("SELECT count(*) AS number FROM events WHERE run = ANY(%s)", [ids]).fetchone()
    if row is None or row["number"] != RUNS * EVENTS:
        raise SystemExit(f"{RUNS * EVENTS} events were written, and PostgreSQL has {row}")
    return stored, delivered


def _calm(place: Place) -> list[float]:
    """How old each event was when a subscriber had it, of one run with several of them."""
    with _Run(place, CALM_EVENTS, CALM_PER_SECOND) as run, concurrent.futures.ThreadPoolExecutor(RUNS) as readers:
        subscribers = [readers.submit(run.subscribe) for _ in range(RUNS)]
        run.go()
        return list(itertools.chain.from_iterable(each.result(DEADLINE_SECONDS)[1] for each in subscribers))


def _bare_copy(place: Place, recorded: list[dict[str, Any]]) -> float:
    """Events a second when nothing is done but COPY, in batches of the worker's size."""
    day, run = _today(), _insert_run(place, _new_id(), "succeeded")
    lines = _lines(recorded, EVENTS)
    events.resume(place.connection, day, run)
    started = time.perf_counter()
    while batch := list(itertools.islice(lines, 3000)):
        with place.connection.transaction():
            events.store(place.connection, day, run, batch)
    return EVENTS / (time.perf_counter() - started)


def _first_pages(place: Place, recorded: list[dict[str, Any]]) -> tuple[float, float]:
    """Milliseconds to the first page of a long and of a short run, medians, alternated."""
    ids = {number: _insert_run(place, _new_id(), "succeeded") for number in (LONG_RUN, 1000)}
    for number, run in ids.items():
        lines = _lines(recorded, number)
        events.resume(place.connection, _today(), run)
        events.store(place.connection, _today(), run, list(lines))
    taken: dict[int, list[float]] = {number: [] for number in ids}
    with httpx.Client(base_url=place.url, headers=place.headers, trust_env=False) as client:
        for _ in range(PAGES):
            for number, run in ids.items():
                started = time.perf_counter()
                page = client.get(f"/api/v1/runs/{run}/events").raise_for_status()
                taken[number].append((time.perf_counter() - started) * 1e3)
                if b'"next":500' not in page.content[-20:]:
                    raise SystemExit(f"the first page of {run} ends with {page.content[-40:]!r}")
    return statistics.median(taken[LONG_RUN]), statistics.median(taken[1000])


def _new_id() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _insert_run(place: Place, run: str, status: str) -> str:
    node = (place.home / "control" / "node").read_text(encoding="utf-8")
    place.connection.execute(
        "INSERT INTO runs (id, day, operation, environment, effect, status, parameters, check_mode, diff,"
        " requested_by, timeout_seconds, node, started_at, finished_at)"
        " VALUES (%s, %s, 'backup', 'local', 'read', %s, '{}', false, false, 'bench', 600, %s, now(),"
        " CASE WHEN %s THEN now() END)",
        [run, _today(), status, node, status != "running"],
    )
    return run


def _whole_messages(parts: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        block, separator, rest = (rest + part).rpartition(b"\n\n")
        if separator:
            yield block + separator


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"events were not stored within {DEADLINE_SECONDS:.0f} s: does the worker run?")
        time.sleep(0.05)


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _write(home: Path, run: str, number: int, per_second: int) -> None:
    """Be the supervisor: one event, then after a line on standard input the others; 0 a second: as fast as it goes."""
    directory = rundir.RunDirectory(home / "control" / "runs" / run)
    recorded = _recorded(home)
    started_at = journal.utc()
    with directory.events_file.open("a", buffering=1 if per_second else 64 * 1024) as file:
        lines = _lines(recorded, number)
        file.write(next(lines)[1] + "\n")
        file.flush()
        sys.stdin.readline()
        began = time.monotonic()
        for seq, line in lines:
            if per_second:
                time.sleep(max(0.0, began + seq / per_second - time.monotonic()))
            file.write(f'{line[:-1]},"sent":{time.time_ns()}}}\n' if per_second else f"{line}\n")
    outcome = rundir.Outcome("succeeded", started_at, journal.utc(), events=number, rc=0)
    rundir.write_durably(directory.outcome_file, asdict(outcome))


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
