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

from vecferry.dedupe.features import Features
from vecferry.dedupe.matchers import APART, NEW, Verdicts, by_group
from vecferry.dedupe.nearby import ROUNDING, UNSURE, Nearby, near_enough
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
