"""Prometheus metrics (``pip install 'vecferry[metrics]'``) of a service and of migrations.

    metrics = PrometheusMetrics()
    kb = vf.FallbackCollection(LOCAL, CLOUD, embedder=model, listeners=[metrics])
    vf.migrate(SOURCE, TARGET, on_progress=metrics.progress("questions"))

``examples/grafana-dashboard.json`` shows them. Serve them as any Prometheus metrics
(``prometheus_client.start_http_server``, ``make_asgi_app``); this module opens no port.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vecferry.errors import MissingDependencyError

_COUNTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "searches": ("searches_total", "Searches answered by a side", ("side",)),
    "fallbacks": ("fallbacks_total", "A side was passed over, by cause", ("side", "cause")),
    "errors": ("errors_total", "Exceptions of a side, by class", ("side", "error")),
    "unanswered": ("unanswered_total", "Searches that no side could answer", ()),
    "initialisations": ("initialisations_total", "A side was opened, or could not be", ("side", "result")),
    "writes": ("dual_writes_total", "Writes to a side: ok, missed or failed", ("side", "result")),
    "replayed": ("replayed_total", "Missed records that were made up for", ()),
    "query_embeddings": ("query_embeddings_total", "Questions embedded", ("provider", "result")),
    "query_embedding_usd": ("query_embedding_usd_total", "US dollars for questions", ("provider",)),
    "synced": ("synced_records_total", "Records brought up to date, by action", ("action",)),
}
_LATENCY = "search_seconds"
_QUERY_LATENCY = "query_embedding_seconds"
_MIGRATION = {
    "done": ("migration_records_total", "Records that went through a stage"),
    "written": ("migration_written_total", "Records the target acknowledged"),
    "rejected": ("migration_rejected_total", "Records that were refused"),
    "bytes": ("migration_bytes_total", "Bytes the target acknowledged"),
}
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PrometheusMetrics:
    """A listener that counts in Prometheus. Thread-safe; one per registry.

    Args:
        registry: a ``CollectorRegistry``; by default the process's own.
        prefix: the first word of every name.

    Raises:
        MissingDependencyError: without prometheus-client.
    """

    def __init__(self, registry: Any = None, *, prefix: str = "vecferry") -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram
        except ImportError:
            raise MissingDependencyError("Prometheus metrics", "metrics") from None
        registry = REGISTRY if registry is None else registry
        self._counters = {
            event: Counter(f"{prefix}_{name}", text, labels, registry=registry)
            for event, (name, text, labels) in _COUNTERS.items()
        }
        self._latency = Histogram(
            f"{prefix}_{_LATENCY}", "Latency of searches", ("side",), registry=registry, buckets=BUCKETS
        )
        self._query_latency = Histogram(
            f"{prefix}_{_QUERY_LATENCY}", "Latency of embedding questions, the cache included",
            ("provider",), registry=registry, buckets=BUCKETS,
        )  # fmt: skip
        self._migration = {
            key: Counter(f"{prefix}_{name}", text, ("job", "stage"), registry=registry)
            for key, (name, text) in _MIGRATION.items()
        }
        self._expected = Gauge(
            f"{prefix}_migration_expected", "Records a stage is expected to see", ("job", "stage"),
            registry=registry,
        )  # fmt: skip

    def __call__(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        """Take one event of `vecferry.serving.Counters`; unknown ones are passed over."""
        if name == _LATENCY:
            self._latency.labels(**labels).observe(amount)
        elif name == _QUERY_LATENCY:
            self._query_latency.labels(**labels).observe(amount)
        elif name in self._counters:
            counter = self._counters[name]
            (counter.labels(**labels) if labels else counter).inc(amount)

    def progress(self, job: str, then: Callable[[Any], None] = lambda _: None) -> Callable[[Any], None]:
        """An ``on_progress`` listener that counts a migration as ``job`` and hands on to ``then``."""
        before: dict[tuple[str, str], float] = {}

        def listen(progress: Any) -> None:
            stage = str(progress.stage)
            for key, counter in self._migration.items():
                now = float(getattr(progress, key))
                grown = now - before.get((stage, key), 0.0)
                before[(stage, key)] = now
                # A stage that starts again counts from zero.
                counter.labels(job, stage).inc(grown if grown >= 0 else now)
            if progress.total is not None:
                self._expected.labels(job, stage).set(progress.total)
            then(progress)

        return listen
