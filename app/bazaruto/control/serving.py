"""The API process and the migrations, put together from their parts."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import procrastinate
import psycopg

from bazaruto import database, logs, probes, server
from bazaruto.config import DatabaseSettings, Settings, SettingsError
from bazaruto.control import catalog, observe, queue, tokens
from bazaruto.control.acceptance import Acceptance
from bazaruto.control.api import Api
from bazaruto.control.audit.changes import Audit
from bazaruto.control.content import Content, ContentError
from bazaruto.control.feed import Feed
from bazaruto.control.keys import Keys
from bazaruto.control.streams import Streams
from bazaruto.metrics import Metrics
from bazaruto.tls import Certificate

log = logs.get(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM; returns the exit status."""
    logs.configure(settings, "control")
    certificate = _certificate(settings)
    observe.refuse_without_tables(settings)
    pool = database.open_pool(settings.control_database_url, _small(settings.db), "bazaruto-control")
    metrics = Metrics()
    metrics.watch_database(pool)
    metrics.add_collector(observe.RunCollector(settings, pool))
    audit = Audit(settings.home, pool)
    health = observe.health(settings, pool, audit, certificate)
    jobs = queue.application(procrastinate.SyncPsycopgConnector()).open(pool)
    acceptance = Acceptance(settings, pool, audit, jobs)
    _look_at(acceptance.content)
    streams = Streams(pool, Feed(settings.control_database_url), acceptance.content, settings.server.threads // 2)
    api = Api(
        settings=settings,
        acceptance=acceptance,
        audit=audit,
        pool=pool,
        jobs=jobs,
        health=health,
        metrics=metrics,
        streams=streams,
    )

    def drain() -> None:
        health.draining.set()
        streams.end()

    return server.serve(
        api.application(),
        host=settings.control_host,
        port=settings.control_port,
        limits=settings.server,
        probe_paths=probes.PATHS,
        on_drain=drain,
        certificate=certificate,
    )


def migrate(settings: Settings) -> list[str]:
    """Apply what is missing, and make the first admin token and the first keys when there are none."""
    applied = database.migrate(settings.control_database_url, observe.MIGRATIONS)
    with psycopg.connect(settings.control_database_url, row_factory=psycopg.rows.dict_row) as connection:
        path = tokens.ensure_admin(connection, settings.home)
        Keys(settings.home).establish(connection)
    return [*applied, *([f"wrote {path}"] if path else [])]


def _certificate(settings: Settings) -> Certificate | None:
    """What to serve HTTPS with; plain HTTP only where nobody else can listen, or where somebody accepts that."""
    certificate, key = settings.control_tls_certificate, settings.control_tls_key
    if (certificate == Path()) != (key == Path()):
        raise SettingsError("control_tls_certificate and control_tls_key belong together: set both, or neither.")
    if certificate != Path():
        return Certificate(certificate, key)
    if not settings.control_plain_http and not _only_this_machine(settings.control_host):
        raise SettingsError(
            f"control_host: other machines can reach {settings.control_host}, and without TLS tokens can be read on "
            "the way: set BAZARUTO_CONTROL_TLS_CERTIFICATE and BAZARUTO_CONTROL_TLS_KEY, or accept that with "
            "BAZARUTO_CONTROL_PLAIN_HTTP=true."
        )
    return None


def _only_this_machine(host: str) -> bool:
    """Whether no other machine can reach what listens there; so too where nothing can listen."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def _look_at(content: Content) -> None:
    """Refuse to start where no content is at all, which is a wrong setting.

    Content with mistakes keeps nobody from looking at runs or from ending them; only launches are refused.
    """
    if not (content.source / "playbooks" / "operations.yml").is_file():
        raise catalog.CatalogueError(
            f"There is no content in {content.source} (no playbooks/operations.yml): set BAZARUTO_CONTENT_DIRECTORY."
        )
    try:
        content.current()
    except (catalog.CatalogueError, ContentError) as error:
        log.warn("the content cannot be used: every launch is refused until it is mended", error=str(error))


def _small(settings: DatabaseSettings) -> DatabaseSettings:
    """The guide's pool is the service's; an idle control plane holds fewer connections open."""
    return settings.model_copy(update={"min_connections": min(settings.min_connections, 1)})
