"""Old runs and events go by rules, what something refers to stays, and the disk is given back; killed at any point."""

from __future__ import annotations

import concurrent.futures
import fcntl
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from .conftest import ControlPlane
from .retention_place import EVENT, Place, make_content

pytestmark = pytest.mark.embedded
ALL_ENDED = {"succeeded_days": 0, "other_days": 0, "events_days": 0, "keep_newest": 0}


@pytest.fixture(scope="module")
def plane(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the operation, and with its settings in a file, as on a server: a run inherits no URL."""
    directory = tmp_path_factory.mktemp("retention")
    home, settings = directory / "home", directory / "settings.yml"
    (home / "log").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    database = postgres_cluster.create_database()
    plane = ControlPlane(home, postgres_cluster.url_of(database), port)
    content = make_content(directory / "content")
    settings.touch(0o600)
    settings.write_text(yaml.safe_dump({"control_database_url": plane.database_url, "content_directory": str(content)}))
    plane.extra_environment |= {"BAZARUTO_CONFIG": str(settings), "BAZARUTO_CONTENT_DIRECTORY": str(content)}
    assert plane.cli("migrate").returncode == 0
    for what in ("serve", "worker"):
        plane.start(what)
    plane.until((home / "control" / "node").exists)
    yield plane
    for what in ("serve", "worker"):
        plane.stop(what)
    postgres_cluster.drop_database(database)


@pytest.fixture
def place(plane: ControlPlane) -> Place:
    """Without a past."""
    place = Place(plane)
    plane.until(lambda: not place.sql("SELECT id FROM runs WHERE finished_at IS NULL"))
    place.sql("DELETE FROM runs")
    place.sql("DELETE FROM events_to_rewrite")
    for name in place.partitions():
        place.sql(f"DROP TABLE {name}")
    for name in ("control/runs", "control/removed", "backups"):
        shutil.rmtree(place.home / name, ignore_errors=True)
        (place.home / name).mkdir(mode=0o700)
    return place


def test_what_a_dry_run_foretells_is_what_goes_and_a_second_time_there_is_nothing(place: Place) -> None:
    real = [place.plane.finished(place.plane.launch(name)["id"])["id"] for name in ("say", "fail")]
    old = [place.past(100 + n, events=2) for n in range(12)]
    failed = place.past(100, status="failed", events=3)
    before, partitions = place.there(), place.partitions()
    foretold = place.retain(check=True)
    assert place.there() >= before, "a dry run removes nothing"
    assert place.partitions() == partitions
    done = place.retain()
    same = ("runs", "runs_removed", "runs_without_events", "events_removed", "partitions_dropped", "operations")
    assert {name: foretold[name] for name in same} == {name: done[name] for name in same}
    assert foretold["changed"]
    assert done["changed"]
    # Of 14 `say` that ended, 10 are the newest: one of today, the failed one, and eight of the old ones.
    gone = set(old[8:])
    assert set(done["runs"]) == gone
    assert done["events_removed"] == 8
    assert before - place.there() == gone
    assert not gone & place.directories()
    assert {*real, failed} <= place.directories()
    assert place.plane.http.get(f"/api/v1/runs/{old[11]}").status_code == 404
    assert place.plane.http.get(f"/api/v1/runs/{old[11]}/stdout").status_code == 404
    again = place.plane.finished(place.plane.launch("retention")["id"])
    assert again["hosts"]["localhost"].get("changed", 0) == 0
    assert again["result"]["runs_removed"] == 0
    assert place.plane.cli("reindex").stdout == "", "what was removed does not come back"


def test_what_something_refers_to_or_is_not_over_stays_and_is_counted_by_its_reason(
    place: Place, tmp_path: Path
) -> None:
    plane, go = place.plane, tmp_path / "go"
    living = plane.launch("slow_backup", parameters={"file": str(go)})["id"]
    plane.in_task(living, "Wait for the file")
    waiting = plane.launch("slow_backup", parameters={"file": str(go)})["id"]
    plane.with_status(waiting, "waiting")
    change = plane.launch("slow", parameters={"file": str(go)})["id"]
    plane.in_task(change, "Wait for the file")  # for which retention does not wait
    headers = {"Idempotency-Key": "once"}
    asked = {"operation": "say", "environment": "local"}
    keyed = plane.http.post("/api/v1/runs", json=asked, headers=headers).json()["id"]
    plane.finished(keyed)
    made, drilled, unsettled = (place.past(500) for _ in range(3))
    (place.home / "backups" / "bazaruto_20260101_000000.json").write_text(json.dumps({"run": made}))
    (place.home / "backups" / "proofs").mkdir()
    (place.home / "backups" / "proofs" / "bazaruto_20260101_000000.json").write_text(json.dumps({"run": drilled}))
    first = place.past(500, status="failed")
    second = place.past(499, status="failed", retry_of=first)
    place.past(498, retry_of=second, left_running=["db2"])
    place.sql("UPDATE runs SET left_running = '{db1}' WHERE id = %s", unsettled)
    waived = place.past(500, left_running=["db1"], waived_at="2026-01-01", waive_reason="off")
    place.sql("UPDATE runs SET created_at = now() - interval '500 days' WHERE id = ANY (%s)", [living, waiting])
    elsewhere = place.past(500, node="another-node")
    nobody = place.past(500, status="canceled", node=None)
    done = place.retain(**ALL_ENDED)
    there = place.there()
    assert {living, waiting, keyed, made, drilled, unsettled, first, second, elsewhere} <= there
    assert not {waived, nobody} & there, "what is waived, and what never started anywhere, may go"
    assert done["kept_though_due"] == {
        "it is not over": 4,  # the retention itself is the fourth
        "it may have left something running": 2,
        "it made a backup that is still there": 1,
        "it drilled a backup that is still there": 1,
        "an idempotency key refers to it": 1,
        "a run that is kept tries it again": 2,
    }
    assert done["operations"]["slow_backup"]["kept_though_due"] == {"it is not over": 2}
    go.touch()
    assert [plane.finished(run)["status"] for run in (living, waiting, change)] == ["succeeded"] * 3
    (place.home / "backups" / "bazaruto_20260101_000000.json").unlink()
    place.sql("UPDATE idempotency_keys SET created_at = now() - interval '3 days'")
    place.retain(**ALL_ENDED)
    assert not {living, waiting, keyed, made} & place.there(), "what held them is gone"


def test_rules_go_by_age_count_and_outcome_and_an_operation_may_have_its_own(place: Place) -> None:
    young = [place.past(days, "say") for days in (1, 2, 3)]
    other = [place.past(days, "say", status) for days, status in ((100, "failed"), (101, "succeeded"), (400, "failed"))]
    busy = [place.past(days, "chatter") for days in (1, 2, 3, 4)]
    dry = place.past(101, "say", check_mode=True)
    planned = place.past(5, "touch")
    plan = place.past(101, "touch", check_mode=True, plan_for=planned)
    special = {"chatter": {"keep_at_most": 2, "keep_newest": 1}, "touch": {"keep_newest": 0}}
    done = place.program(operations=special, keep_newest=1)
    assert done["operations"]["touch"]["kept_though_due"] == {
        "it is the plan of a run that is kept, or has one that is": 1
    }
    assert set(done["runs"]) == {other[1], other[2], busy[2], busy[3]}
    assert {*young, other[0], dry, plan, *busy[:2]} <= place.there(), "dry runs are counted apart"
    refused = place.started(operations={"chatter": {"keep_newest": 9, "keep_at_most": 3}, "say": {"days": 1}})
    assert refused.returncode == 1
    assert "chatter: keep_at_most (3) is less than keep_newest (9)" in refused.stderr
    assert "say.days: Extra inputs are not permitted" in refused.stderr


def test_nothing_goes_while_nobody_knows_what_backups_refer_to(place: Place) -> None:
    run = place.past(500)
    shutil.rmtree(place.home / "backups")
    ended = place.plane.finished(place.plane.launch("retention", parameters=ALL_ENDED)["id"])
    assert ended["status"] == "failed"
    assert f"The backup directory {place.home / 'backups'} cannot be read" in ended["error"]
    assert run in place.there()


def test_events_and_output_may_go_before_the_record_and_do_not_come_back(place: Place) -> None:
    run = place.past(100, "fail", status="failed", events=5, error="It broke.")
    newest = place.past(95, "fail", status="failed", events=5)
    foretold = place.program(check=True, keep_newest=1)
    done = place.program(keep_newest=1)
    assert (foretold["runs_without_events"], foretold["events_removed"]) == (1, 5)
    assert (done["runs_removed"], done["runs_without_events"], done["events_removed"]) == (0, 1, 5)
    http = place.plane.http
    shown = http.get(f"/api/v1/runs/{run}").json()
    assert (shown["error"], shown["events"]) == ("It broke.", 5)
    assert shown["events_removed_at"]
    assert http.get(f"/api/v1/runs/{run}/events").json()["events"] == []
    output = http.get(f"/api/v1/runs/{run}/stdout")
    assert output.status_code == 404
    assert "let go by retention" in output.json()["detail"]
    with http.stream("GET", f"/api/v1/runs/{run}/events", headers={"Accept": "text/event-stream"}) as stream:
        assert "event: end" in "".join(stream.iter_text())
    assert len(http.get(f"/api/v1/runs/{newest}/events").json()["events"]) == 5
    assert place.plane.cli("reindex").stdout == ""
    assert place.program(keep_newest=1)["changed"] is False


def test_the_command_shows_what_would_go_and_what_went_as_a_table(place: Place) -> None:
    run, kept = place.past(100, events=4), place.past(100, left_running=["db1"])
    dry = place.plane.cli("retention", "--dry-run", "-p", "keep_newest=0")
    assert dry.returncode == 0, dry.stderr
    assert "1 runs and 4 events would go" in dry.stdout
    assert "1: it may have left something running" in dry.stdout
    assert run in place.there()
    real = place.plane.cli("retention", "-p", "keep_newest=0", "-o", "json")
    assert real.returncode == 0, real.stderr
    assert json.loads(real.stdout)["result"]["nodes"][0]["runs"] == [run]
    assert kept in place.there()
    assert place.plane.cli("retention", "-p", "keep_newest=-1").returncode == 2


DIES = """
import os, signal, sys
from bazaruto.control.retention import reclaim, removal, retain
def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{function} = dies
sys.exit(retain.main(sys.stdin.read(), os.environ))
"""


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("removal", "_sync"),  # directories are aside, the rows are there
        ("removal", "remove_tree"),  # the rows are gone, directories are still there
        ("retain", "_remove_snapshots"),  # runs are removed, partitions are there
        ("reclaim", "_drop"),
        ("reclaim", "_vacuum"),
    ],
)
def test_what_a_killed_one_began_is_finished_by_the_next(place: Place, module: str, function: str) -> None:
    runs = [place.past(100, events=3), place.past(101, events=3)]
    quiet = place.past(95, status="failed", events=3)
    rules = {"keep_newest": 0}
    killed = place.started(code=DIES.format(module=module, function=function), **rules)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for run in (*runs, quiet):
        for part in ("", "/events", "/stdout"):
            assert place.plane.http.get(f"/api/v1/runs/{run}{part}").status_code in (200, 404)
    there = place.there()
    assert place.plane.cli("reindex").stdout == ""
    assert place.there() == there, "no run came back"
    assert place.program(**rules)["left_to_the_next_time"] == []
    assert place.there() == {quiet}
    assert place.directories() == {quiet}
    assert not any((place.home / "control" / "removed").iterdir())
    assert {path.name for path in place.plane.directory(quiet).iterdir()}.isdisjoint({"events.jsonl", "stdout.log"})
    assert place.partitions() == set(), "no event is left"
    assert place.program(**rules)["changed"] is False


def test_the_disk_is_given_back_and_what_is_in_use_is_left_to_the_next_time(place: Place) -> None:
    whole = [place.past(100, events=8000), place.past(100, events=8000)]
    half, kept = place.past(50, status="failed", events=8000), place.past(50, events=4000)
    day = place.sql("SELECT to_char(day, 'YYYYMMDD') AS day FROM runs WHERE id = %s", half)[0]["day"]
    before = place.sql("SELECT pg_database_size(current_database()) AS bytes")[0]["bytes"]
    foretold = place.program(check=True, keep_newest=0, other_days=40)
    with psycopg.connect(place.plane.database_url) as reader:
        reader.execute(f"SELECT FROM events_{day} LIMIT 1")  # and its transaction lasts
        first = place.program(keep_newest=0, other_days=40)
    assert set(first["runs"]) == {*whole, half}
    assert first["left_to_the_next_time"] == [f"events_{day}"]
    then = place.program(keep_newest=0, other_days=40)
    assert (first["partitions_dropped"], then["partitions_rewritten"]) == (1, 1)
    assert (foretold["partitions_dropped"], foretold["partitions_rewritten"]) == (1, 1)
    after = place.sql("SELECT pg_database_size(current_database()) AS bytes")[0]["bytes"]
    assert before - after > 0.9 * 24_000 * len(EVENT), "what the events took"
    assert first["database"]["bytes_before"] - then["database"]["bytes_after"] == pytest.approx(before - after, rel=0.1)
    assert first["disk"]["bytes_returned"] == foretold["disk"]["bytes_returned"] > 0
    assert len(place.plane.http.get(f"/api/v1/runs/{kept}/events", params={"limit": 5000}).json()["events"]) == 4000
    assert place.program(keep_newest=0, other_days=40)["changed"] is False


IMPATIENT = """
import os, sys
from bazaruto.control import snapshots
from bazaruto.control.retention import retain
snapshots.PATIENCE_SECONDS = 0.2
sys.exit(retain.main(sys.stdin.read(), os.environ))
"""


def test_snapshots_go_that_no_run_refers_to_but_not_while_a_launch_is_being_accepted(place: Place) -> None:
    plane, store = place.plane, place.home / "control" / "content"
    playbook = Path(plane.environment["BAZARUTO_CONTENT_DIRECTORY"]) / "playbooks" / "say.yml"
    digests = []
    for _ in range(3):
        playbook.write_text(playbook.read_text() + "\n# another\n")
        digests.append(plane.finished(plane.launch("say")["id"])["content_digest"][:16])
    place.sql("DELETE FROM runs WHERE left(content_digest, 16) = %s", digests[0])
    lock = os.open(place.home / "control" / "content.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)  # as whoever accepts a launch holds it
    foretold = place.program(check=True)
    busy = place.started(code=IMPATIENT)
    os.close(lock)
    assert json.loads(busy.stdout)["left_to_the_next_time"] == ["snapshots"]
    assert (store / digests[0]).is_dir()
    assert place.program()["snapshots_removed"] == foretold["snapshots_removed"] >= 1
    assert not (store / digests[0]).exists()
    assert all((store / digest).is_dir() for digest in digests[1:])
    assert plane.finished(plane.launch("say")["id"])["status"] == "succeeded"


def test_whoever_reads_or_retries_what_is_being_removed_gets_an_answer(place: Place) -> None:
    runs = [place.past(100 + n, status="failed", events=200) for n in range(20)]
    stop = threading.Event()

    def read() -> set[int]:
        seen, http = set(), place.plane.http
        while not stop.is_set():
            for run in runs:
                for part in ("", "/events?limit=100", "/stdout"):
                    seen.add(http.get(f"/api/v1/runs/{run}{part}").status_code)
        return seen

    with concurrent.futures.ThreadPoolExecutor(2) as others:
        reading = others.submit(read)
        going = others.submit(place.program, keep_newest=0, other_days=90)
        retried = {}
        for run in runs:
            answer = place.plane.http.post(f"/api/v1/runs/{run}/retry", json={})
            assert answer.status_code in (202, 404), answer.text
            if answer.status_code == 202:
                retried[run] = answer.json()["id"]
        going.result(60)
        stop.set()
        assert reading.result(30) <= {200, 404}
    assert set(runs) & place.there() == set(retried), "what was retried in time stays, all others are gone"
    for run in retried.values():
        assert place.plane.finished(run)["retry_of"] in retried
