"""Events to their readers: each once and in order, whatever is restarted meanwhile, and never at the cost of others."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import bottle
import httpx
import psycopg
import pytest

from bazaruto import config, database, web
from bazaruto.control import client, events, feed, runs, streams
from bazaruto.control.content import Content
from bazaruto.control.engine import journal, rundir

from ..serving import json_lines, serving, wait_for
from .conftest import CONTENT, ControlPlane

pytestmark = pytest.mark.embedded
DAY = datetime.date(2026, 1, 2)
ROOM = 2  # streams at once: half of the plane's threads
STREAM = {"Accept": "text/event-stream"}


class Plane(ControlPlane):
    """An API with little room."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "BAZARUTO_SERVER_THREADS": str(2 * ROOM), "BAZARUTO_SERVER_DRAIN_DELAY": "0s"}

    @property
    def client(self) -> client.Client:
        return client.Client(f"http://127.0.0.1:{self.port}", self.token)


@pytest.fixture(scope="module")
def plane(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """An API without a worker, so that what is in PostgreSQL is what a test wrote there."""
    home = tmp_path_factory.mktemp("streams")
    for part in ("log", "backups"):
        (home / part).mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name = postgres_cluster.create_database()
    made = Plane(home, postgres_cluster.url_of(name), port)
    assert made.cli("migrate").returncode == 0
    made.start("serve")
    yield made
    for what in list(made.processes):
        made.stop(what)
    postgres_cluster.drop_database(name)


class Story:
    """A run whose events a test stores, just as a follower does."""

    def __init__(self, plane: ControlPlane, status: str = "running", node: str = "elsewhere") -> None:
        self.url = plane.database_url
        self.id = f"20260102-030405-{secrets.token_hex(3)}"
        self.stored = 0
        with self.connected() as connection:
            connection.execute(
                "INSERT INTO runs (id, day, operation, environment, effect, status, parameters, check_mode, diff,"
                " requested_by, timeout_seconds, node, started_at)"
                " VALUES (%s, %s, 'say', 'local', 'read', %s, '{}', false, false, 'test', 60, %s, clock_timestamp())",
                [self.id, DAY, status, node],
            )
            events.resume(connection, DAY, self.id)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        durable = "-c synchronous_commit=on"  # the tests' server forgets at a crash what was not asked to last
        with psycopg.connect(self.url, row_factory=psycopg.rows.dict_row, options=durable) as connection:
            yield connection

    def store(self, number: int, size: int = 100) -> None:
        """The next events, of this size."""
        numbers = range(self.stored + 1, self.stored + number + 1)
        with self.connected() as connection:
            events.store(connection, DAY, self.id, [(seq, event(seq, size)) for seq in numbers])
        self.stored += number

    def become(self, status: str) -> None:
        ended = status not in ("queued", "waiting", "running")
        with self.connected() as connection:
            connection.execute(
                "UPDATE runs SET status = %s, finished_at = CASE WHEN %s THEN clock_timestamp() END WHERE id = %s",
                [status, ended, self.id],
            )
            events.announce(connection, self.id)


def event(seq: int, size: int = 100) -> str:
    return json.dumps({"seq": seq, "type": "verbose", "stdout": "x" * size})


@dataclass
class Heard:
    """What came over a stream."""

    seqs: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # of all messages, in order
    runs: list[dict[str, Any]] = field(default_factory=list)
    arrived: dict[int, float] = field(default_factory=dict)  # seq → when
    heartbeats: int = 0

    def take(self, line: str) -> None:
        name, _, value = line.partition(": ")
        if name == "event":
            self.kinds.append(value)
        elif name == "id":
            self.seqs.append(int(value))
            self.arrived[int(value)] = time.monotonic()
        elif name == "data" and self.kinds[-1] == "event":
            assert json.loads(value)["seq"] == self.seqs[-1]
        elif name == "data":
            self.runs.append(json.loads(value))
        elif line == ": heartbeat":
            self.heartbeats += 1


def listen(answer: httpx.Response, heard: Heard) -> None:
    assert answer.status_code == 200, answer.read()
    for line in answer.iter_lines():
        heard.take(line)


def hear(plane: ControlPlane, run: str, query: str = "", **headers: str) -> Heard:
    """A whole stream, to its end."""
    heard = Heard()
    with plane.http.stream("GET", f"/api/v1/runs/{run}/events{query}", headers=STREAM | headers) as answer:
        listen(answer, heard)
    return heard


@contextlib.contextmanager
def hearing(plane: ControlPlane, run: str) -> Iterator[Heard]:
    """A stream listened to in a thread, from its first message to the end of the block."""
    heard = Heard()
    with plane.http.stream("GET", f"/api/v1/runs/{run}/events", headers=STREAM) as answer:
        listener = threading.Thread(target=_listen_until_cut, args=(answer, heard))
        listener.start()
        wait_for(lambda: heard.runs)
        yield heard
        listener.join(20)
        assert not listener.is_alive(), "the stream did not end"


def _listen_until_cut(answer: httpx.Response, heard: Heard) -> None:
    with contextlib.suppress(httpx.TransportError):
        listen(answer, heard)


def test_a_stream_gives_every_event_once_in_order_and_ends_with_the_run(plane: Plane) -> None:
    story = Story(plane)
    story.store(2500, size=1400)
    story.become("succeeded")
    heard = hear(plane, story.id)
    assert heard.seqs == list(range(1, 2501))
    assert heard.kinds[-2:] == ["run", "end"], "a terminal state is told after the last event"
    assert heard.runs[-1]["status"] == "succeeded"
    assert heard.runs[-1] == plane.run(story.id)


def test_what_is_stored_reaches_the_reader_without_waiting_for_the_next_look(plane: Plane) -> None:
    story = Story(plane)
    delays = []
    with hearing(plane, story.id) as heard:
        for number in range(1, 8):
            story.store(1)
            stored = time.monotonic()
            wait_for(lambda: story.stored in heard.arrived)
            delays.append(heard.arrived[number] - stored)
        story.become("failed")
    assert sorted(delays)[3] < streams.LOOK_SECONDS / 5
    assert heard.runs[-1]["status"] == "failed"


def test_a_recorded_end_is_heard_without_waiting_for_the_next_look(plane: Plane) -> None:
    delays = []
    for _ in range(5):
        story = Story(plane)
        with hearing(plane, story.id) as heard:
            story.store(1)
            wait_for(lambda: heard.seqs)  # the stream rests now
            now = journal.utc()
            with story.connected() as connection:
                runs.end(connection, story.id, rundir.Outcome("succeeded", now, now, events=1, rc=0))
            ended = time.monotonic()
        delays.append(time.monotonic() - ended)
    assert sorted(delays)[2] < streams.LOOK_SECONDS / 3


def test_a_lost_notification_only_delays(plane: Plane) -> None:
    story = Story(plane)
    with hearing(plane, story.id) as heard:
        with story.connected() as connection:
            connection.execute("INSERT INTO events VALUES (%s, %s, 1, %s)", [DAY, story.id, event(1)])
        wait_for(lambda: heard.seqs == [1], 3)
        story.become("succeeded")


def test_changes_of_the_run_are_told_as_they_come(plane: Plane) -> None:
    story = Story(plane, "queued")
    with hearing(plane, story.id) as heard:
        story.become("running")
        wait_for(lambda: heard.runs[-1]["status"] == "running")
        story.store(3)
        story.become("canceled")
    assert [run["status"] for run in heard.runs] == ["queued", "running", "canceled", "canceled"]
    assert heard.kinds == ["run", "run", "event", "event", "event", "run", "end"]


def test_a_reader_resumes_after_the_last_event_seen(plane: Plane) -> None:
    story = Story(plane)
    story.store(10)
    story.become("succeeded")
    assert hear(plane, story.id, "?after=7").seqs == [8, 9, 10]
    assert hear(plane, story.id, "?after=2", **{"Last-Event-ID": "9"}).seqs == [10], "a browser repeats the address"
    assert hear(plane, story.id, "?after=10").kinds == ["run", "end"]


@pytest.mark.parametrize(
    ("query", "headers", "status", "field_"),
    [
        ("?after=-1", {}, 422, "after"),
        ("?after=x", {}, 422, "after"),
        ("", {"Last-Event-ID": "x"}, 422, "Last-Event-ID"),
        ("", {"Last-Event-ID": "-1"}, 422, "Last-Event-ID"),
        ("", {"Last-Event-ID": str(2**31)}, 422, "Last-Event-ID"),
        ("?after=%ff", {}, 400, None),
    ],
)
def test_a_wrong_place_to_resume_from_is_refused(
    plane: Plane, query: str, headers: dict[str, str], status: int, field_: str | None
) -> None:
    story = Story(plane)
    answer = plane.http.get(f"/api/v1/runs/{story.id}/events{query}", headers=STREAM | headers)
    assert answer.status_code == status
    assert [each["field"] for each in answer.json().get("errors", [])] == ([field_] if field_ else [])
    assert plane.http.get("/api/v1/runs/nothing/events", headers=STREAM).status_code == 404


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/html, */*", "text/event-stream;q=0"])
def test_without_asking_for_a_stream_the_answer_is_a_page(plane: Plane, accept: str) -> None:
    story = Story(plane)
    story.store(3)
    answer = plane.http.get(f"/api/v1/runs/{story.id}/events", headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert [each["seq"] for each in answer.json()["events"]] == [1, 2, 3]


def test_streams_are_not_stored_or_buffered_on_their_way(plane: Plane) -> None:
    story = Story(plane, "queued")
    story.become("running")
    story.become("succeeded")
    with plane.http.stream("GET", f"/api/v1/runs/{story.id}/events", headers=STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"


def test_one_stream_too_many_is_refused_others_are_served_and_the_client_reads_pages(plane: Plane) -> None:
    story = Story(plane)
    story.store(5)
    with contextlib.ExitStack() as open_ones:
        for _ in range(ROOM):
            answer = open_ones.enter_context(plane.http.stream("GET", _events(story), headers=STREAM))
            assert answer.status_code == 200
        refused = plane.http.get(_events(story), headers=STREAM)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"] == "1"
        for path in ("/livez", "/readyz", f"/api/v1/runs/{story.id}"):
            assert plane.http.get(path).status_code == 200
        steps = plane.client.follow(story.id)
        assert [each["seq"] for each in next(steps).events] == [1, 2, 3, 4, 5]
        story.store(5)
        paged = next(step for step in steps if step.events)
        assert [each["seq"] for each in paged.events] == [6, 7, 8, 9, 10]
        story.become("succeeded")
        assert [step.run["status"] for step in steps][-1] == "succeeded"
    left = time.monotonic()
    plane.until(lambda: hear_status(plane, story) == 200)
    assert time.monotonic() - left < 2, "clients that left free their slots at once"


def _events(story: Story) -> str:
    return f"/api/v1/runs/{story.id}/events"


def hear_status(plane: Plane, story: Story) -> int:
    with plane.http.stream("GET", _events(story), headers=STREAM) as answer:
        return answer.status_code


def test_asking_only_for_the_head_of_a_stream_holds_no_slot(plane: Plane) -> None:
    story = Story(plane)
    for _ in range(3 * ROOM):
        assert plane.http.head(_events(story), headers=STREAM).status_code == 200
    assert hear_status(plane, story) == 200


def test_a_follower_of_the_client_gets_each_event_once_over_a_restart_of_the_api(plane: Plane) -> None:
    story = Story(plane)
    story.store(1500)
    seen: list[int] = []
    last: list[str] = []

    def follow() -> None:
        for step in plane.client.follow(story.id):
            seen.extend(each["seq"] for each in step.events)
            last.append(step.run["status"])

    reader = threading.Thread(target=follow)
    reader.start()
    wait_for(lambda: len(seen) == 1500)
    for number in (signal.SIGKILL, signal.SIGTERM):
        story.store(10)
        wait_for(lambda: len(seen) == story.stored)
        plane.processes["serve"].send_signal(number)
        plane.processes.pop("serve").wait(20)
        story.store(10)
        plane.start("serve")
    wait_for(lambda: len(seen) == story.stored)
    story.become("succeeded")
    reader.join(20)
    assert seen == list(range(1, 1541))
    assert last[-1] == "succeeded"


def test_a_stop_ends_every_stream_at_once_and_each_has_one_line_in_the_access_log(plane: Plane) -> None:
    story = Story(plane)
    log = plane.home / "log" / "access.log"
    with hearing(plane, story.id) as heard:
        story.store(1)
        wait_for(lambda: heard.seqs == [1])
        assert [line for line in json_lines(log) if story.id in line["path"]] == []
        started = time.monotonic()
        assert plane.stop("serve") == 0
        assert time.monotonic() - started < 5
    plane.start("serve")
    assert heard.kinds[-1] == "event", "without an end, so that its reader comes back"
    ended = [line for line in json_lines(log) if story.id in line["path"]]
    assert [(line["status"], line["user_id"]) for line in ended] == [(200, "admin")]


def test_a_stream_goes_on_over_a_crash_of_postgresql(plane: Plane, postgres_cluster: Any) -> None:
    story = Story(plane)
    with hearing(plane, story.id) as heard:
        story.store(20)
        wait_for(lambda: len(heard.seqs) == 20)
        postgres_cluster.restart(signal.SIGKILL)
        with story.connected() as connection:
            story.stored = events.stored(connection, DAY, story.id)  # a crash may forget; followers store it again
        story.store(40 - story.stored)
        wait_for(lambda: len(heard.seqs) == 40, 20)
        delays = []
        for _ in range(5):
            story.store(1)
            stored = time.monotonic()
            wait_for(lambda: story.stored in heard.arrived)
            delays.append(heard.arrived[story.stored] - stored)
        story.become("succeeded")
    assert heard.seqs == list(range(1, 46))
    assert heard.kinds[-1] == "end"
    assert sorted(delays)[2] < streams.LOOK_SECONDS / 4, "notifications are heard again"


def test_a_stream_goes_on_over_a_kill_of_the_worker(plane: Plane) -> None:
    worker = plane.start("worker")
    wait_for((plane.home / "control" / "node").exists, 20)
    story = Story(plane, node=(plane.home / "control" / "node").read_text())
    directory = rundir.RunDirectory(plane.directory(story.id))
    directory.path.mkdir(parents=True)
    lock = rundir.try_lock(directory.supervisor_lock)
    assert lock is not None
    with hearing(plane, story.id) as heard:
        _write(directory.events_file, range(1, 101))
        wait_for(lambda: len(heard.seqs) == 100, 20)
        worker.kill()
        worker.wait()
        _write(directory.events_file, range(101, 201))
        plane.start("worker")
        wait_for(lambda: len(heard.seqs) == 200, 20)
        now = journal.utc()
        rundir.write_durably(directory.outcome_file, asdict(rundir.Outcome("succeeded", now, now, events=200, rc=0)))
        os.close(lock)
    assert heard.seqs == list(range(1, 201))
    assert heard.runs[-1]["status"] == "succeeded"
    assert plane.stop("worker") == 0


def _write(journal_file: Path, seqs: range) -> None:
    with journal_file.open("a") as file:
        file.writelines(event(seq) + "\n" for seq in seqs)


@pytest.fixture
def quick_streams(plane: Plane) -> Iterator[streams.Streams]:
    """Streams of this process, which look at everything more often than people need."""
    settings = config.DatabaseSettings(min_connections=1, max_connections=4)
    with database.open_pool(plane.database_url, settings, "test") as pool:
        shown = Content(CONTENT, plane.home / "control" / "content")
        listener = feed.Feed(plane.database_url)
        yield streams.Streams(pool, listener, shown, ROOM, heartbeat_seconds=0.3, access_seconds=0.3)


def _route(made: streams.Streams) -> Callable[[web.App], None]:
    def add(app: web.App) -> None:
        @app.get("/stream/<run>")
        def stream(run: str) -> streams.Lasting:
            environ = bottle.request.environ
            reader = streams.Reader(environ["HTTP_AUTHORIZATION"], environ["waitress.client_disconnected"])
            return made.open(run, 0, reader)

    return add


def test_a_silent_stream_says_that_it_lives_until_its_token_is_revoked(
    plane: Plane, quick_streams: streams.Streams, home: Path
) -> None:
    story = Story(plane)
    token = _token(story)
    heard = Heard()
    with serving(home, add_routes=_route(quick_streams)) as running:
        url = f"http://127.0.0.1:{running.port}/stream/{story.id}"
        with httpx.stream("GET", url, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as answer:
            listener = threading.Thread(target=listen, args=(answer, heard))
            listener.start()
            wait_for(lambda: heard.heartbeats >= 3, 5)
            assert listener.is_alive()
            with story.connected() as connection:
                connection.execute("DELETE FROM access_tokens WHERE name = 'short-lived'")
            listener.join(5)
            assert not listener.is_alive()
    assert heard.kinds == ["run"]


def _token(story: Story) -> str:
    import hashlib

    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    with story.connected() as connection:
        connection.execute(
            "INSERT INTO access_tokens (id, name, role, hash) VALUES (%s, 'short-lived', 'viewer', %s)",
            [identity, hashlib.sha256(secret.encode()).digest()],
        )
    return f"bzr_{identity}_{secret}"


def test_an_api_whose_streams_ended_holds_no_busy_loop(plane: Plane) -> None:
    story = Story(plane)
    story.become("succeeded")
    hear(plane, story.id)
    before = _processor_seconds(plane.processes["serve"])
    time.sleep(2)
    assert _processor_seconds(plane.processes["serve"]) - before < 0.2


def _processor_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_raw_output_is_given_whole_from_a_byte_on_and_while_it_grows(plane: Plane) -> None:
    here = plane.home / "control" / "node"
    here.parent.mkdir(exist_ok=True)
    if not here.exists():
        here.write_text("this-node")
    story = Story(plane, node=here.read_text())
    path = f"/api/v1/runs/{story.id}/stdout"
    missing = plane.http.get(path)
    assert missing.status_code == 404
    assert "has not begun to print" in missing.json()["detail"]
    plane.directory(story.id).mkdir(parents=True)
    file = plane.directory(story.id) / "stdout.log"
    text = "PLAY [one] ***\nok: [höst]\n"
    file.write_text(text, encoding="utf-8")
    answer = plane.http.get(path)
    assert (answer.status_code, answer.text) == (200, text)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    with file.open("ab") as growing:
        growing.write(b"PLAY RECAP")
    assert plane.http.get(path, params={"offset": len(text.encode())}).content == b"PLAY RECAP"
    assert plane.http.get(path, params={"offset": 10**6}).content == b""
    assert plane.http.get(path, params={"offset": -1}).status_code == 422
    assert b"".join(plane.client.stdout(story.id, 5)) == file.read_bytes()[5:]


def test_long_raw_output_is_streamed_and_holds_a_slot(plane: Plane) -> None:
    story = Story(plane)
    plane.directory(story.id).mkdir(parents=True)
    line = b"ok: [host] => a line of what Ansible printed\n"
    content = b"".join(itertools.islice(itertools.repeat(line), 400_000))
    (plane.directory(story.id) / "stdout.log").write_bytes(content)
    assert b"".join(plane.client.stdout(story.id)) == content
    with contextlib.ExitStack() as open_ones:
        for _ in range(ROOM):
            open_ones.enter_context(plane.http.stream("GET", _events(story), headers=STREAM))
        assert plane.http.get(f"/api/v1/runs/{story.id}/stdout").status_code == 503
        tail = plane.http.get(f"/api/v1/runs/{story.id}/stdout", params={"offset": len(content) - 1000})
        assert tail.content == content[-1000:], "what is short needs no slot"


def test_output_that_is_elsewhere_is_404_and_names_the_node(plane: Plane) -> None:
    there = plane.http.get(f"/api/v1/runs/{Story(plane, node='node-seven').id}/stdout")
    assert there.status_code == 404
    assert "node-seven" in there.json()["detail"]
    queued = Story(plane, "queued")
    with queued.connected() as connection:
        connection.execute("UPDATE runs SET node = NULL WHERE id = %s", [queued.id])
    assert "not started" in plane.http.get(f"/api/v1/runs/{queued.id}/stdout").json()["detail"]


def test_the_openapi_document_knows_the_stream_and_the_text(plane: Plane) -> None:
    paths = plane.http.get("/openapi.json").json()["paths"]
    listed = paths["/api/v1/runs/{id}/events"]["get"]
    assert set(listed["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert ("Last-Event-ID", "header") in {(each["name"], each["in"]) for each in listed["parameters"]}
    text = paths["/api/v1/runs/{id}/stdout"]["get"]["responses"]["200"]["content"]
    assert text == {"text/plain": {"schema": {"type": "string"}}}
