"""How the modules reach PostgreSQL: one argument, one way in."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.bazaruto_backup import programs, statements
from ansible.module_utils.bazaruto_backup.refusal import Refused

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg
    from psycopg import sql

    PSYCOPG_ERROR = None
except ImportError:
    PSYCOPG_ERROR = traceback.format_exc()

# No timeout of a role or database ends our sessions. A server (14 or newer) ends by itself one whose client is gone;
# otherwise its statement would go on, and hold its locks.
SESSION = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c client_connection_check_interval=1s"

CONNECTION = {
    "type": "dict",
    "required": True,
    "options": {
        "host": {"type": "str", "default": "/var/run/postgresql"},
        "port": {"type": "int", "default": 5432},
        "user": {"type": "str", "default": "postgres"},
        "passfile": {"type": "str", "default": "", "no_log": False},
        "bin_directory": {"type": "str", "default": ""},
    },
}


class Server:
    """One PostgreSQL server as one user, for sessions and for programs."""

    def __init__(self, options: dict[str, Any], purpose: str) -> None:
        self.options = options
        self.purpose = purpose[:63]  # shown as application_name: how others see who holds a lock

    def connect(self, database: str, autocommit: bool = True) -> psycopg.Connection[Any]:
        """A session that lasts as long as this process, and no longer."""
        parameters = {
            "host": self.options["host"],
            "port": self.options["port"],
            "user": self.options["user"],
            "dbname": database,
            "application_name": self.purpose,
            "connect_timeout": 10,
            "options": f"{SESSION} -c TimeZone=UTC -c client_min_messages=warning -c search_path=pg_catalog,public",
        }
        if self.options["passfile"]:
            parameters["passfile"] = self.options["passfile"]
        try:
            return psycopg.connect(**parameters, autocommit=autocommit)
        except psycopg.OperationalError as error:
            raise Refused(
                f"PostgreSQL at {self.options['host']} port {self.options['port']} does not let "
                f"{self.options['user']} into {database}: {programs.last_words(str(error), 300)}. "
                "Start it (locally: make up), or correct the connection in the inventory"
            ) from error

    def environment(self, settings: str = "") -> dict[str, str]:
        """What a PostgreSQL program needs to know, and nothing of ours besides."""
        values = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            "PGAPPNAME": self.purpose,
            "PGCONNECT_TIMEOUT": "10",
            "PGOPTIONS": f"{SESSION} {settings}".strip(),
        }
        if self.options["passfile"]:
            values["PGPASSFILE"] = self.options["passfile"]
        return values

    def arguments(self) -> list[str]:
        """The connection as the programs' options; -w: never ask for a password."""
        return [
            f"--host={self.options['host']}",
            f"--port={self.options['port']}",
            f"--username={self.options['user']}",
            "-w",
        ]

    def programs(self, names: list[str], server_major: int) -> dict[str, str]:
        """Paths of programs that are at least as new as the server."""
        return programs.at_least(names, self.options["bin_directory"], server_major)


def require_psycopg(module: AnsibleModule) -> None:
    """End the module with a sentence when the host's Python has no psycopg 3."""
    if PSYCOPG_ERROR:
        module.fail_json(
            msg=missing_required_lib("psycopg", reason="(Debian: python3-psycopg)"), exception=PSYCOPG_ERROR
        )


def server_version(session: psycopg.Connection[Any]) -> tuple[str, int]:
    """The server's version in words ("15.18 (Debian …)") and its major number."""
    version, major = one(session, statements.SERVER_VERSION)
    return str(version), int(major)


def one(session: psycopg.Connection[Any], statement: str, *values: object) -> tuple[Any, ...]:
    """The one row a statement returns."""
    row = session.execute(statement, values or None).fetchone()
    if row is None:
        raise Refused("PostgreSQL returned no row where there must be one")
    return tuple(row)


def hold_lock(session: psycopg.Connection[Any], key: int, what: str) -> None:
    """Take an advisory lock until the session ends; refuses, naming who holds it."""
    if one(session, statements.TRY_ADVISORY_LOCK, key)[0]:
        return
    holder = session.execute(statements.ADVISORY_LOCK_HOLDER, {"key": key}).fetchone()
    who = f"{holder[1]}, server process {holder[0]}, since {holder[2]}" if holder else "it has just ended"
    raise Refused(f"{what} is already at work ({who}): wait for its end, then try again")


def identifier(*names: str) -> sql.Identifier:
    """A quoted name."""
    return sql.Identifier(*names)
