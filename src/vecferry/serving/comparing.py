"""`compare`: the same queries on two collections: how fast, how alike, at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vecferry.errors import MissingDependencyError, PlanError
from vecferry.model import Where, encode_id
from vecferry.ports import Embedder, for_queries

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Run:
    """One side's answers.

    Attributes:
        seconds: latency of each query, in order; embedding the query is part of it.
        errors: queries that failed, with the first reason.
        cost: of one query, in the currency of the prices given; ``None`` if unknown.
    """

    name: str
    seconds: list[float]
    errors: int = 0
    reason: str = ""
    cost: float | None = None

    def percentile(self, percent: float) -> float:
        """Seconds, by the nearest-rank method."""
        ordered = sorted(self.seconds)
        rank = max(1, -(-len(ordered) * percent // 100))
        return ordered[int(rank) - 1] if ordered else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Two sides, query by query.

    Attributes:
        overlaps: for each query, the share of the hits that both sides name.
        same_first: the share of queries whose best hit is the same.
    """

    a: Run
    b: Run
    k: int
    overlaps: list[float] = field(default_factory=list)
    same_first: float = 0.0

    @property
    def overlap(self) -> float:
        """The mean of `overlaps`."""
        return sum(self.overlaps) / len(self.overlaps) if self.overlaps else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        sides = {
            run.name: {
                **{f"p{p}": run.percentile(p) for p in PERCENTILES},
                "queries": len(run.seconds),
                "errors": run.errors,
                "cost_per_query": run.cost,
            }
            for run in (self.a, self.b)
        }
        return {"k": self.k, "sides": sides, "overlap": self.overlap, "same_first": self.same_first}

    def __str__(self) -> str:
        lines = [
            f"{'':<24}" + "".join(f"{f'p{p}':>10}" for p in PERCENTILES) + f"{'errors':>8}{'cost':>12}"
        ]
        for run in (self.a, self.b):
            times = "".join(f"{run.percentile(p) * 1000:>7.1f} ms" for p in PERCENTILES)
            cost = "?" if run.cost is None else f"{run.cost:.6f}"
            lines.append(f"{run.name[-24:]:<24}{times}{run.errors:>8}{cost:>12}")
        lines.append(f"overlap@{self.k} {self.overlap:.3f}, same best hit {self.same_first:.3f}")
        return "\n".join(lines)

    def plot(self, path: Path | str) -> None:
        """Latency distributions and overlaps as a picture (PNG, SVG or PDF by the name).

        Raises:
            MissingDependencyError: without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingDependencyError("a plot", "plot") from None
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for run in (self.a, self.b):
            ordered = sorted(1000 * s for s in run.seconds)
            shares = [(i + 1) / len(ordered) for i in range(len(ordered))]
            left.step(ordered, shares, where="post", label=run.name)
        left.set(xlabel="latency [ms]", ylabel="share of queries", xscale="log", title="latency")
        left.legend()
        right.hist(self.overlaps, bins=[(i - 0.5) / self.k for i in range(self.k + 2)])
        right.set(xlabel=f"overlap of the first {self.k}", ylabel="queries", title="agreement")
        figure.savefig(path)


def compare(
    a: Any,
    b: Any,
    queries: Sequence[Any],
    *,
    k: int = 10,
    where: Where | None = None,
    names: tuple[str, str] = ("a", "b"),
    embedders: tuple[Embedder | None, Embedder | None] = (None, None),
    prices: tuple[float | None, float | None] = (None, None),
    repeat: int = 1,
    warm_up: int = 3,
    key: Callable[[Any], Any] | None = None,
) -> Comparison:
    """Ask both sides the same queries, alternately, so that a noisy neighbour hits both.

    Args:
        a, b: anything with ``search(query, k, where)``.
        queries: texts or vectors. Texts are embedded by a side's embedder, or by the store itself.
        prices: cost of one query on each side.
        repeat: how often all queries are asked.
        key: what must be equal for two hits to be the same; by default the id. For collections with
            different ids: ``lambda hit: hit.text``.

    Raises:
        PlanError: if there are no queries.
    """
    if not queries:
        raise PlanError("there is no query to compare by; give at least one text or vector")
    same = key or (lambda hit: encode_id(hit.id))
    sides = [_Asked(side, embedder, k, where) for side, embedder in zip((a, b), embedders, strict=True)]
    for query in list(queries)[:warm_up]:
        for side in sides:
            side.ask(query, record=False)
    overlaps, first = [], 0
    for turn in range(repeat):
        for number, query in enumerate(queries):
            order = sides if (number + turn) % 2 == 0 else sides[::-1]
            answers = {id(side): side.ask(query) for side in order}
            left, right = ([same(hit) for hit in answers[id(side)] or []] for side in sides)
            if None in answers.values() or turn:
                continue
            overlaps.append(len({*left} & {*right}) / max(len({*left}), len({*right}), 1))
            first += left[:1] == right[:1]
    runs = [
        Run(name, side.seconds, side.errors, side.reason, price)
        for name, side, price in zip(names, sides, prices, strict=True)
    ]
    return Comparison(runs[0], runs[1], k, overlaps, first / len(overlaps) if overlaps else float("nan"))


class _Asked:
    """A side that is being timed."""

    def __init__(self, side: Any, embedder: Embedder | None, k: int, where: Where | None) -> None:
        queries: Any = getattr(embedder, "for_queries", None)
        self._embedder: Embedder | None = queries() if queries else embedder
        self._side, self._k, self._where = side, k, where
        self.seconds: list[float] = []
        self.errors, self.reason = 0, ""

    def ask(self, query: Any, *, record: bool = True) -> list[Any] | None:
        """The hits, ``None`` if the search failed."""
        start = time.perf_counter()
        try:
            asked = query
            if self._embedder and isinstance(query, str):
                asked = for_queries(self._embedder).embed([query])[0]
            hits: list[Any] = self._side.search(asked, self._k, self._where)
        except Exception as error:  # noqa: BLE001 - a failed query is a result
            self.errors += record
            self.reason = self.reason or f"{type(error).__name__}: {error}"
            return None
        if record:
            self.seconds.append(time.perf_counter() - start)
        return hits
