"""The API process and the migrations, put together from their parts."""

from __future__ import annotations

import procrastinate
import psycopg

from bazaruto import database, logs, probes, server
from bazaruto.config import DatabaseSettings, Settings
from bazaruto.control import access, catalog, observe, queue, sealing
from bazaruto.control.api import Api
from bazaruto.metrics import Metrics

log = logs.get(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM; returns the exit status."""
    logs.configure(settings, "control")
    catalogue = catalog.load(settings.content_directory)
    observe.refuse_without_tables(settings)
    pool = database.open_pool(settings.control_database_url, _small(settings.db), "bazaruto-control")
    metrics = Metrics()
    metrics.watch_database(pool)
    metrics.add_collector(observe.RunCollector(settings, pool))
    health = observe.health(settings, pool)
    connector = procrastinate.SyncPsycopgConnector()
    api = Api(
        settings=settings,
        catalogue=catalogue,
        pool=pool,
        seal=sealing.load(settings.home),
        jobs=queue.application(connector).open(pool),
        health=health,
        metrics=metrics,
    )
    return server.serve(
        api.application(),
        host=settings.control_host,
        port=settings.control_port,
        limits=settings.server,
        probe_paths=probes.PATHS,
        on_drain=health.draining.set,
    )


def migrate(settings: Settings) -> list[str]:
    """Apply what is missing, and make the first admin token when there is none."""
    applied = database.migrate(settings.control_database_url, observe.MIGRATIONS)
    with psycopg.connect(settings.control_database_url, row_factory=psycopg.rows.dict_row) as connection:
        path = access.ensure_admin_token(connection, settings.home)
    return [*applied, *([f"wrote {path}"] if path else [])]


def _small(settings: DatabaseSettings) -> DatabaseSettings:
    """The guide's pool is the service's; an idle control plane holds fewer connections open."""
    return settings.model_copy(update={"min_connections": min(settings.min_connections, 1)})
