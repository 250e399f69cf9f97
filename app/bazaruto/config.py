"""Every setting: its name, unit and default, read from a YAML file and from BAZARUTO_* variables."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "BAZARUTO_"
NOT_SETTINGS = frozenset({"BAZARUTO_CONFIG", "BAZARUTO_RUN_ID", "BAZARUTO_LAB"})
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_NUMBER = re.compile(r"^\s*\d+(?:\.\d+)?\s*$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class SettingsError(Exception):
    """The settings cannot be used; the text names every wrong one."""


def _seconds(value: object) -> object:
    """Turn the guide's durations ("30s", "1h") into seconds; numbers are seconds already."""
    if isinstance(value, str) and (match := _DURATION.match(value)):
        return float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.match(value)):
        raise ValueError('a duration is a number of seconds, or a number with ms, s, m, h or d, like "30s"')
    return value


def _database_url(value: str) -> str:
    """Refuse what libpq cannot read, at the start and not at the first query."""
    if value:
        import psycopg  # late, because it takes longer than everything else here
        from psycopg.conninfo import conninfo_to_dict

        try:
            conninfo_to_dict(value)
        except psycopg.ProgrammingError:
            raise ValueError("is not a PostgreSQL URL: postgresql://USER@HOST:PORT/DATABASE") from None
    return value


def _redis_url(value: str) -> str:
    if value and not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("is not a Redis URL: redis://HOST:PORT/0 or unix:///PATH")
    return value


def _control_url(value: str) -> str:
    """Without a slash at its end, so that paths can follow."""
    if value and not re.fullmatch(r"https?://[^\s/?#@]+/?", value):
        raise ValueError("is not the URL of a control plane: https://HOST:PORT")
    return value.rstrip("/")


def _address(value: str) -> str:
    """In the one form in which addresses are compared."""
    if not value:
        return value
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("is not an IP address, like 192.0.2.10 or ::1") from None


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=366 * 86400)]
SecondsOrZero = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=366 * 86400)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url), Field(repr=False)]  # may hold a password
RedisUrl = Annotated[str, AfterValidator(_redis_url), Field(repr=False)]
ControlUrl = Annotated[str, AfterValidator(_control_url)]
Address = Annotated[str, AfterValidator(_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]  # in a variable: separated by commas


class Section(BaseModel):
    """One section of the settings file: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _PoolSection(Section):
    """What two pools have in common."""

    max_connections: int
    min_connections: int

    @model_validator(mode="after")
    def _minimum_fits(self) -> Self:
        if self.min_connections > self.max_connections:
            raise ValueError(
                f"min_connections ({self.min_connections}) is more than max_connections ({self.max_connections})"
            )
        return self


class ServerSettings(Section):
    """The HTTP server of either face. The guide's names and values are the defaults."""

    read_timeout: Seconds = 30.0  # a whole request, from its first byte to its last; then 408
    write_timeout: Seconds = 30.0  # a whole response: output that waits for the client longer; then closed
    idle_timeout: Seconds = 120.0  # a kept connection without a request
    drain_delay: SecondsOrZero = 1.0  # at a stop: how long only readiness fails, so that balancers notice
    drain_timeout: Seconds = 30.0  # at a stop: how long requests in flight may then still take
    threads: Annotated[int, Field(ge=1, le=256)] = 16
    queue_limit: Annotated[int, Field(ge=1, le=10_000)] = 256  # requests waiting for a thread; more: 503
    connection_limit: Annotated[int, Field(ge=1, le=10_000)] = 512  # above it: the oldest idle one is closed, or 503
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 1024 * 1024  # more: 413
    trusted_proxy: Address = ""  # the proxy in front, whose X-Forwarded-For names the client
    max_header_bytes: Annotated[int, Field(ge=1024, le=2**20)] = 32 * 1024  # more: 431


class DatabaseSettings(_PoolSection):
    """The pool of one process. The guide's names and values are the defaults."""

    max_connections: Annotated[int, Field(ge=1, le=1000)] = 25
    min_connections: Annotated[int, Field(ge=0, le=1000)] = 5
    max_lifetime: Seconds = 3600.0
    idle_timeout: Seconds = 1800.0
    acquire_timeout: Seconds = 5.0  # waiting for a free connection; then 503
    statement_timeout: Seconds = 15.0  # one statement of the service, ended by the server


class RedisSettings(_PoolSection):
    """The pool of one process. The guide's names and values are the defaults."""

    max_connections: Annotated[int, Field(ge=1, le=1000)] = 10
    min_connections: Annotated[int, Field(ge=0, le=1000)] = 1
    max_lifetime: Seconds = 3600.0
    timeout: Seconds = 1.0  # connecting, and one answer


class LogSettings(Section):
    """What is logged. While processes run, the level is changed by one of the five words in the file
    $BAZARUTO_HOME/config/log-level (within a second, for every process of this home); without it this setting rules.
    """

    level: Literal["debug", "info", "warn", "error", "fatal"] = "info"  # access.log is written at every level


class AuthSettings(Section):
    """Logins of the service's users."""

    token_lifetime: Seconds = 12 * 3600.0
    concurrent_hashes: Annotated[int, Field(ge=1, le=64)] = 2  # one argon2 hash costs 0.1 s and 64 MiB
    attempts: Annotated[int, Field(ge=1, le=1000)] = 10  # failed logins for one e-mail in attempts_window
    attempts_per_address: Annotated[int, Field(ge=1, le=100_000)] = 50  # failed logins from one address in it
    attempts_window: Seconds = 900.0


class JobSettings(Section):
    """The worker's jobs."""

    concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    shutdown_grace: Seconds = 30.0  # how long a running job may still take when the worker stops


class WebhookSettings(Section):
    """Deliveries to subscribers."""

    timeout: Seconds = 10.0  # one delivery, from connecting to the last byte of the answer
    allow_loopback: bool = False  # deliver to this machine too; other private addresses never


class DebugSettings(Section):
    """Off by default, because it costs."""

    heap_profile: bool = False  # tracemalloc, for /debug/pprof/heap


def in_url(host: str) -> str:
    """A host that is listened on, as a client on this machine writes it."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - recognized, not listened on
    return f"[{reachable}]" if ":" in reachable else reachable


def checkout() -> Path | None:
    """The source checkout this package runs from, or None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "playbooks").is_dir() else None


def _default_home() -> Path:
    root = checkout()
    return root / "var" if root else Path("/var/lib/bazaruto")


class Settings(Section):
    """All settings; what is left empty follows from `home` and from what `bazaruto up` started."""

    home: Path = Field(default_factory=_default_home)
    content_directory: Path = Field(default_factory=lambda: checkout() or Path("/opt/bazaruto/content/current"))
    service_host: str = "127.0.0.1"
    service_port: Port = 8080
    control_host: str = "127.0.0.1"
    control_port: Port = 8081
    control_url: ControlUrl = ""  # where clients ask for it; empty: follows from its host, port and certificate
    control_tls_certificate: Path = Path()  # PEM, then the chain above it; with it the control plane speaks HTTPS
    control_tls_key: Path = Path()  # PEM without a passphrase, 0600; both files are read again when they change
    control_plain_http: bool = False  # listen beyond this machine without TLS, where tokens can be read on the way
    control_ca_file: Path = Path()  # PEM: the authorities that `bazaruto` trusts; empty: the system's
    control_environments: Names = ()  # those whose runs this control node's workers start; empty: every one
    control_approval_expires: Seconds = 24 * 3600.0  # how long a plan can be approved, and what was approved can start
    control_requests_per_second: Annotated[int, Field(ge=0, le=10_000)] = 100  # of one token, over 10 s; 0: any number
    database_url: DatabaseUrl = ""  # the service's PostgreSQL
    control_database_url: DatabaseUrl = ""  # the control plane's own PostgreSQL
    redis_url: RedisUrl = ""
    backup_directory: Path = Path()
    control_backup_directory: Path = Path()  # the control plane's own backups, which hold its keys; 0700
    rules_file: Path = Path()
    log_directory: Path = Path()
    vault_password_file: Path = Path()  # of ansible-vault: a key file (0600) or a script that says it; empty: none
    server: ServerSettings = ServerSettings()
    db: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    log: LogSettings = LogSettings()
    auth: AuthSettings = AuthSettings()
    jobs: JobSettings = JobSettings()
    webhooks: WebhookSettings = WebhookSettings()
    debug: DebugSettings = DebugSettings()

    @property
    def control_address(self) -> str:
        """The URL at which clients ask for the control plane."""
        if self.control_url:
            return self.control_url
        scheme = "http" if self.control_tls_certificate == Path() else "https"
        return f"{scheme}://{in_url(self.control_host)}:{self.control_port}"

    @property
    def local_file(self) -> Path:
        """What `bazaruto up` decided about this machine (JSON)."""
        return self.home / "local.json"


OPTIONAL_FILES = ("vault_password_file", "control_tls_certificate", "control_tls_key", "control_ca_file")
SECTIONS: frozenset[str] = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
)


def load(environment: Mapping[str, str] = os.environ, *, local: bool = True) -> Settings:
    """Read $BAZARUTO_CONFIG (YAML), then BAZARUTO_* over it, then fill what follows from them.

    Without `local`, what `bazaruto up` once wrote is left out: only what somebody asked for counts.
    Raises SettingsError with one line for every unknown or wrong setting.
    """

    class Loaded(Settings, BaseSettings):
        """The settings as this environment has them."""

        model_config = SettingsConfigDict(extra="forbid", frozen=True)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
            env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """First what is said in the environment, then the file's."""
            return _Environment(settings_cls, environment), _File(settings_cls, environment)

    try:
        settings = Loaded()
    except ValidationError as error:
        problems = [_problem(item["loc"], item["type"], item["msg"], environment) for item in error.errors()]
        raise SettingsError("\n".join(f"wrong setting {problem}" for problem in sorted(problems))) from None
    return _complete(settings, local)


class _Source(PydanticBaseSettingsSource):
    """A layer of settings; pydantic-settings lays them over each other and validates the result."""

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._environment = environment

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - theirs
        """One setting of the layer."""
        return self().get(field_name), field_name, False


class _Environment(_Source):
    """BAZARUTO_SECTION_NAME and BAZARUTO_NAME; what is neither stays under its own name, and is refused for it."""

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for variable, value in self._environment.items():
            if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
                continue
            name = variable.removeprefix(PREFIX).lower()
            section, _, rest = name.partition("_")
            if name in Settings.model_fields and name not in SECTIONS:
                values[name] = value
            elif section in SECTIONS and rest:
                values.setdefault(section, {})[rest] = value
            else:
                values[variable] = value
        return values


class _File(_Source):
    """The YAML file that BAZARUTO_CONFIG names."""

    def __call__(self) -> dict[str, Any]:
        path = self._environment.get("BAZARUTO_CONFIG")
        if not path:
            return {}
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"BAZARUTO_CONFIG: {path} cannot be read: {error}") from error
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise SettingsError(f"BAZARUTO_CONFIG: {path} is not a mapping of settings")
        # An empty section ("db:") is one without settings of its own.
        return {str(name): {} if name in SECTIONS and value is None else value for name, value in values.items()}


def _problem(where: tuple[int | str, ...], kind: str, message: str, environment: Mapping[str, str]) -> str:
    """One line, with the setting's name as it was written; never its value, which may be a password."""
    name = ".".join(map(str, where))
    variable = PREFIX + "_".join(map(str, where)).upper()
    shown = f"{name} ({variable})" if variable in environment else name
    text = "there is no such setting" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return f"{shown}: {text}"


def _complete(settings: Settings, use_local: bool) -> Settings:
    home = settings.home.expanduser().absolute()
    local = _local(home / "local.json") if use_local else {}
    empty = Path()
    control = local.get("control", {})
    derived: dict[str, Any] = {
        "home": home,
        "backup_directory": home / "backups"
        if settings.backup_directory == empty
        else settings.backup_directory.absolute(),
        "control_backup_directory": home / "backups" / "control"
        if settings.control_backup_directory == empty
        else settings.control_backup_directory.absolute(),
        "rules_file": home / "config" / "business_rules.json"
        if settings.rules_file == empty
        else settings.rules_file.absolute(),
        "control_ca_file": Path(control.get("ca_file", "")),
        **{name: path.expanduser().absolute() for name in OPTIONAL_FILES if (path := getattr(settings, name)) != empty},
        "log_directory": home / "log" if settings.log_directory == empty else settings.log_directory.absolute(),
        "database_url": settings.database_url or local.get("service", {}).get("database_url", ""),
        "control_database_url": settings.control_database_url or control.get("database_url", ""),
        "redis_url": settings.redis_url or local.get("redis_url", ""),
    }
    return settings.model_copy(update=derived)


def _local(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}): run `bazaruto up`, which writes it anew") from error
    return values if isinstance(values, dict) else {}
