"""The command line of the service: `bazarutod serve | worker | migrate | demo | jobs | rules | settings | users`."""

from __future__ import annotations

import importlib.resources
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, LiteralString

import psycopg
import typer
from psycopg_pool import PoolTimeout
from pydantic import ValidationError

from bazaruto import __version__, config, database, logs
from bazaruto.config import Settings
from bazaruto.problems import Problem
from bazaruto.service import demo as demo_data
from bazaruto.service import jobs as job_queue
from bazaruto.service import monitoring, users
from bazaruto.service import rules as business_rules
from bazaruto.service.context import changing, only_row, reading
from bazaruto.service.fields import Role
from bazaruto.service.passwords import Passwords

command = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
jobs = typer.Typer(no_args_is_help=True, help="Held jobs: what a restored database brought back.")
rules = typer.Typer(no_args_is_help=True, help="Business rules.")
settings_file = typer.Typer(no_args_is_help=True, help="The settings file.")
accounts = typer.Typer(no_args_is_help=True, help="Users.")
command.add_typer(jobs, name="jobs")
command.add_typer(rules, name="rules")
command.add_typer(settings_file, name="settings")
command.add_typer(accounts, name="users")

WRONG_USE = 2


class CommandFailed(Exception):
    """What failed and what to do, one sentence."""


def main() -> None:
    """Run the command line; every foreseen error is one sentence on stderr."""
    try:
        command()
    except config.SettingsError as error:
        _end(str(error), WRONG_USE)
    except business_rules.RulesError as error:
        _end("\n".join(error.problems), 1)
    except (CommandFailed, database.MigrationFailed, demo_data.DemoRefused) as error:
        _end(str(error), 1)
    except Problem as error:
        _end(error.detail or error.title, 1)
    except database.WritesHeld:
        _end("writes are held at the moment, a restore is under way: try again when it has ended", 1)
    except (psycopg.OperationalError, PoolTimeout) as error:
        _end(f"the database cannot be used ({_first_line(error)}): check database_url, and that PostgreSQL runs", 1)


@command.callback()
def _options() -> None:
    """The Bazaruto insurance service."""


@command.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@command.command()
def serve() -> None:
    """Serve HTTP until SIGTERM or SIGINT; requests in flight end first."""
    from bazaruto import server
    from bazaruto.service import app as application

    settings = _settings()
    logs.configure(settings, "bazarutod")
    with application.opened(settings, "bazarutod") as service, application.built(service) as running:
        try:
            status = server.serve(
                running.app,
                host=settings.service_host,
                port=settings.service_port,
                limits=settings.server,
                probe_paths=monitoring.PROBE_PATHS,
                on_drain=running.health.draining.set,
            )
        except server.CannotListen as error:
            raise CommandFailed(str(error)) from error
    raise typer.Exit(status)


@command.command()
def worker() -> None:
    """Run jobs until SIGTERM or SIGINT; running jobs end first."""
    from bazaruto.service import app as application
    from bazaruto.service import worker as job_worker

    settings = _settings()
    logs.configure(settings, "bazaruto-worker")
    with application.opened(settings, "bazaruto-worker") as service:
        status = job_worker.run(service)
    raise typer.Exit(status)


@command.command()
def migrate(
    check: Annotated[bool, typer.Option("--check", help="Only say what is missing; exit 1 when something is.")] = False,
) -> None:
    """Bring the database's tables up to this version."""
    settings = _settings()
    if check:
        missing = database.pending(settings.database_url, monitoring.MIGRATIONS)
        typer.echo("\n".join(f"pending: {name}" for name in missing) or "nothing is pending")
        raise typer.Exit(1 if missing else 0)
    applied = database.migrate(settings.database_url, monitoring.MIGRATIONS)
    typer.echo("\n".join(f"applied: {name}" for name in applied) or "nothing was pending")


@command.command()
def demo() -> None:
    """Fill an empty database with the demo data; changes nothing when it is there."""
    settings = _settings()
    _default_rules(settings.rules_file)
    with _connected(settings, changing) as connection:
        done = demo_data.fill(
            connection, Passwords(settings.auth.concurrent_hashes), settings.home / "secrets" / "demo-password"
        )
    typer.echo(done)


@jobs.command()
def held() -> None:
    """List held jobs by task."""
    with _connected(_settings(), reading) as connection:
        rows = connection.execute(job_queue.SQL.count_held).fetchall()
    typer.echo("\n".join(f"{row['jobs']} {row['task']}" for row in rows) or "no job is held")


@jobs.command()
def release() -> None:
    """Let held jobs run."""
    typer.echo(f"{_count(job_queue.SQL.release)} held jobs were released")


@jobs.command()
def drop() -> None:
    """Cancel held jobs: they will never run."""
    typer.echo(f"{_count(job_queue.SQL.drop_held)} held jobs were cancelled")


@rules.command()
def check(file: Path) -> None:
    """Exit 0 when the file's rules can be used; else 1, naming every error."""
    found = business_rules.check(file)
    typer.echo(f"{file}: version {found.version} can be used")


@rules.command()
def schema() -> None:
    """Print the JSON Schema of the file."""
    typer.echo(business_rules.schema_text(), nl=False)


@settings_file.command("check")
def check_settings(file: Path) -> None:
    """Exit 0 when the service can start with this file alone; else 2, naming every wrong setting."""
    _settings({"BAZARUTO_CONFIG": str(file)}, local=False)
    typer.echo(f"{file} can be used")


@accounts.command()
def add(
    email: str,
    name: Annotated[str, typer.Option()],
    role: Annotated[Role, typer.Option()] = Role.CUSTOMER,
) -> None:
    """Create a user; the password is the first line of standard input."""
    settings = _settings()
    password = sys.stdin.readline().rstrip("\r\n")
    try:
        new = users.NewUser(email=email, name=name, role=role, password=password)
    except ValidationError as error:
        raise CommandFailed(
            "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        ) from None
    password_hash = Passwords(settings.auth.concurrent_hashes).hash(password)
    with _connected(settings, changing) as connection:
        user = users.insert(connection, new.email, new.name, new.role, password_hash)
    typer.echo(f"created {role.value} {new.email}, id {user['id']}")


def _settings(environment: Mapping[str, str] = os.environ, *, local: bool = True) -> Settings:
    settings = config.load(environment, local=local)
    if not settings.database_url:
        raise config.SettingsError(
            "database_url is not set: run `bazaruto up` for servers of its own, or set BAZARUTO_DATABASE_URL"
        )
    return settings


@contextmanager
def _connected(
    settings: Settings, how: Callable[[database.Pool], AbstractContextManager[database.Connection]]
) -> Iterator[database.Connection]:
    # First without a pool, which would only say that it got no connection, and not why.
    psycopg.connect(settings.database_url, connect_timeout=5).close()
    one = settings.db.model_copy(update={"min_connections": 1, "max_connections": 1})
    pool = database.open_pool(settings.database_url, one, "bazarutod-cli")
    try:
        with how(pool) as connection:
            yield connection
    finally:
        pool.close(timeout=1)


def _count(statement: LiteralString) -> int:
    with _connected(_settings(), changing) as connection:
        return int(only_row(connection.execute(statement))["jobs"])


def _default_rules(path: Path) -> None:
    """Rules to begin with; a file that is there is never touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = importlib.resources.files(__package__).joinpath("default_rules.json").read_bytes()
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return
    typer.echo(f"wrote business rules to begin with to {path}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _end(text: str, status: int) -> None:
    typer.echo(text, err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
