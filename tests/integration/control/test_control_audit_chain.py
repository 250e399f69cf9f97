"""The chain of the audit: a change and its entry are one, and what a crash leaves open is concluded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bazaruto import database
from bazaruto.config import DatabaseSettings, Settings
from bazaruto.control import serving
from bazaruto.control.audit.changes import Actor, Audit

SOMEBODY = Actor("somebody", "abc", "192.0.2.1", "req_1")


@pytest.fixture
def audit(postgres_cluster: Any, tmp_path: Path) -> Iterator[Audit]:
    """An audit on a database of its own."""
    name = postgres_cluster.create_database()
    url = postgres_cluster.url_of(name)
    serving.migrate(Settings(home=tmp_path, control_database_url=url))
    with database.open_pool(url, DatabaseSettings(min_connections=1, max_connections=4), "test") as pool:
        yield Audit(tmp_path, pool)
    postgres_cluster.drop_database(name)


def heads(audit: Audit) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.heads.path.read_text().splitlines()]


def entries(audit: Audit) -> list[dict[str, Any]]:
    with audit._pool.connection() as connection:
        return connection.execute("SELECT * FROM audit_entries ORDER BY seq").fetchall()


def test_a_change_and_its_entry_are_one(audit: Audit) -> None:
    with audit.change(SOMEBODY, "thing.do", target="it", parameters={"a": 1}) as change:
        change.connection.execute("CREATE TABLE made (a int)")
    with pytest.raises(psycopg.errors.UndefinedTable), audit.change(SOMEBODY, "thing.do") as change:
        change.connection.execute("DROP TABLE made, never_made")
    audit.refused(SOMEBODY, "thing.undo", "you may not")
    assert [(each["seq"], each["action"], each["outcome"]) for each in entries(audit)] == [
        (1, "thing.do", "accepted"),
        (2, "thing.undo", "refused"),
    ]
    assert [(line["seq"], line["state"]) for line in heads(audit)] == [
        (1, "intent"),
        (1, "head"),
        (2, "intent"),
        (2, "head"),
    ]
    assert audit.heads.path.stat().st_mode & 0o777 == 0o600


def test_what_a_crash_left_open_is_concluded_by_the_next_writer(audit: Audit) -> None:
    for _ in range(2):
        audit.refused(SOMEBODY, "thing.do", "no")
    lines = audit.heads.path.read_text().splitlines(keepends=True)
    never = json.dumps({"seq": 3, "mac": "00" * 32, "at": "2026-01-01T00:00:00Z", "state": "intent"})
    audit.heads.path.write_text(
        "".join(lines[:-1]) + f"{never}\n"
    )  # the head of 2 is missing, and 3 was never committed
    Audit(audit.keys.directory.parent, audit._pool).refused(SOMEBODY, "thing.do", "no")  # as another process does
    assert [(line["seq"], line["state"]) for line in heads(audit)[3:]] == [
        (3, "intent"),
        (2, "head"),
        (3, "void"),
        (3, "intent"),
        (3, "head"),
    ]


def test_a_writer_that_stands_still_keeps_nobody_from_changing_things(audit: Audit) -> None:
    audit.refused(SOMEBODY, "thing.do", "no")
    other = Audit(audit.keys.directory.parent, audit._pool)

    def stand_still() -> None:
        with audit.change(SOMEBODY, "thing.do") as change:
            audit.hold(change.connection)
            # As after ten seconds in which it was frozen between its lock and its commit.
            change.connection.execute("SELECT set_config('idle_in_transaction_session_timeout', '100ms', true)")
            other.refused(SOMEBODY, "thing.undo", "no")

    with pytest.raises(psycopg.OperationalError):
        stand_still()
    assert [each["action"] for each in entries(audit)] == ["thing.do", "thing.undo"]
