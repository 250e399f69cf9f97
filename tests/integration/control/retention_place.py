"""A control plane whose content has the operation `retention`, and a past that tests make up."""

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
import yaml
from psycopg.rows import dict_row
from psycopg.types.json import Json

from .conftest import CONTENT, ControlPlane

ROOT = Path(__file__).parents[3]
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
            (self.plane.directory(run) / "events.jsonl").write_text(
                "".join(f'{{"seq":{seq},"stdout":"{EVENT}"}}\n' for seq in range(1, number + 1))
            )
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


def make_content(content: Path) -> Path:
    """That of the tests, with the operation as it is shipped."""
    shutil.copytree(CONTENT, content)
    shutil.copy(ROOT / "playbooks" / "retention.yml", content / "playbooks")
    shutil.copytree(ROOT / "roles" / "run_retention", content / "roles" / "run_retention")
    shipped = yaml.safe_load((ROOT / "playbooks" / "operations.yml").read_text())
    known = yaml.safe_load((CONTENT / "playbooks" / "operations.yml").read_text())
    known["operations"]["retention"] = shipped["operations"]["retention"]
    (content / "playbooks" / "operations.yml").write_text(yaml.safe_dump(known))
    hosts = yaml.safe_load((CONTENT / "inventories" / "local" / "hosts.yml").read_text())
    hosts["all"]["children"] = {"control": {"hosts": {"localhost": None}}}
    (content / "inventories" / "local" / "hosts.yml").write_text(yaml.safe_dump(hosts))
    return content
