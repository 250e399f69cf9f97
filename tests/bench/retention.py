"""What retention of a million events takes, and what the disk has of it: the real program on the real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from .figures import Figure

RUNS, EVENTS = 1000, 1000  # of each run; half of the runs' days are left without any, of the other half a tenth stays
DAYS = 10
EVENT_BYTES = 1400  # as long as an event of a large play
RULES = {"succeeded_days": 90, "other_days": 365, "events_days": 90, "keep_newest": 10, "keep_at_most": 0}
OPERATION, ITS_RULE = "bench", {"keep_newest": 0, "events_days": 365}  # those that failed stay, with their events


@dataclass(frozen=True)
class Place:
    """The control plane that is measured."""

    home: Path
    node: str
    connection: psycopg.Connection[Any]  # commits by itself


def measure(home: Path, database_url: str, environment: dict[str, str]) -> list[Figure]:
    """Seconds for a million events, and bytes of the database before and after."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        _fill(Place(home, (home / "control" / "node").read_text(encoding="utf-8"), connection))
    result = _retain(environment)
    if result["events_removed"] != RUNS * EVENTS or result["left_to_the_next_time"]:
        raise SystemExit(f"retention of {RUNS * EVENTS} events removed {result}")
    database = result["database"]
    print(f"{result['partitions_dropped']} partitions were dropped, {result['partitions_rewritten']} written anew")
    count = RUNS * EVENTS
    return [
        Figure(f"retention of {count:,} events: s ÷ million events", result["seconds"], count / 1e6, "s", ""),
        Figure(
            "the same: MB returned ÷ MB before",
            database["bytes_returned"] / 1e6,
            database["bytes_before"] / 1e6,
            "MB",
            "",
        ),
    ]


def _fill(place: Place) -> None:
    """Runs of 100 to 109 days ago; on every other day a tenth as many fell beside them, which are to stay."""
    for day in range(DAYS):
        place.connection.execute("SELECT make_events_partition(current_date - %s)", [100 + day])
        _runs(place, 100 + day, RUNS // DAYS, "succeeded")
        if day % 2:
            _runs(place, 100 + day, RUNS // DAYS // 10, "failed")
    place.connection.execute("VACUUM ANALYZE events")


def _runs(place: Place, days: int, number: int, status: str) -> None:
    """So many runs with their events and directories."""
    ids = [f"20200101-{days:06}-{'f' if status == 'failed' else '0'}{each:05x}" for each in range(number)]
    place.connection.execute(
        "INSERT INTO runs (id, day, operation, environment, effect, status, parameters, check_mode, diff, requested_by,"
        " timeout_seconds, node, created_at, started_at, finished_at, events)"
        " SELECT id, current_date - %(days)s, %(operation)s, 'local', 'read', %(status)s, '{}', false, false, 'bench',"
        " 60, %(node)s, t, t, t, %(events)s"
        " FROM unnest(%(ids)s::text[]) id, (SELECT now() - make_interval(days => %(days)s) AS t) moment",
        {"ids": ids, "days": days, "operation": OPERATION, "status": status, "node": place.node, "events": EVENTS},
    )
    place.connection.execute(
        "INSERT INTO events SELECT current_date - %s, id, n,"
        " json_build_object('seq', n, 'stdout', repeat(md5(n::text), %s))"
        " FROM unnest(%s::text[]) id, generate_series(1, %s) n",
        [days, EVENT_BYTES // 32, ids, EVENTS],
    )
    for run in ids:
        directory = place.home / "control" / "runs" / run
        directory.mkdir(mode=0o700)
        (directory / "events.jsonl").write_bytes(bytes(4096))


def _retain(environment: dict[str, str]) -> dict[str, Any]:
    asked = {"check": False, "rules": RULES, "operations": {OPERATION: ITS_RULE}}
    done = subprocess.run(
        [sys.executable, "-m", "bazaruto.control.retention"],
        input=json.dumps(asked),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"retention failed: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
