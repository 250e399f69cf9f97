"""The index is rebuilt from the run directories: every run as it ended, with every event."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import ControlPlane

pytestmark = pytest.mark.embedded
SAME = (
    "operation", "environment", "effect", "status", "parameters", "check", "requested_by", "reason", "result", "hosts",
    "error", "events", "created_at", "started_at", "revision", "dirty", "content_digest",
)  # fmt: skip


def test_a_lost_database_is_rebuilt_from_the_run_directories(
    control_plane_of_ones_own: ControlPlane, tmp_path: Path
) -> None:
    plane, file = control_plane_of_ones_own, tmp_path / "go"
    ended = [plane.finished(plane.launch("say", reason="to hear it")["id"]), plane.finished(plane.launch("fail")["id"])]
    events = {run["id"]: plane.events(run["id"]) for run in ended}
    dead, living = (plane.launch(name, parameters={"file": str(file)})["id"] for name in ("slow", "slow_backup"))
    for run in (dead, living):
        plane.in_task(run, "Wait for the file")
    plane.stop("worker")
    plane.stop("serve")
    for pid in (plane.guard(dead), plane.supervisor(dead)):
        os.kill(pid, signal.SIGKILL)
    lose_the_database(plane)
    assert plane.cli("migrate").returncode == 0
    said = plane.cli("reindex")
    assert said.returncode == 0, said.stderr
    assert f"{dead}: entered as interrupted" in said.stdout
    assert f"{living}: entered as running" in said.stdout
    plane.start("serve")
    plane.start("worker")
    for before in ended:
        now = plane.run(before["id"])
        assert {name: now[name] for name in SAME} == {name: before[name] for name in SAME}
        assert [change["status"] for change in now["changes"]] == [change["status"] for change in before["changes"]]
        assert plane.events(before["id"]) == events[before["id"]]
    assert plane.run(dead)["status"] == "interrupted"
    file.touch()
    assert plane.finished(living)["status"] == "succeeded"
    assert [event["seq"] for event in plane.events(living)] == list(range(1, plane.run(living)["events"] + 1))
    assert plane.cli("reindex").stdout == "", "a second time there is nothing to do"


def test_events_that_were_lost_come_back_and_what_cannot_be_read_is_named(
    control_plane_of_ones_own: ControlPlane,
) -> None:
    plane = control_plane_of_ones_own
    run, other = (plane.finished(plane.launch("say")["id"])["id"] for _ in range(2))
    before = plane.events(run)
    with psycopg.connect(plane.database_url) as connection:
        connection.execute("DELETE FROM events WHERE run = %s AND seq > 3", [run])
        connection.execute("DELETE FROM runs WHERE id = %s", [other])
    (plane.directory(other) / "spec.json").write_text("{")
    said = plane.cli("reindex").stdout
    assert f"{run}: {len(before) - 3} events added" in said
    assert f"{other}: cannot be entered" in said
    assert plane.events(run) == before
    shutil.rmtree(plane.directory(other))


def lose_the_database(plane: ControlPlane) -> None:
    with psycopg.connect(plane.database_url, autocommit=True) as connection:
        rows: list[Any] = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert rows
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    token = plane.home / "control" / "admin.token"
    token.unlink()
