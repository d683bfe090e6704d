"""Measuring two ways to do one thing, side by side.

The two run alternately, each first in every other round, so that a noisy neighbour and a disk that writes
late hit both. What counts is the median of the ratios of each round.
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

    def rate(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Units a second, of one run."""
        self.before()
        gc.collect()
        start = clock()
        units = self.run()
        return units / (clock() - start)


def compare(
    title: str,
    limit: Side,
    ours: Side,
    *,
    goal: float,
    rounds: int = 6,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Print and return ours ÷ limit in units a second: the median of ``rounds`` pairs of runs."""
    pairs = []
    for round_ in range(rounds):
        if round_ % 2:
            mine = ours.rate(clock)
            pairs.append((limit.rate(clock), mine))
        else:
            pairs.append((limit.rate(clock), ours.rate(clock)))
    low, high = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(high / low for low, high in pairs)
    ratio = statistics.median(ratios)
    verdict = "ok" if ratio >= goal else "BELOW"
    print(f"{title}\n  {limit.name:<44}{low:>14,.0f} /s\n  {ours.name:<44}{high:>14,.0f} /s")
    spread = f"rounds {ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"  ratio {ratio:.2f} ({spread}; goal ≥ {goal:.2f})  {verdict}\n", flush=True)
    return ratio
