"""Near-duplicate vectors: cosine at least ``threshold`` to something kept before.

A record near to an earlier *kept* one is a duplicate of the nearest; else it is kept itself. Everything is
compared exactly while little is kept; beyond `EXACT` vectors an inverted file with 4-bit product codes
(FAISS ``IVF,PQ…x4fs``; F. André et al., "Quicker ADC", 2019) proposes a few candidates, which are compared
exactly. What is decided depends on the records and their order, not on the batches they come in:
the index is extended after fixed numbers of records.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from vecferry.dedupe.matchers import APART, NEW, Features, Verdicts, by_group
from vecferry.dedupe.spill import Rows
from vecferry.errors import MissingDependencyError
from vecferry.model.vectors import Array

EXACT = 4096
"""Kept vectors of one group up to which all are compared."""
_BLOCK = 2048
_GROWTH = 8
_CANDIDATES = 4
_SUBVECTORS = (8, 4)
_SAMPLE_EVERY = 251
_SAMPLES_AT_ONCE = 128
_SAMPLE_BLOCK = 8192
_LAST = np.iinfo(np.int64).max
_LEAST_RECALL = 0.998
ROUNDING = 1e-6
"""Cosines closer to each other than this are equal: the rounding of float32 vectors."""
UNSURE = 1e-5
"""Products closer to the threshold than this are computed again in float64, free of BLAS's order."""
_WIDTH = 64
_LEAST_DIM = 2 * _WIDTH
_LEARN_FROM = 512
_ROWS_AT_ONCE = 256
_WORTH_IT = 4


class SimilarMatcher:
    """Cosine at least ``threshold``, give or take 1e-6, the rounding of float32 vectors.

    Beyond `EXACT` vectors it holds about ``dim / 16 + 24`` bytes a kept vector in memory, and the vectors
    themselves in a temporary file.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._kept: Rows | None = None
        self._groups: dict[int, _Neighbours] = {}

    @property
    def sample(self) -> tuple[int, int]:
        """Of a sample compared with everything: duplicates the index found, and all there were."""
        groups = self._groups.values()
        for group in groups:
            group.evaluate()
        return sum(g.sample_found for g in groups), sum(g.sample_all for g in groups)

    def match(self, features: Features) -> Verdicts:
        entries = np.full(len(features), APART, dtype=np.int64)
        scores = np.zeros(len(features), dtype=np.float32)
        new: list[Array] = []
        ordinals: list[int] = []
        seen: dict[str, int] = {}
        for name, rows in by_group(features):
            group = self._group(name, features.values.shape[1])
            before = group.seen
            entries[rows], scores[rows] = group.match(features.values[rows])
            fresh = np.flatnonzero(entries[rows] == NEW)
            new.append(rows[fresh])
            ordinals += (before + fresh).tolist()
            seen[str(name)] = group.seen
        order = np.concatenate(new) if new else np.empty(0, np.int64)
        return Verdicts(entries, order, scores, {"ordinals": ordinals, "seen": seen})

    def load(self, features: Features, notes: dict[str, Any]) -> None:
        ordinals = np.array(notes.get("ordinals", ()), dtype=np.int64)
        for name, rows in by_group(features):
            group = self._group(name, features.values.shape[1])
            group.load(features.values[rows], ordinals[rows])
        for name, seen in notes.get("seen", {}).items():
            if int(name) in self._groups:
                self._groups[int(name)].see(seen)

    def _group(self, name: int, dim: int) -> _Neighbours:
        if self._kept is None:
            self._kept = Rows(np.float32, dim)
        if name not in self._groups:
            self._groups[name] = _Neighbours(self.threshold, self._kept)
        return self._groups[name]


class _Neighbours:
    """The kept vectors of one group: ``indexed`` ones, and those since the last extension."""

    def __init__(self, threshold: float, kept: Rows) -> None:
        self.threshold, self._kept = threshold, kept
        self.seen = 0
        self.sample_found = self.sample_all = 0
        self._samples: list[tuple[Array, float, int]] = []
        self._index: Any = None
        self._trained = 0
        self._indexed: list[Array] = []
        self._recent = Nearby(kept.width, threshold)
        self._numbers = np.empty(0, np.int64)

    # -- deciding -----------------------------------------------------------------------------

    def match(self, vectors: Array) -> tuple[Array, Array]:
        """Entries and scores of ``(n, dim)`` vectors of unit length."""
        entries = np.full(len(vectors), NEW, dtype=np.int64)
        scores = np.zeros(len(vectors), dtype=np.float32)
        start = 0
        while start < len(vectors):
            stop = min(len(vectors), start + _BLOCK - self.seen % _BLOCK)
            entries[start:stop], scores[start:stop] = self._match(vectors[start:stop])
            self.see(self.seen + stop - start)
            start = stop
        return entries, scores

    def _match(self, vectors: Array) -> tuple[Array, Array]:
        entries, scores = self._nearest_indexed(vectors)
        rows, columns, alike = self._recent.near(vectors)
        inside = columns >= len(self._recent)
        for row, column, cosine in _best(rows[~inside], columns[~inside], alike[~inside]):
            if entries[row] == NEW or cosine > scores[row] + ROUNDING:  # those in the index came first
                entries[row], scores[row] = self._numbers[column], cosine
        block = columns[inside] - len(self._recent)
        first = len(self._kept)
        twins = _within(rows[inside], block, alike[inside], entries, scores)
        fresh = np.flatnonzero(entries == NEW)
        places = np.array(list(twins.values()), dtype=np.int64)
        entries[list(twins)] = first + np.searchsorted(fresh, places)
        self._kept.append(vectors[fresh])
        self._recent.keep(fresh)
        self._number(first, len(fresh))
        return entries, scores

    def _nearest_indexed(self, vectors: Array) -> tuple[Array, Array]:
        """The nearest vector in the index, where it is near enough."""
        entries = np.full(len(vectors), NEW, dtype=np.int64)
        if self._index is None:
            return entries, np.zeros(len(vectors), dtype=np.float32)
        _, places = self._index.search(vectors, _CANDIDATES)
        members = self._members()
        numbers = members[places]  # where a place is -1 this is some vector, compared as any other
        found = self._kept.take(numbers.ravel()).reshape(*numbers.shape, -1)
        exact = np.einsum("ijk,ik->ij", found, vectors)
        scores = exact.max(axis=1)
        best = np.where(exact >= scores[:, None] - ROUNDING, numbers, _LAST).argmin(axis=1)
        every = np.arange(len(vectors))
        near = scores >= self.threshold
        unsure = np.flatnonzero(np.abs(scores - self.threshold) < UNSURE)
        near[unsure] = near_enough(vectors[unsure], found[unsure, best[unsure]], self.threshold)
        entries[near] = numbers[every, best][near]
        self._measure(vectors, scores, members)
        return entries, np.where(near, scores, 0.0).astype(np.float32)

    # -- remembering --------------------------------------------------------------------------

    def _number(self, first: int, count: int) -> None:
        self._numbers = np.concatenate([self._numbers, np.arange(first, first + count)])

    def load(self, vectors: Array, ordinals: Array) -> None:
        """Remember vectors kept by an earlier run, extending the index where that run did."""
        blocks = ordinals // _BLOCK
        for block in np.unique(blocks):
            self.see(int(block) * _BLOCK)
            again = vectors[blocks == block]
            self._recent.add(again)
            self._number(self._kept.append(again), len(again))

    def see(self, seen: int) -> None:
        """So many records were looked at: extend the index if that completes a block."""
        complete = seen // _BLOCK > self.seen // _BLOCK
        self.seen = max(seen, self.seen)
        total = self._members_count() + len(self._recent)
        if not complete or total <= EXACT:
            return
        self._indexed.append(self._numbers)
        if total >= _GROWTH * self._trained:
            self._index = _build(self._kept.ascending(self._members()), self.threshold)
            self._trained = total
        else:
            self._index.add(self._recent.vectors)
        self._recent.clear()
        self._numbers = self._numbers[:0]

    def _members_count(self) -> int:
        return sum(map(len, self._indexed))

    def _members(self) -> Array:
        """The numbers of the vectors in the index, in the order they were added."""
        if len(self._indexed) > 1:
            self._indexed = [np.concatenate(self._indexed)]
        return self._indexed[0] if self._indexed else np.empty(0, np.int64)

    def _measure(self, vectors: Array, scores: Array, members: Array) -> None:
        """Put every 251st record aside, to compare it with everything and know the recall of the index."""
        for row in np.flatnonzero((np.arange(len(vectors)) + self.seen) % _SAMPLE_EVERY == 0):
            self._samples.append((vectors[row].copy(), float(scores[row]), len(members)))
        if len(self._samples) >= _SAMPLES_AT_ONCE:
            self.evaluate()

    def evaluate(self) -> None:
        """Compare the records put aside with everything that the index held when they were looked up."""
        if not self._samples:
            return
        probes, scores, sizes = (np.array(column) for column in zip(*self._samples, strict=True))
        best = np.full(len(probes), -2.0)
        members = self._members()
        for start in range(0, int(sizes.max()), _SAMPLE_BLOCK):
            products = self._kept.ascending(members[start : start + _SAMPLE_BLOCK]) @ probes.T
            products[np.arange(start, start + len(products))[:, None] >= sizes] = -2.0
            np.maximum(best, products.max(axis=0), out=best)
        due = best >= self.threshold + ROUNDING
        self.sample_all += int(due.sum())
        self.sample_found += int((due & (scores >= self.threshold - ROUNDING)).sum())
        self._samples.clear()


def _runs(rows: Array) -> Iterator[tuple[int, int, int]]:
    """Each row of a sorted list, with the slice in which it stands."""
    edges = np.flatnonzero(np.diff(rows, prepend=-1, append=-1)).tolist()
    for start, stop in pairwise(edges):
        yield int(rows[start]), start, stop


def _earliest_best(alike: Array) -> int:
    """The first that is as good as the best, whatever order BLAS has summed in."""
    return int(np.argmax(alike >= alike.max() - ROUNDING))


def _best(rows: Array, columns: Array, alike: Array) -> Iterator[tuple[int, int, float]]:
    """The best column of each row, and its cosine."""
    for row, start, stop in _runs(rows):
        best = start + _earliest_best(alike[start:stop])
        yield row, int(columns[best]), float(alike[best])


def _within(rows: Array, columns: Array, alike: Array, entries: Array, scores: Array) -> dict[int, int]:
    """Within one block: the earlier kept row that each row duplicates.

    In ``entries`` such a row counts as removed, by a number to be filled in; ``scores`` has its cosine.
    """
    twins: dict[int, int] = {}
    for row, start, stop in _runs(rows):
        stays = np.flatnonzero(entries[columns[start:stop]] == NEW)
        if not len(stays):
            continue
        best = start + int(stays[_earliest_best(alike[start:stop][stays])])
        if entries[row] == NEW or alike[best] > scores[row] + ROUNDING:
            twins[row], entries[row], scores[row] = int(columns[best]), 0, alike[best]
    return twins


def _build(vectors: Array, threshold: float) -> Any:
    """An inverted file of all vectors ``(n, dim)``, its search width chosen on the data themselves."""
    try:
        import faiss
    except ImportError:
        raise MissingDependencyError('Dedupe(by="similar")', "dedupe") from None
    n, dim = vectors.shape
    lists = 2 ** int(np.log2(2 * np.sqrt(n)))
    quantizer, metric = faiss.IndexFlatIP(dim), faiss.METRIC_INNER_PRODUCT
    index: Any
    share = next((share for share in _SUBVECTORS if dim % share == 0), None)
    if share is None:
        codec = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, codec, metric)
    else:
        index = faiss.IndexIVFPQFastScan(quantizer, dim, lists, dim // share, 4, metric)
        index.by_residual = False
        index.pq.cp.niter, index.pq.cp.seed = 4, 1
    index.cp.niter, index.cp.seed = 6, 1
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 40
    index.train(vectors)
    index.add(vectors)
    index.nprobe = _search_width(quantizer, vectors, threshold, lists)
    return index


def _search_width(quantizer: Any, vectors: Array, threshold: float, lists: int) -> int:
    """The least power of two of lists in which vectors at the threshold find each other.

    Each of a sample is moved towards another one until their cosine is the threshold.
    """
    random = np.random.default_rng(1)
    rows = random.choice(len(vectors), size=min(1024, len(vectors)), replace=False)
    here, there = vectors[rows], vectors[random.permutation(rows)]
    aside = there - np.einsum("ij,ij->i", here, there)[:, None] * here
    lengths = np.linalg.norm(aside, axis=1, keepdims=True)
    aside /= np.where(lengths > 0, lengths, 1)
    moved = (threshold * here + np.sqrt(max(0.0, 1 - threshold**2)) * aside).astype(np.float32)
    home = quantizer.search(here, 1)[1]
    ranked = quantizer.search(moved, min(lists, 64))[1]
    rank = np.where((ranked == home).any(axis=1), (ranked == home).argmax(axis=1), lists)
    needed = int(np.quantile(rank, _LEAST_RECALL, method="higher")) + 1
    return min(lists, 1 << max(1, needed - 1).bit_length())


# -- exact pairs -------------------------------------------------------------------------------


class Nearby:
    """A list of unit vectors, ``(n, dim)`` float32, to which some of each block looked at are added.

    Each block is compared with everything in the list exactly, but most pairs by a bound only.
    Write a unit vector x as its part in a subspace, p = Qᵀx with orthonormal columns Q, and the length
    r of the rest. By Cauchy and Schwarz x·y ≤ p·p' + r r', which is the product of the two *sketches*
    (p, r). A pair whose sketches multiply to less than the threshold is not near, and needs no look at
    all components.
    Where the subspace holds much of the vectors' length, hardly any other pairs remain. It is found by
    subspace iteration (N. Halko, P. Martinsson, J. Tropp, "Finding structure with randomness", 2011).
    """

    def __init__(self, dim: int, threshold: float) -> None:
        self._threshold = threshold
        self._count = 0
        self._vectors = np.empty((0, dim), np.float32)
        self._sketches = np.empty((0, _WIDTH), np.float32)
        self._basis: Array | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def vectors(self) -> Array:
        """Those in the list, ``(n, dim)``."""
        return self._vectors[: self._count]

    def near(self, block: Array) -> tuple[Array, Array, Array]:
        """Pairs of a row of ``block`` and something earlier whose cosine is at least the threshold.

        Returns:
            row, column and cosine of each pair, by row and then by column. Columns below ``len(self)``
            are vectors of the list, those from there on are rows of the block itself.
        """
        self._append(block)
        parts = [
            self._pairs(start, min(start + _ROWS_AT_ONCE, len(block)))
            for start in range(0, len(block), _ROWS_AT_ONCE)
        ]
        rows, columns, alike = (np.concatenate(part) for part in zip(*parts, strict=True))
        certain = self._settle(rows, columns, alike)
        return rows[certain], columns[certain], alike[certain]

    def keep(self, rows: Array) -> None:
        """Add these rows of the block that `near` was given last."""
        at = slice(self._count, self._count + len(rows))
        self._vectors[at] = self._vectors[self._count + rows]
        self._sketches[at] = self._sketches[self._count + rows]
        self._count += len(rows)

    def add(self, vectors: Array) -> None:
        """Add vectors that were kept before."""
        self._append(vectors)
        self._count += len(vectors)

    def clear(self) -> None:
        """Empty the list."""
        self._count = 0

    # -- helpers ------------------------------------------------------------------------------

    def _append(self, block: Array) -> None:
        """Put the block behind the list, without counting it."""
        stop = self._count + len(block)
        if stop > len(self._vectors):
            self._vectors = _grown(self._vectors, self._count, stop)
            self._sketches = _grown(self._sketches, self._count, stop)
        self._vectors[self._count : stop] = block
        if self._basis is None and stop >= _LEARN_FROM and block.shape[1] >= _LEAST_DIM:
            self._basis = _main_directions(self._vectors[:stop], _WIDTH - 1)
            self._sketches[: self._count] = _sketches(self.vectors, self._basis)
        if self._basis is not None:
            self._sketches[self._count : stop] = _sketches(block, self._basis)

    def _pairs(self, start: int, stop: int) -> tuple[Array, Array, Array]:
        """Row, column and rough cosine of the pairs of some rows of the block that may be near."""
        mine, all_before = slice(self._count + start, self._count + stop), self._count + stop
        if self._basis is not None:
            bounds = self._sketches[mine] @ self._sketches[:all_before].T
            rows, columns = self._earlier(bounds, start)
            if len(rows) <= _WORTH_IT * (stop - start):
                left, right = self._vectors[self._count + rows], self._vectors[columns]
                return rows, columns, np.einsum("ij,ij->i", left, right)
            self._basis = None  # it says too little here: learn another one from what comes next
        products = self._vectors[mine] @ self._vectors[:all_before].T
        rows, columns = self._earlier(products, start)
        return rows, columns, products[rows - start, columns]

    def _earlier(self, products: Array, start: int) -> tuple[Array, Array]:
        found = np.flatnonzero(products >= self._threshold - UNSURE)
        rows, columns = np.divmod(found, products.shape[1])
        rows += start
        earlier = columns < self._count + rows
        return rows[earlier], columns[earlier]

    def _settle(self, rows: Array, columns: Array, alike: Array) -> Array:
        certain = alike >= self._threshold
        unsure = np.flatnonzero(np.abs(alike - self._threshold) < UNSURE)
        left, right = self._vectors[self._count + rows[unsure]], self._vectors[columns[unsure]]
        certain[unsure] = near_enough(left, right, self._threshold)
        return certain


def near_enough(left: Array, right: Array, threshold: float) -> Array:
    """Whether the cosine of each row of two matrices of unit vectors reaches the threshold."""
    products = (left.astype(np.float64) * right.astype(np.float64)).sum(axis=1)
    enough: Array = products >= threshold - ROUNDING
    return enough


def _grown(rows: Array, count: int, least: int) -> Array:
    grown = np.empty((max(least, 2 * len(rows)), rows.shape[1]), rows.dtype)
    grown[:count] = rows[:count]
    return grown


def _main_directions(vectors: Array, width: int) -> Array:
    """Orthonormal columns ``(dim, width)`` that span about what the vectors have most of."""
    basis = np.random.default_rng(1).normal(size=(vectors.shape[1], width)).astype(np.float32)
    for _ in range(3):
        basis = np.linalg.qr(vectors.T @ (vectors @ basis))[0]
    return basis


def _sketches(vectors: Array, basis: Array) -> Array:
    parts = vectors @ basis
    rest = 1 - np.einsum("ij,ij->i", parts, parts)
    return np.concatenate([parts, np.sqrt(np.maximum(rest, 0))[:, None]], axis=1)
