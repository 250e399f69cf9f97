"""The whole backup and restore operations against the guide's own scripts, on the same database."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from .figures import Figure, alternate

TABLES = 24
ROWS_PER_TABLE = 100_000  # with its indexes about 45 MB a table

FILL = """
CREATE TABLE bench_{n} (
    id bigint PRIMARY KEY,
    parent_id bigint {parent},
    token uuid NOT NULL UNIQUE,
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    happened_at timestamptz NOT NULL,
    note text NOT NULL
);
INSERT INTO bench_{n}
SELECT i, {parent_value}, gen_random_uuid(), (random() * 1e9)::bigint,
       timestamptz '2024-01-01' + random() * interval '700 days',
       md5(random()::text) || md5(random()::text) || md5(random()::text) || md5(random()::text)
FROM generate_series(1, {rows}) AS i;
CREATE INDEX ON bench_{n} (happened_at);
CREATE INDEX ON bench_{n} (parent_id);
"""

# The guide's scripts, word for word but for the directory and the database restored into.
GUIDE_BACKUP = """
DATE=$(date +%Y%m%d_%H%M%S)
BACKUP_FILE="$BACKUP_DIR/bazaruto_$DATE.sql"
pg_dump -h $DB_HOST -U $DB_USER -d $DB_NAME > $BACKUP_FILE
gzip $BACKUP_FILE
find $BACKUP_DIR -name "bazaruto_*.sql.gz" -mtime +30 -delete
"""
GUIDE_RESTORE = "gunzip -c $FILE | psql -q -v ON_ERROR_STOP=1 -h $DB_HOST -U $DB_USER -d $RESTORE_DB > /dev/null"


def fill(database_url: str) -> int:
    """Make TABLES tables of random rows that refer to one another; returns the database's size in bytes."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for n in range(TABLES):
            parent = f"REFERENCES bench_{n - 1} (id)" if n else ""
            value = f"1 + (random() * {ROWS_PER_TABLE - 1})::bigint" if n else "NULL"
            statement = FILL.format(n=n, parent=parent, parent_value=value, rows=ROWS_PER_TABLE)
            connection.execute(statement.encode())
        connection.execute("ANALYZE")
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def measure(bazaruto: str, environment: dict[str, str], database_url: str, pairs: int) -> list[Figure]:
    """Alternate guide and operation `pairs` times each; returns time and size ratios."""
    guide = Guide(bazaruto, environment)
    made: dict[str, dict[str, object]] = {}

    def ours_backup() -> float:
        settle(database_url)
        started = time.perf_counter()
        made["backup"] = _run(bazaruto, environment, "backup")
        return time.perf_counter() - started

    def ours_restore() -> float:
        name = str(made["backup"]["name"])
        settle(database_url)
        started = time.perf_counter()
        _run(bazaruto, environment, "restore", "-p", f"backup={name}", "--confirm", "local")
        return time.perf_counter() - started

    def theirs_backup() -> float:
        settle(database_url)
        return guide.backup()

    backup = alternate(pairs, ours_backup, theirs_backup)
    size = float(str(made["backup"]["size_bytes"])), float(guide.newest().stat().st_size)
    restore = alternate(pairs, ours_restore, lambda: guide.restore(database_url))
    megabyte = 1e6
    return [
        Figure("backup operation ÷ guide's script", *backup, "s", "<= 0.5"),
        Figure("backup size ÷ guide's script", size[0] / megabyte, size[1] / megabyte, "MB", "<= 1.1"),
        Figure("restore operation ÷ guide's script", *restore, "s", "<= 0.66"),
    ]


def settle(database_url: str) -> None:
    """Have everything on the disk, so that no measurement pays for what the one before it wrote."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    os.sync()


class Guide:
    """The guide's own commands, run as its reader would: with the variables of `bazaruto env`."""

    def __init__(self, bazaruto: str, environment: dict[str, str]) -> None:
        exports = subprocess.run([bazaruto, "env"], env=environment, capture_output=True, text=True, check=True)
        shell = f"set -a\n{exports.stdout}\nenv -0"
        output = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, check=True).stdout
        self.environment = dict(line.split("=", 1) for line in output.decode().split("\0") if "=" in line)
        self.directory = Path(environment["BAZARUTO_HOME"]) / "guide-backups"
        self.directory.mkdir(exist_ok=True)
        self.environment["BACKUP_DIR"] = str(self.directory)

    def newest(self) -> Path:
        return max(self.directory.glob("*.sql.gz"))

    def backup(self) -> float:
        for old in self.directory.glob("*.sql.gz"):
            old.unlink()
        started = time.perf_counter()
        subprocess.run(["bash", "-ec", GUIDE_BACKUP], env=self.environment, check=True)
        return time.perf_counter() - started

    def restore(self, database_url: str) -> float:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS guide_restore")
            connection.execute("CREATE DATABASE guide_restore OWNER bazaruto")
        settle(database_url)
        environment = self.environment | {"FILE": str(self.newest()), "RESTORE_DB": "guide_restore"}
        started = time.perf_counter()
        subprocess.run(["bash", "-e", "-o", "pipefail", "-c", GUIDE_RESTORE], env=environment, check=True)
        seconds = time.perf_counter() - started
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE guide_restore")
        return seconds


def _run(bazaruto: str, environment: dict[str, str], *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [bazaruto, "run", *arguments, "-o", "json"], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"bazaruto run {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    result = json.loads(done.stdout)["result"]
    assert isinstance(result, dict)
    return result


def superuser_url(home: Path) -> str:
    """The service cluster's superuser, who may create the database that the guide restores into."""
    local = json.loads((home / "local.json").read_text(encoding="utf-8"))
    server = local["postgresql"]
    database = urlsplit(local["service"]["database_url"]).path.lstrip("/") or "bazaruto"
    passfile = server["passfile"].replace("\\", "\\\\").replace("'", "\\'")
    return (
        f"host='{server['host']}' port={server['port']} user={server['superuser']} dbname={database}"
        f" passfile='{passfile}'"
    )


def environment_of(home: Path, service_port: int, control_port: int) -> dict[str, str]:
    """The environment of one copy beside others."""
    return os.environ | {
        "BAZARUTO_HOME": str(home),
        "BAZARUTO_SERVICE_PORT": str(service_port),
        "BAZARUTO_CONTROL_PORT": str(control_port),
        "BAZARUTO_CONTROL_REQUESTS_PER_SECOND": "0",  # it is to be measured, not held back
    }
