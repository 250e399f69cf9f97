"""A Redis client whose pool has what redis-py's lacks: a minimum, a maximum lifetime, and no stale connection."""

from __future__ import annotations

import threading
import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from bazaruto import logs
from bazaruto.config import RedisSettings

UNTRUSTED_AFTER_SECONDS = 30  # redis-py pings a connection that was idle for longer, before it is used
CARE_SECONDS = 30.0  # how often idle connections are looked after, well under the server's `timeout 300`

log = logs.get(__name__)


class Pool(BlockingConnectionPool):
    """At most max_connections, at least min_connections kept open, none older than max_lifetime."""

    def __init__(self, *, min_connections: int, max_lifetime: float, **rest: Any) -> None:
        self._minimum = min_connections
        self._lifetime = max_lifetime
        self._born: dict[int, tuple[Any, float]] = {}  # id → (its socket, since when)
        self._busy = 0
        self._counting = threading.Lock()
        super().__init__(**rest)

    @property
    def in_use(self) -> int:
        """Connections given away at the moment."""
        return self._busy

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connection that is open and young enough."""
        connection = super().get_connection()
        with self._counting:
            self._busy += 1
        try:
            if self._too_old(connection):
                connection.disconnect()
                connection.connect()
                self._too_old(connection)  # notes the birth of the new socket
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        super().release(connection)
        with self._counting:
            self._busy = max(0, self._busy - 1)

    def _too_old(self, connection: Any) -> bool:
        """Whether its socket is past its lifetime; a socket seen for the first time is new."""
        now = time.monotonic()
        sock, born = self._born.get(id(connection), (None, now))
        if sock is not connection._sock:
            self._born[id(connection)] = (connection._sock, now)
            return False
        return now - born > self._lifetime
