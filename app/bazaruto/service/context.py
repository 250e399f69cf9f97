"""What every route and job of the service works with, and how it reads and changes the database."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg.rows import DictRow

from bazaruto import database, redis_pool
from bazaruto.config import Settings
from bazaruto.service.attempts import LoginAttempts
from bazaruto.service.constraints import problem_of
from bazaruto.service.passwords import Passwords
from bazaruto.service.rules import RulesFile


@dataclass(frozen=True)
class Service:
    """One process of the service."""

    settings: Settings
    pool: database.Pool
    redis_connections: redis_pool.Pool | None  # None: no Redis is set
    rules: RulesFile
    passwords: Passwords
    attempts: LoginAttempts


@contextmanager
def reading(pool: database.Pool) -> Iterator[database.Connection]:
    """A connection for single statements: each sees what is committed, none costs a BEGIN and a COMMIT."""
    with pool.connection() as connection:
        connection.set_autocommit(True)
        try:
            yield connection
        finally:
            if not connection.closed:
                connection.set_autocommit(False)


@contextmanager
def changing(pool: database.Pool) -> Iterator[database.Connection]:
    """One transaction that changes data; what the database's constraints refuse becomes the client's problem."""
    try:
        with database.write(pool) as connection:
            yield connection
    except psycopg.IntegrityError as error:
        problem = problem_of(error)
        if problem is None:
            raise
        raise problem from error


def only_row(cursor: psycopg.Cursor[DictRow]) -> DictRow:
    """The row of a statement that always gives one."""
    row = cursor.fetchone()
    if row is None:
        raise LookupError("a statement that always gives a row gave none")
    return row


def today() -> dt.date:
    """The day it is, in UTC."""
    return dt.datetime.now(dt.UTC).date()
