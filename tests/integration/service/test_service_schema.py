"""The domain's rules in the database alone, against a hand that knows SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from procrastinate.schema import SchemaManager
from psycopg.errors import CheckViolation, ForeignKeyViolation, UniqueViolation

from bazaruto.service import access, claims, currencies, demo, jobs, monitoring, policies, users, webhooks


@pytest.fixture
def database(service_database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(service_database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO users (email, name) VALUES ('ann@x.example', 'Ann')")
        yield connection


def _policy(database: psycopg.Connection, status: str = "active", **changes: object) -> str:
    values = {"product": "home", "coverage_minor": 10_000, "premium_minor": 100, "currency": "EUR"}
    values |= {"starts_on": "2025-01-01", "ends_on": "2099-12-31"} | changes
    names = ", ".join(values)
    places = ", ".join(["%s"] * len(values))
    row = database.execute(
        f"INSERT INTO policies (user_id, {names}) SELECT id, {places} FROM users LIMIT 1 RETURNING id".encode(),
        list(values.values()),
    ).fetchone()
    assert row
    if status != "draft":
        database.execute("UPDATE policies SET status = 'active' WHERE id = %s", row)
    if status == "canceled":
        database.execute("UPDATE policies SET status = 'canceled' WHERE id = %s", row)
    return str(row[0])


def _claim(database: psycopg.Connection, policy: str, **changes: object) -> str:
    values = {"policy_id": policy, "amount_minor": 10, "currency": "EUR", "incident_on": "2025-06-01"}
    values |= {"description": "x"} | changes
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    statement = f"INSERT INTO claims ({names}) VALUES ({places}) RETURNING id"
    row = database.execute(statement.encode(), list(values.values())).fetchone()
    assert row
    return str(row[0])


def test_the_queue_schema_is_the_one_the_migration_was_written_for() -> None:
    migration = (monitoring.MIGRATIONS / "0001_job_queue.sql").read_text()
    assert migration.endswith(SchemaManager.get_schema())


def test_the_guides_indexes_are_there(database: psycopg.Connection) -> None:
    found = dict(database.execute("SELECT indexname, indexdef FROM pg_indexes WHERE indexname LIKE 'idx_%'").fetchall())
    assert "users USING btree (email)" in found["idx_users_email"]
    assert "policies USING btree (user_id)" in found["idx_policies_user_id"]
    assert "claims USING btree (status)" in found["idx_claims_status"]


def test_an_e_mail_is_taken_in_every_case(database: psycopg.Connection) -> None:
    with pytest.raises(UniqueViolation):
        database.execute("INSERT INTO users (email, name) VALUES ('ANN@X.example', 'Ann')")


def test_every_currency_of_the_service_can_be_stored(database: psycopg.Connection) -> None:
    assert len(currencies.CURRENCIES) > 150
    for currency in ("EUR", "MZN", "JPY"):
        assert currency in currencies.CURRENCIES
        _policy(database, currency=currency)


@pytest.mark.parametrize(
    "changes",
    [
        {"coverage_minor": 0},
        {"coverage_minor": 10**15 + 1},
        {"premium_minor": -1},
        {"premium_minor": 10_001},
        {"currency": "eur"},
        {"product": "yacht"},
        {"ends_on": "2024-12-31"},
        {"ends_on": "2200-01-01"},
    ],
)
def test_policies_that_cannot_be_are_refused(database: psycopg.Connection, changes: dict[str, object]) -> None:
    with pytest.raises(CheckViolation):
        _policy(database, "draft", **changes)


def test_a_policy_begins_as_a_draft(database: psycopg.Connection) -> None:
    for status in ("active", "lapsed", "canceled"):
        with pytest.raises(CheckViolation):
            database.execute(
                "INSERT INTO policies (user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on,"
                " status) SELECT id, 'home', 2, 1, 'EUR', '2025-01-01', '2025-12-31', %s FROM users",
                [status],
            )


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_minor": 0},
        {"amount_minor": 10_001},
        {"currency": "USD"},
        {"incident_on": "2024-12-31"},
        {"incident_on": "2099-01-01"},
        {"description": ""},
        {"status": "paid"},
    ],
)
def test_claims_that_do_not_fit_are_refused(database: psycopg.Connection, changes: dict[str, object]) -> None:
    with pytest.raises(CheckViolation):
        _claim(database, _policy(database), **changes)


def test_claims_need_a_policy_in_force_and_policies_a_holder(database: psycopg.Connection) -> None:
    for status in ("draft", "canceled"):
        with pytest.raises(CheckViolation):
            _claim(database, _policy(database, status))
    with pytest.raises(ForeignKeyViolation):
        _claim(database, "00000000-0000-4000-8000-000000000000")
    _claim(database, _policy(database))
    for table in ("policies", "users"):
        with pytest.raises(ForeignKeyViolation):
            database.execute(f"DELETE FROM {table}".encode())


def test_steps_out_of_order_are_refused(database: psycopg.Connection) -> None:
    claim = _claim(database, _policy(database))
    allowed = {("submitted", "in_review"), ("in_review", "approved"), ("approved", "paid")}
    for before in ("submitted", "in_review", "approved", "paid"):
        for after in ("submitted", "in_review", "approved", "rejected", "paid"):
            if after != before and (before, after) not in allowed and (before, after) != ("in_review", "rejected"):
                with pytest.raises(CheckViolation):
                    database.execute("UPDATE claims SET status = %s WHERE id = %s", [after, claim])
        for step in allowed:
            if step[0] == before:
                database.execute("UPDATE claims SET status = %s WHERE id = %s", [step[1], claim])
    steps = database.execute("SELECT from_status, to_status, via FROM claim_history ORDER BY id").fetchall()
    assert steps == [
        (None, "submitted", "sql:bazaruto"),
        ("submitted", "in_review", "sql:bazaruto"),
        ("in_review", "approved", "sql:bazaruto"),
        ("approved", "paid", "sql:bazaruto"),
    ]


def test_terms_claims_and_history_are_fixed(database: psycopg.Connection) -> None:
    policy = _policy(database)
    _claim(database, policy)
    for statement in (
        "UPDATE policies SET coverage_minor = 1",
        "UPDATE policies SET ends_on = '2025-01-02'",
        "UPDATE policies SET status = 'draft'",
        "UPDATE policies SET status = 'lapsed'",
        "UPDATE claims SET amount_minor = 2",
        "UPDATE claim_history SET reason = 'x'",
        "DELETE FROM claim_history",
    ):
        with pytest.raises(CheckViolation):
            database.execute(statement.encode())


def test_held_jobs_come_back_or_are_cancelled(database: psycopg.Connection) -> None:
    def queues() -> list[tuple[str, str]]:
        rows = database.execute("SELECT queue_name, status::text FROM procrastinate_jobs ORDER BY id").fetchall()
        return [(str(queue), str(status)) for queue, status in rows]

    for queue in ("default", "default", "webhooks"):
        database.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, lock) VALUES (%s, 'x', 'same')", [queue]
        )
    database.execute(
        "UPDATE procrastinate_jobs SET status = 'doing' WHERE id = (SELECT min(id) FROM procrastinate_jobs)"
    )
    assert database.execute("SELECT hold_jobs()").fetchone() == (3,)
    assert queues() == [("held:default", "todo"), ("held:default", "todo"), ("held:webhooks", "todo")]
    assert database.execute("SELECT hold_jobs()").fetchone() == (0,)
    assert database.execute("SELECT release_jobs()").fetchone() == (3,)
    assert queues() == [("default", "todo"), ("default", "todo"), ("webhooks", "todo")]
    database.execute("SELECT hold_jobs()")
    assert database.execute("SELECT drop_held_jobs()").fetchone() == (3,)
    assert {status for _, status in queues()} == {"cancelled"}
    assert database.execute("SELECT count(*) FROM job_statistics").fetchone() == (0,)


def test_every_statement_of_the_service_is_known_to_postgresql(service_database_url: str) -> None:
    """PREPARE finds a misspelled column in a statement that no other test happens to run."""
    with psycopg.connect(service_database_url, autocommit=True) as connection:
        for module in (access, claims, policies, users, webhooks, jobs, demo):
            for name, text in vars(module.SQL).items():
                if name.startswith("_") or "COPY" in text or "LOCK TABLE" in text or "demo_steps" in text:
                    continue
                places: dict[str, int] = {}

                def place(match: re.Match[str], places: dict[str, int] = places) -> str:
                    return f"${places.setdefault(match[1], len(places) + 1)}"

                numbered = re.sub(r"%\((\w+)\)s", place, text).replace("%%", "%")
                connection.execute(f"PREPARE p_{name} AS {numbered}".encode())
                connection.execute(f"DEALLOCATE p_{name}".encode())
