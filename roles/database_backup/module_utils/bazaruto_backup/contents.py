"""What a database holds: rows a table, rules, roles, and what belongs to the database itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible.module_utils.bazaruto_backup import statements
from ansible.module_utils.bazaruto_backup.connection import one
from ansible.module_utils.bazaruto_backup.refusal import Refused

try:
    from psycopg import sql
except ImportError:
    # connection.require_psycopg has the sentence for this
    sql = None

if TYPE_CHECKING:
    import psycopg

# Settings that hold lists: their stored form is not a literal.
_LIST_SETTINGS = frozenset(
    {"search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries", "createrole_self_grant"}
)
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}


def table_name(schema: str, table: str) -> str:
    """How a table is called in manifests and results: with its schema only when that is not public."""
    return table if schema == "public" and "." not in table else f"{schema}.{table}"


def schema_and_table(name: str) -> tuple[str, str]:
    """The two parts of what table_name made."""
    schema, dot, table = name.partition(".")
    return (schema, table) if dot else ("public", name)


def tables(session: psycopg.Connection[Any]) -> list[tuple[str, str, int]]:
    """Schema, name and bytes of every table whose rows a dump holds, the largest first."""
    return [(str(schema), str(name), int(size)) for schema, name, size in session.execute(statements.TABLES)]


def rows_per_table(session: psycopg.Connection[Any]) -> dict[str, int]:
    """Count every table's rows, in the session's own snapshot."""
    counted = {}
    for schema, name, _size in tables(session):
        statement = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))
        counted[table_name(schema, name)] = int(one(session, statement)[0])
    return dict(sorted(counted.items()))


def rules(session: psycopg.Connection[Any]) -> dict[str, str]:
    """Constraints, unique indexes and triggers by name, as the server spells them."""
    found = {}
    with session.transaction():
        # Names come out the same wherever they are read: with their schema.
        session.execute("SET LOCAL search_path = pg_catalog")
        for statement in (statements.CONSTRAINTS, statements.UNIQUE_INDEXES, statements.TRIGGERS):
            for schema, table, name, definition in session.execute(statement):
                found[f"{table_name(schema, table)}.{name}"] = str(definition)
    return found


def roles(session: psycopg.Connection[Any]) -> list[str]:
    """The roles a restore of this database needs."""
    return [str(name) for (name,) in session.execute(statements.ROLES)]


def database_properties(session: psycopg.Connection[Any], name: str) -> dict[str, Any] | None:
    """What ALTER DATABASE and GRANT ON DATABASE say about a database; None when there is none of that name."""
    cursor = session.execute(statements.DATABASE, [name])
    row = cursor.fetchone()
    if row is None or cursor.description is None:
        return None
    properties = {column.name: value for column, value in zip(cursor.description, row, strict=True)}
    del properties["oid"]
    properties["grants"] = [list(grant) for grant in session.execute(statements.DATABASE_GRANTS, [name])]
    properties["settings"] = [list(setting) for setting in session.execute(statements.DATABASE_SETTINGS, [name])]
    return properties


def create_database(session: psycopg.Connection[Any], name: str, like: dict[str, Any]) -> None:
    """Make an empty database with the encoding, locale, owner and place of another."""
    provider = _PROVIDERS.get(like["locale_provider"])
    if provider is None:
        raise Refused(f"the locale provider {like['locale_provider']!r} of the backed-up database is not known here")
    words = sql.SQL(
        "CREATE DATABASE {} TEMPLATE template0 OWNER {} TABLESPACE {} "
        "ENCODING {} LC_COLLATE {} LC_CTYPE {} LOCALE_PROVIDER {}"
    ).format(
        *(sql.Identifier(name), sql.Identifier(like["owner"]), sql.Identifier(like["tablespace"])),
        *(sql.Literal(like["encoding"]), sql.Literal(like["collate"]), sql.Literal(like["ctype"])),
        sql.SQL(provider),
    )
    if provider != "libc":
        words += sql.SQL(" ICU_LOCALE {}" if provider == "icu" else " BUILTIN_LOCALE {}").format(
            sql.Literal(like["locale"])
        )
    session.execute(words)


def apply_properties(session: psycopg.Connection[Any], name: str, wanted: dict[str, Any]) -> None:
    """Give a database the grants, settings, limit and comment of another."""
    database = sql.Identifier(name)
    with session.transaction():
        session.execute(
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(database, sql.Literal(wanted["connection_limit"]))
        )
        session.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, sql.Literal(wanted["comment"])))
        if wanted["has_grants"]:
            _apply_grants(session, database, wanted)
        for role, setting, value in wanted["settings"]:
            _apply_setting(session, database, role, setting, value)


def _apply_grants(session: psycopg.Connection[Any], database: sql.Identifier, wanted: dict[str, Any]) -> None:
    owner = sql.Identifier(wanted["owner"])
    session.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(database, owner))
    for grantee, privilege, grantable in wanted["grants"]:
        session.execute(
            sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(privilege),
                database,
                sql.SQL("PUBLIC") if grantee == "PUBLIC" else sql.Identifier(grantee),
                sql.SQL(" WITH GRANT OPTION") if grantable else sql.SQL(""),
            )
        )


def _apply_setting(
    session: psycopg.Connection[Any], database: sql.Identifier, role: str, setting: str, value: str
) -> None:
    subject = sql.SQL("DATABASE {}").format(database)
    if role:
        subject = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), database)
    if setting in _LIST_SETTINGS:
        # The stored form of a list is what set_config takes; FROM CURRENT then stores the same form again.
        session.execute("SELECT set_config(%s, %s, true)", [setting, value])
        session.execute(sql.SQL("ALTER {} SET {} FROM CURRENT").format(subject, sql.Identifier(setting)))
    else:
        words = sql.SQL("ALTER {} SET {} TO {}")
        session.execute(words.format(subject, sql.Identifier(*setting.split(".")), sql.Literal(value)))
