"""Demo data: the same users, policies and claims every time, made within seconds."""

from __future__ import annotations

import datetime as dt
import os
import random
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bazaruto import database
from bazaruto.service import claims
from bazaruto.service.context import only_row
from bazaruto.service.fields import Product, Role
from bazaruto.service.passwords import Passwords

SQL = database.statements(__package__, "demo.sql")
SEED = 20230101
USERS, POLICIES, CLAIMS = 1200, 2400, 3600
EPOCH = dt.datetime(2023, 1, 1, 8, 0, tzinfo=dt.UTC)  # when the first demo user came
# One year is over, and such policies are made lapsed; the others run beyond 2035, so that no worker changes the data.
TERMS_YEARS = (1, 12, 13, 15, 20)
_FIRST = ("Ana", "Bela", "Carlos", "Elsa", "Fátima", "Graça", "Hélder", "Inês", "João", "Maria", "Nelson", "Olga")
_LAST = ("Chissano", "Cossa", "Langa", "Mabunda", "Macuácua", "Mondlane", "Muchanga", "Sitoe", "Tembe")
_CURRENCIES = ("MZN", "EUR", "USD")
_COVERAGE = {"MZN": 50_000_000, "EUR": 1_000_000, "USD": 1_000_000}
_INCIDENTS = {
    Product.MOTOR: "Collision at a crossing",
    Product.HOME: "Water damage in the kitchen",
    Product.HEALTH: "Two nights in hospital",
    Product.TRAVEL: "Luggage lost on the way",
    Product.LIFE: "Benefit asked for by the family",
}


class DemoRefused(Exception):
    """The database holds something else than the demo data."""


@dataclass(frozen=True)
class DemoUser:
    """A demo user who can log in."""

    id: uuid.UUID
    email: str
    name: str
    role: Role


@dataclass(frozen=True)
class Step:
    """A policy or claim that reaches a status at some time."""

    id: uuid.UUID
    status: str
    at: dt.datetime


def _demo_id(name: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.demo.bazaruto.example")


LOGINS = tuple(
    DemoUser(_demo_id(role), f"{role}@bazaruto.example", f"Demo {role.title()}", role)
    for role in (Role.ADMIN, Role.AGENT, Role.CUSTOMER)
)


def fill(connection: database.Connection, passwords: Passwords, password_file: Path) -> str:
    """Make the demo data in the caller's transaction unless it is there; returns what was done, one sentence."""
    connection.execute(SQL.lock)
    row = only_row(connection.execute(SQL.count_users, {"admin_id": LOGINS[0].id}))
    if row["users"] and not row["demo"]:
        raise DemoRefused(
            f"the database has {row['users']} users and none of the demo's: use an empty database for the demo data"
        )
    if row["users"] and password_file.exists():
        return f"the demo data is there ({row['users']} users): nothing was changed"
    password_hash = passwords.hash(_password(password_file))
    if row["users"]:
        ids = [login.id for login in LOGINS]
        connection.execute(SQL.set_password, {"password_hash": password_hash, "ids": ids})
        return f"the demo data is there; its three users have a new password, in {password_file}"
    _insert(connection, password_hash)
    return (
        f"made {USERS} users, {POLICIES} policies and {CLAIMS} claims; the password of "
        f"{', '.join(login.email for login in LOGINS)} is in {password_file}"
    )


def _password(path: Path) -> str:
    """The home's demo password; made when it is not there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    password = secrets.token_urlsafe(18)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(password + "\n")
        file.flush()
        os.fsync(file.fileno())
    return password


def _insert(connection: database.Connection, password_hash: str) -> None:
    source = _Source(random.Random(SEED))  # noqa: S311 - the same data each time is the point
    users, policies, claimed, steps = source.everything(password_hash)
    claims.attribute(connection, via="demo", reason="demo data")
    _copy(connection, SQL.copy_users, users)
    _copy(connection, SQL.copy_policies, policies)
    connection.execute(SQL.create_steps)
    _copy(connection, SQL.copy_steps, [(step.id, step.status, step.at) for step in steps])
    connection.execute(SQL.step_policies, {"status": "active"})
    _copy(connection, SQL.copy_claims, claimed)
    for status in ("in_review", "approved", "rejected", "paid"):
        connection.execute(SQL.step_claims, {"status": status})
    for status in ("lapsed", "canceled"):
        connection.execute(SQL.step_policies, {"status": status})
    connection.execute(SQL.advance_numbers, {"policies": POLICIES, "claims": CLAIMS})


def _copy(connection: database.Connection, statement: Any, rows: Iterable[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


class _Source:
    """Draws everything from one seeded generator, so that the order of drawing is part of the data."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._steps: list[Step] = []

    def everything(
        self, password_hash: str
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], list[tuple[Any, ...]], list[Step]]:
        """Users, policies and claims as rows for COPY, and the steps that follow."""
        users = [(login.id, login.email, login.name, login.role.value, password_hash, EPOCH) for login in LOGINS]
        users += [self._user(number) for number in range(len(users), USERS)]
        holders = [row[0] for row in users if row[3] == "customer"]
        policies = [self._policy(number, holders) for number in range(1, POLICIES + 1)]
        in_force = [row for row, active in policies if active]
        claimed = [self._claim(number, in_force) for number in range(1, CLAIMS + 1)]
        self._end_policies(in_force)
        return users, [row for row, _ in policies], claimed, self._steps

    def _id(self) -> uuid.UUID:
        return uuid.UUID(int=self._draw.getrandbits(128), version=4)

    def _user(self, number: int) -> tuple[Any, ...]:
        name = f"{self._draw.choice(_FIRST)} {self._draw.choice(_LAST)}"
        role = "agent" if number % 60 == 0 else "customer"
        created = EPOCH + dt.timedelta(hours=4 * number)
        return self._id(), f"user{number:04d}@bazaruto.example", name, role, None, created

    def _policy(self, number: int, holders: list[uuid.UUID]) -> tuple[tuple[Any, ...], bool]:
        currency = self._draw.choice(_CURRENCIES)
        coverage = _COVERAGE[currency] * self._draw.randint(1, 40)
        created = EPOCH + dt.timedelta(hours=4 * USERS + number)
        starts_on = created.date() + dt.timedelta(days=self._draw.randint(0, 30))
        years = self._draw.choice(TERMS_YEARS)
        ends_on = starts_on + dt.timedelta(days=365 * (TERMS_YEARS[-1] if number <= 5 else years))
        holder = LOGINS[2].id if number <= 5 else self._draw.choice(holders)
        product = self._draw.choice(list(Product))
        row = (
            *(self._id(), f"POL-{number:010d}", holder, product.value, coverage),
            *(coverage // self._draw.randint(50, 200), currency, starts_on, ends_on, created, created),
        )
        active = number <= 5 or self._draw.random() < 0.9
        if active:
            self._steps.append(Step(row[0], "active", created + dt.timedelta(minutes=30)))
        return row, active

    def _claim(self, number: int, in_force: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        policy = self._draw.choice(in_force) if number > 3 else in_force[number]
        policy_id, product, coverage, currency, starts_on = policy[0], policy[3], policy[4], policy[6], policy[7]
        incident_on = starts_on + dt.timedelta(days=self._draw.randint(0, 364))
        created = dt.datetime.combine(incident_on, dt.time(9), dt.UTC) + dt.timedelta(
            hours=self._draw.randint(0, 240), microseconds=number
        )
        identity = self._id()
        self._claim_steps(identity, created)
        amount = self._draw.randint(1, coverage // 2)
        description = _INCIDENTS[Product(product)]
        return (
            *(identity, f"CLM-{number:010d}", policy_id, amount, currency, incident_on, description),
            *(created, created),
        )

    def _claim_steps(self, identity: uuid.UUID, created: dt.datetime) -> None:
        """None is left submitted: such a claim would wait for a job that nobody queued."""
        path = ["in_review", *self._draw.choice([[], ["approved"], ["rejected"], ["approved", "paid"]])]
        for days, status in enumerate(path, start=1):
            self._steps.append(Step(identity, status, created + dt.timedelta(days=2 * days)))

    def _end_policies(self, in_force: list[tuple[Any, ...]]) -> None:
        """One-year policies lapse; some others are canceled in their third year."""
        for row in in_force[5:]:
            identity, starts_on, ends_on = row[0], row[7], row[8]
            if (ends_on - starts_on).days == 365:
                at = dt.datetime.combine(ends_on + dt.timedelta(days=1), dt.time(0, 5), dt.UTC)
                self._steps.append(Step(identity, "lapsed", at))
            elif self._draw.random() < 0.1:
                at = dt.datetime.combine(starts_on, dt.time(12), dt.UTC) + dt.timedelta(days=400)
                self._steps.append(Step(identity, "canceled", at))
