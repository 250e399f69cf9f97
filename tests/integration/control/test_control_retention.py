"""Old runs and events go by rules, what something refers to stays, and the disk is given back; killed at any point."""

from __future__ import annotations

import datetime
import json
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row
from psycopg.types.json import Json

from .conftest import CONTENT, ControlPlane

pytestmark = pytest.mark.embedded
ROOT = Path(__file__).parents[3]
ALL_ENDED = {"succeeded_days": 0, "other_days": 0, "events_days": 0, "keep_newest": 0}
RULES = {"succeeded_days": 90, "other_days": 365, "events_days": 90, "keep_newest": 10, "keep_at_most": 0}
EVENT = "x" * 900


class Place:
    """A control plane whose content has the operation `retention`, and what tests put into its past."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.home = plane.home

    def sql(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.plane.database_url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    @property
    def node(self) -> str:
        return (self.home / "control" / "node").read_text()

    def past(self, days: float, operation: str = "say", status: str = "succeeded", **columns: Any) -> str:
        """A run that ended so many days ago, with its directory, and its events when `events` says how many."""
        ended = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        run = f"{ended:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        values = {
            "id": run, "day": ended.date(), "operation": operation, "environment": "local", "effect": "read",
            "status": status, "parameters": Json({}), "check_mode": False, "diff": False, "requested_by": "past",
            "timeout_seconds": 60, "node": self.node, "created_at": ended, "started_at": ended, "finished_at": ended,
            "events": 0, **columns,
        }  # fmt: skip
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        self.sql(f"INSERT INTO runs ({names}) VALUES ({marks})", *values.values())
        if values["node"] == self.node:
            self.plane.directory(run).mkdir(parents=True)
            record = {name: str(value) for name, value in values.items() if name != "parameters"}
            (self.plane.directory(run) / "spec.json").write_text(json.dumps(record))
        if values["events"]:
            self.events(run, values["day"], values["events"])
        return run

    def events(self, run: str, day: datetime.date, number: int) -> None:
        self.sql("SELECT make_events_partition(%s)", day)
        self.sql(
            "INSERT INTO events SELECT %s, %s, n, json_build_object('seq', n, 'stdout', %s::text)"
            " FROM generate_series(1, %s) n", day, run, EVENT, number,
        )  # fmt: skip
        if self.plane.directory(run).exists():
            (self.plane.directory(run) / "events.jsonl").write_text("{}\n" * number)
            (self.plane.directory(run) / "stdout.log").write_text("said\n" * number)

    def retain(self, check: bool = False, **parameters: Any) -> dict[str, Any]:
        """What a run of the operation returned."""
        run = self.plane.finished(self.plane.launch("retention", parameters=parameters, check=check)["id"])
        assert run["status"] == "succeeded", run["error"]
        (node,) = run["result"]["nodes"]
        return node

    def program(self, check: bool = False, operations: Any = None, **rules: int) -> dict[str, Any]:
        """The same without a run around it."""
        done = self.started(check, operations, **rules)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def started(
        self, check: bool = False, operations: Any = None, code: str = "", **rules: int
    ) -> subprocess.CompletedProcess[str]:
        asked = {"check": check, "rules": {**RULES, **rules}, "operations": operations or {}}
        program = ["-c", code] if code else ["-m", "bazaruto.control.retention"]
        return subprocess.run(
            [sys.executable, *program], input=json.dumps(asked), env=self.plane.environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def there(self) -> set[str]:
        return {row["id"] for row in self.sql("SELECT id FROM runs")}

    def directories(self) -> set[str]:
        return {path.name for path in (self.home / "control" / "runs").iterdir()}

    def partitions(self) -> set[str]:
        rows = self.sql("SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'events'::regclass")
        return {row["name"] for row in rows}


@pytest.fixture
def place(control_plane_of_ones_own: ControlPlane, tmp_path: Path) -> Place:
    """Settings in a file, as on a server: a run inherits no database URL."""
    plane, content = control_plane_of_ones_own, tmp_path / "content"
    shutil.copytree(CONTENT, content)
    shutil.copy(ROOT / "playbooks" / "retention.yml", content / "playbooks")
    shutil.copytree(ROOT / "roles" / "run_retention", content / "roles" / "run_retention")
    operations = yaml.safe_load((ROOT / "playbooks" / "operations.yml").read_text())["operations"]
    known = yaml.safe_load((CONTENT / "playbooks" / "operations.yml").read_text())
    known["operations"]["retention"] = operations["retention"]
    (content / "playbooks" / "operations.yml").write_text(yaml.safe_dump(known))
    hosts = yaml.safe_load((CONTENT / "inventories" / "local" / "hosts.yml").read_text())
    hosts["all"]["children"] = {"control": {"hosts": {"localhost": None}}}
    (content / "inventories" / "local" / "hosts.yml").write_text(yaml.safe_dump(hosts))
    settings = tmp_path / "settings.yml"
    values = {"control_database_url": plane.database_url, "content_directory": str(content)}
    settings.write_text(yaml.safe_dump(values))
    settings.chmod(0o600)
    for what in ("serve", "worker"):
        plane.stop(what)
    plane.extra_environment |= {"BAZARUTO_CONFIG": str(settings), "BAZARUTO_CONTENT_DIRECTORY": str(content)}
    for what in ("serve", "worker"):
        plane.start(what)
    plane.until((plane.home / "control" / "node").exists)
    return Place(plane)


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
    assert again["hosts"]["localhost"]["changed"] == 0
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
        "it is not over": 3,  # the retention itself is the third
        "it may have left something running": 2,
        "it made a backup that is still there": 1,
        "it drilled a backup that is still there": 1,
        "an idempotency key refers to it": 1,
        "a run that is kept tries it again": 2,
    }
    assert done["operations"]["slow_backup"]["kept_though_due"] == {"it is not over": 2}
    go.touch()
    assert [plane.finished(run)["status"] for run in (living, waiting)] == ["succeeded"] * 2
    (place.home / "backups" / "bazaruto_20260101_000000.json").unlink()
    place.sql("UPDATE idempotency_keys SET created_at = now() - interval '3 days'")
    place.retain(**ALL_ENDED)
    assert not {living, waiting, keyed, made} & place.there(), "what held them is gone"


def test_rules_go_by_age_count_and_outcome_and_an_operation_may_have_its_own(place: Place) -> None:
    young = [place.past(days, "say") for days in (1, 2, 3)]
    other = [place.past(days, "say", status) for days, status in ((100, "failed"), (101, "succeeded"), (400, "failed"))]
    busy = [place.past(days, "chatter") for days in (1, 2, 3, 4)]
    dry = place.past(101, "say", check_mode=True)
    special = {"chatter": {"keep_at_most": 2, "keep_newest": 1}}
    done = place.program(operations=special, keep_newest=1)
    assert set(done["runs"]) == {other[1], other[2], busy[2], busy[3]}
    assert {*young, other[0], dry, *busy[:2]} <= place.there(), "dry runs are counted apart"
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
