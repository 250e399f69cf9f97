"""The API process and the migrations, put together from their parts."""

from __future__ import annotations

import procrastinate
import psycopg

from bazaruto import database, logs, probes, server
from bazaruto.config import DatabaseSettings, Settings
from bazaruto.control import access, catalog, observe, queue, sealing
from bazaruto.control.acceptance import Acceptance
from bazaruto.control.api import Api
from bazaruto.control.content import Content, ContentError
from bazaruto.control.feed import Feed
from bazaruto.control.streams import Streams
from bazaruto.metrics import Metrics

log = logs.get(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM; returns the exit status."""
    logs.configure(settings, "control")
    observe.refuse_without_tables(settings)
    pool = database.open_pool(settings.control_database_url, _small(settings.db), "bazaruto-control")
    metrics = Metrics()
    metrics.watch_database(pool)
    metrics.add_collector(observe.RunCollector(settings, pool))
    health = observe.health(settings, pool)
    jobs = queue.application(procrastinate.SyncPsycopgConnector()).open(pool)
    acceptance = Acceptance(settings, pool, sealing.load(settings.home), jobs)
    _look_at(acceptance.content)
    streams = Streams(pool, Feed(settings.control_database_url), acceptance.content, settings.server.threads // 2)
    api = Api(
        settings=settings,
        acceptance=acceptance,
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
    )


def migrate(settings: Settings) -> list[str]:
    """Apply what is missing, and make the first admin token when there is none."""
    applied = database.migrate(settings.control_database_url, observe.MIGRATIONS)
    with psycopg.connect(settings.control_database_url, row_factory=psycopg.rows.dict_row) as connection:
        path = access.ensure_admin_token(connection, settings.home)
    return [*applied, *([f"wrote {path}"] if path else [])]


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
