"""Measuring two ways to do one thing, side by side.

The two run alternately, so that a noisy neighbour hits both; the ratio of the medians is what counts.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """One way: ``run`` does the work and returns how many units (rows, hits) it did."""

    name: str
    run: Callable[[], int]
    before: Callable[[], object] = lambda: None


def compare(title: str, limit: Side, ours: Side, *, goal: float, rounds: int = 5) -> float:
    """Print and return ours ÷ limit in units a second (medians of ``rounds`` alternating runs)."""
    rates: dict[str, list[float]] = {limit.name: [], ours.name: []}
    for _ in range(rounds):
        for side in (limit, ours):
            side.before()
            gc.collect()
            start = time.perf_counter()
            units = side.run()
            rates[side.name].append(units / (time.perf_counter() - start))
    low, high = statistics.median(rates[limit.name]), statistics.median(rates[ours.name])
    ratio = high / low
    verdict = "ok" if ratio >= goal else "BELOW"
    print(f"{title}\n  {limit.name:<44}{low:>14,.0f} /s\n  {ours.name:<44}{high:>14,.0f} /s")
    print(f"  ratio {ratio:.2f}  (goal ≥ {goal:.2f})  {verdict}\n", flush=True)
    return ratio
