"""Schema migrations with yoyo: whole SQL files, one migrating process at a time, safe to be killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, default_migration_table

MIGRATE_KEY = 7_234_017_283_807_667_302  # advisory lock of the migrating session
LOCK_TIMEOUT_SECONDS = 120
BOOKKEEPING = Path(__file__).with_name("bookkeeping.sql")


class MigrationFailed(Exception):
    """A migration was rolled back; the text names it and says what PostgreSQL said."""


def migrate(url: str, directory: Path) -> list[str]:
    """Apply what is not applied yet, each file in one transaction; returns the names of those applied now."""
    with _alone(url) as backend:
        known = set(backend.get_applied_migration_hashes())
        migrations = [Migration(name, str(directory / f"{name}.sql"), str(directory)) for name in _names(directory)]
        missing = [migration for migration in migrations if migration.hash not in known]
        for migration in missing:
            backend.apply_whole(migration)
        backend.keep_the_books()
        return [migration.id for migration in missing]


def pending(url: str, directory: Path) -> list[str]:
    """Names of the migrations that are not applied; changes nothing."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        return pending_on(connection, directory)


def pending_on(connection: psycopg.Connection[Any], directory: Path) -> list[str]:
    """The same, over a connection the caller has."""
    known = set(_applied(connection))
    return [name for name in _names(directory) if name not in known]


def _applied(connection: psycopg.Connection[Any]) -> list[str]:
    cursor = connection.cursor(row_factory=tuple_row)
    found = cursor.execute(
        f"SELECT to_regprocedure('applied_migrations()'), to_regclass('{default_migration_table}')"
    ).fetchone()
    function, table = found or (None, None)
    if function:
        cursor.execute("SELECT applied_migrations()")
    elif table:  # migrated by an earlier version
        cursor.execute(f"SELECT migration_id FROM {default_migration_table}")  # noqa: S608 - yoyo's constant
    else:
        return []
    return [row[0] for row in cursor]


def _names(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.sql"))


class _Backend(PostgresqlPsycopgBackend):
    """yoyo's record of what was applied, for every URL that libpq understands."""

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection[Any]:
        return psycopg.connect(dburi.args["libpq"], autocommit=True, connect_timeout=10)

    def keep_the_books(self) -> None:
        """What was applied is the owner's to write; others may ask for the names."""
        with self.transaction():
            self.connection.execute(BOOKKEEPING.read_bytes())

    def apply_whole(self, migration: Migration) -> None:
        """Run the file and mark it applied in one transaction, so that a kill leaves both or neither.

        The file goes to PostgreSQL as it is: its own parser knows best where a statement ends.
        """
        script = Path(migration.path).read_text(encoding="utf-8")
        try:
            with self.transaction():
                self.connection.execute(script.encode())
                self.mark_one(migration, log=False)
        except psycopg.Error as error:
            raise MigrationFailed(
                f"migration {migration.id} failed and was rolled back ({error}): mend it, then migrate again"
            ) from error


@contextmanager
def _alone(url: str) -> Iterator[_Backend]:
    """The only migrating process: PostgreSQL's lock ends with its session; yoyo's row would outlive a kill."""
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as guard:
        guard.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
        guard.execute("SELECT pg_advisory_lock(%s)", [MIGRATE_KEY])
        backend = _Backend(_uri(url), default_migration_table)
        backend.init_database()
        with backend:
            backend.ensure_internal_schema_updated()
            yield backend


def _uri(url: str) -> DatabaseURI:
    return DatabaseURI(
        scheme="postgresql",
        username=None,
        password=None,
        hostname=None,
        port=None,
        database="",
        args={"libpq": url},
    )
