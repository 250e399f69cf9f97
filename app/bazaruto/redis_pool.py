"""A Redis client whose pool has what redis-py's lacks: a minimum, a maximum lifetime, and a caretaker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from bazaruto import logs
from bazaruto.config import RedisSettings

CARE_SECONDS = 30.0  # how often idle connections are looked after, well under the server's `timeout 300`

log = logs.get(__name__)


class Pool(BlockingConnectionPool):
    """At most max_connections, at least min_connections kept open, none older than max_lifetime.

    Every half minute idle connections are asked for a sign of life, so that the server's own idle timeout
    does not close them.
    """

    def __init__(
        self, *, min_connections: int, max_lifetime: float, care_seconds: float | None = None, **rest: Any
    ) -> None:
        self._minimum = min_connections
        self._lifetime = max_lifetime
        self._care_seconds = CARE_SECONDS if care_seconds is None else care_seconds
        self._born: dict[Any, tuple[Any, float]] = {}  # connection → (its socket, since when)
        self._given = 0
        self._counting = threading.Lock()
        self._ended = threading.Event()
        parent: Any = super()  # redis-py's pools have no types
        parent.__init__(**rest)
        self._caretaker = threading.Thread(target=self._care_for_ever, name="redis-pool", daemon=True)
        self._caretaker.start()

    @property
    def in_use(self) -> int:
        """Connections given away at the moment."""
        return self._given

    @property
    def open_connections(self) -> int:
        """Connections with a socket, given away or not."""
        return sum(connection._sock is not None for connection in list(self._connections))

    def get_connection(self, *_: Any, **__: Any) -> Any:
        """A connection that is open and young enough."""
        parent: Any = super()
        connection = parent.get_connection()
        with self._counting:
            self._given += 1
        try:
            self._renew_when_old(connection)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        with self._counting:
            self._given = max(0, self._given - 1)
        parent: Any = super()
        parent.release(connection)

    def close(self) -> None:
        """Close every connection and let the caretaker go."""
        self._ended.set()
        super().close()

    def care(self) -> None:
        """Look after each idle connection once: its age, its life, and that there are enough of them."""
        for connection in self._idle():
            if not self._take(connection):
                continue  # somebody uses it: it is well
            try:
                if connection._sock is not None:
                    self._renew_when_old(connection)
                    connection.send_command("PING", check_health=False)
                    connection.read_response()
                elif self.open_connections < self._minimum:
                    connection.connect()
            except (RedisError, OSError) as error:
                connection.disconnect()
                log.debug("an idle redis connection was lost", error=str(error))
            finally:
                self._put_back(connection)
        self._open_the_minimum()

    def _open_the_minimum(self) -> None:
        missing = self._minimum - self.open_connections
        taken: list[Any] = []
        try:
            for _ in range(missing):
                taken.append(self.get_connection())
        except (RedisError, OSError) as error:
            log.debug("redis connections cannot be opened", error=str(error))
        finally:
            for connection in taken:
                self.release(connection)

    def _care_for_ever(self) -> None:
        self._open_the_minimum()
        while not self._ended.wait(self._care_seconds):
            self.care()

    def _renew_when_old(self, connection: Any) -> None:
        now = time.monotonic()
        sock, born = self._born.get(connection, (None, now))
        if sock is connection._sock and now - born > self._lifetime:
            connection.disconnect()
            connection.connect()
        if sock is not connection._sock:
            self._born[connection] = (connection._sock, now)

    def _idle(self) -> list[Any]:
        with self.pool.mutex:
            return [connection for connection in self.pool.queue if connection is not None]

    def _take(self, connection: Any) -> bool:
        with self.pool.mutex:
            if connection not in self.pool.queue:
                return False
            self.pool.queue.remove(connection)
            return True

    def _put_back(self, connection: Any) -> None:
        """Below the others, as it was not used."""
        with self.pool.mutex:
            self.pool.queue.insert(0, connection)
            self.pool.not_empty.notify()


def open_redis(url: str, settings: RedisSettings, client_name: str) -> tuple[redis.Redis, Pool]:
    """A client and its pool; nothing fails here when Redis is away, only what uses it, within `timeout`."""
    pool: Pool = Pool.from_url(
        url,
        min_connections=settings.min_connections,
        max_connections=settings.max_connections,
        max_lifetime=settings.max_lifetime,
        timeout=settings.timeout,
        socket_timeout=settings.timeout,
        socket_connect_timeout=settings.timeout,
        decode_responses=True,
        client_name=client_name,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    return redis.Redis(connection_pool=pool), pool


def probe(url: str, settings: RedisSettings, client_name: str) -> Callable[[], None]:
    """A health check with a connection of its own, so that a busy pool is not mistaken for a dead server."""
    client: redis.Redis = redis.Redis.from_url(
        url,
        socket_timeout=settings.timeout,
        socket_connect_timeout=settings.timeout,
        client_name=client_name,
        max_connections=1,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )

    def ask() -> None:
        client.ping()

    return ask
