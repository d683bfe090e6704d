"""Plain counters of what a service does, and events for whoever exports them.

No dependency: `Counters` keeps counters and latency histograms in the process. A listener sees the same
events one by one; `vecferry.contrib.prometheus.PrometheusMetrics` is one.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_log = logging.getLogger("vecferry.serving")

Listener: TypeAlias = Callable[[str, float, Mapping[str, str]], None]
"""Called with the name of an event, its amount, and its labels. What it raises is logged; it must not take
long."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, as Prometheus clients use them."""


@dataclass
class Histogram:
    """Latencies in `BUCKETS`: ``counts[i]`` fell below ``BUCKETS[i]``, the last above all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def percentile(self, share: float) -> float:
        """Seconds below which ``share`` (0 to 1) of the calls fell, interpolated within a bucket."""
        rank, seen, low = share * self.count, 0, 0.0
        for high, n in zip((*BUCKETS, BUCKETS[-1]), self.counts, strict=True):
            if n and seen + n >= rank:
                return low + (high - low) * (rank - seen) / n
            seen, low = seen + n, high
        return low


class Counters:
    """Counters by name and labels. Thread-safe.

    ========================  ==================  ================================================
    name                      labels              counts
    ========================  ==================  ================================================
    ``searches``              side                searches answered by this side
    ``search_seconds``        side                latency of those (histogram)
    ``fallbacks``             side, cause         a side that was passed over, and why
    ``errors``                side, error         exceptions by class
    ``unanswered``                                searches that no side could answer
    ``initialisations``       side, result        a side was opened (``ok``, or the cause it was not)
    ``writes``                side, result        dual writes: ``ok``, ``missed``, ``failed``
    ``replayed``                                  missed records that were made up for
    ``synced``                action              records ``added``, ``changed``, ``deleted``
    ========================  ==================  ================================================
    """

    def __init__(self, *listeners: Listener) -> None:
        self._counters: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._latencies: dict[str, Histogram] = {}
        self._listeners = listeners
        self._lock = threading.Lock()

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[(name, tuple(sorted(labels.items())))] += amount  # type: ignore[assignment]
        self._tell(name, amount, labels)

    def time(self, side: str, seconds: float) -> None:
        """A search that ``side`` answered."""
        with self._lock:
            self._latencies.setdefault(side, Histogram()).add(seconds)
        self._tell("search_seconds", seconds, {"side": side})

    def get(self, name: str, **labels: str) -> float:
        """The sum of all counters of that name that carry at least these labels."""
        wanted = set(labels.items())
        with self._lock:
            return sum(
                n for (known, have), n in self._counters.items() if known == name and wanted <= {*have}
            )

    def latency(self, side: str) -> Histogram:
        """The latencies of one side."""
        with self._lock:
            return self._latencies.get(side) or Histogram()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON: ``{name: {"label=value,…": count}}``, latencies in seconds."""
        with self._lock:
            counters, latencies = dict(self._counters), dict(self._latencies)
        result: dict[str, Any] = {}
        for (name, labels), n in sorted(counters.items()):
            result.setdefault(name, {})[",".join(f"{k}={v}" for k, v in labels)] = n
        result["latency"] = {
            side: {"count": h.count, "p50": h.percentile(0.5), "p95": h.percentile(0.95)}
            for side, h in latencies.items()
        }
        return result

    def _tell(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        for listener in self._listeners:
            try:
                listener(name, amount, labels)
            except Exception:  # noqa: BLE001 - a search matters more than its figures
                _log.exception("a listener of figures failed; the search goes on")
