"""The registry of one process and the documented metric names that both HTTP faces share."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from bazaruto.database import Pool

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "OTHER"  # one label for every method that is not in METHODS
UNMATCHED = "unmatched"  # one label for every path that no route knows
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class _Requests(Collector):
    """http_requests_total and http_request_duration_seconds, counted under one lock: it is in every request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, int], int] = {}
        self._buckets: dict[tuple[str, str], list[int]] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def observe(self, method: str, template: str, status: int, seconds: float) -> None:
        bucket = bisect_left(BUCKETS, seconds)
        kind = (method, template)
        with self._lock:
            self._counts[method, template, status] = self._counts.get((method, template, status), 0) + 1
            if kind not in self._buckets:
                self._buckets[kind] = [0] * (len(BUCKETS) + 1)
                self._sums[kind] = 0.0
            self._buckets[kind][bucket] += 1
            self._sums[kind] += seconds

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            counts = dict(self._counts)
            buckets = {kind: list(values) for kind, values in self._buckets.items()}
            sums = dict(self._sums)
        requests = CounterMetricFamily("http_requests_total", "Requests answered", labels=["method", "path", "status"])
        for (method, template, status), count in counts.items():
            requests.add_metric([method, template, str(status)], count)
        yield requests
        durations = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Seconds from a request's arrival in a thread to its answer",
            labels=["method", "path"],
        )
        for kind, values in buckets.items():
            durations.add_metric(list(kind), _cumulative(values), sums[kind])
        yield durations


def _cumulative(values: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, value in zip([*map(str, BUCKETS), "+Inf"], values, strict=True):
        total += value
        buckets.append((bound, float(total)))
    return buckets


class Metrics:
    """What one process measures; every label is bounded: route templates, known methods, status codes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = _Requests()
        self.registry.register(self._requests)

    def observe(self, method: str, template: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        label = method if method in METHODS else OTHER_METHOD
        self._requests.observe(label, template, status, seconds)

    def watch_database(self, pool: Pool) -> None:
        """Show this pool as database_connections_active and database_connections_max."""
        active = Gauge("database_connections_active", "Connections in use", registry=self.registry)
        active.set_function(lambda: float(pool.in_use))
        maximum = Gauge("database_connections_max", "Connections the pool may open", registry=self.registry)
        maximum.set_function(lambda: float(pool.max_size))

    def watch_redis(self, connections_in_use: Callable[[], int]) -> None:
        """Show a Redis pool as redis_connections_active."""
        active = Gauge("redis_connections_active", "Connections in use", registry=self.registry)
        active.set_function(lambda: float(connections_in_use()))

    def add_collector(self, collector: Collector) -> None:
        """Serve what this collector yields too; it must be quick, and bounded when its source hangs."""
        self.registry.register(collector)

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
