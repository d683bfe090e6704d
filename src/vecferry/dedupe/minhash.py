"""Near-duplicate texts: the Jaccard similarity of their word 3-shingles, estimated by MinHash.

Candidates are the texts that agree in at least one band of their signatures (locality-sensitive hashing; J.
Leskovec, A. Rajaraman, J. Ullman, "Mining of Massive Datasets", 3.4); each is then judged by the
share of equal values in the two signatures of 128, an estimate with a standard deviation of at most 0.044.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from vecferry.dedupe.features import Features
from vecferry.dedupe.matchers import APART, NEW, Verdicts
from vecferry.dedupe.shingles import PERMUTATIONS, scrambled
from vecferry.dedupe.spill import Rows
from vecferry.records.vectors import Array

_FALSE, _MISSED = 0.1, 0.9
"""What a candidate too many costs beside one too few."""


class MinHashMatcher:
    """Estimated similarity at least ``threshold`` to something kept before.

    The table of bands is held in memory; the signatures lie in a temporary file.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._kept = Rows(np.uint32, PERMUTATIONS)
        self._bands, self._rows = bands_for(threshold)
        self._table: dict[int, int | list[int]] = {}
        random = np.random.default_rng(2)
        self._factors = random.integers(0, 2**64, self._rows, dtype=np.uint64) | np.uint64(1)
        self._starts = random.integers(0, 2**64, self._bands, dtype=np.uint64)

    def match(self, features: Features) -> Verdicts:
        entries = np.full(len(features), APART, dtype=np.int64)
        scores = np.zeros(len(features), dtype=np.float32)
        new: list[int] = []
        keys = self._keys(features)
        for row in np.flatnonzero(features.has).tolist():
            signature = features.values[row]
            entries[row], scores[row] = self._nearest(keys[row], signature)
            if entries[row] == NEW:
                self._remember(keys[row], signature)
                new.append(row)
        return Verdicts(entries, np.array(new, dtype=np.int64), scores)

    def load(self, features: Features, notes: dict[str, Any]) -> None:
        if not len(features):
            return
        for keys, signature in zip(self._keys(features), features.values, strict=True):
            self._remember(keys, signature)

    def _keys(self, features: Features) -> list[list[int]]:
        """For each row one number a band: the same one for equal values in the same band and group."""
        shape = (len(features), self._bands, self._rows)
        bands = features.values[:, : self._bands * self._rows].reshape(shape).astype(np.uint64)
        keys = scrambled((bands * self._factors).sum(axis=2, dtype=np.uint64) + self._starts)
        if features.group is not None:
            keys ^= scrambled(features.group)[:, None]
        return keys.tolist()  # type: ignore[no-any-return]

    def _nearest(self, keys: list[int], signature: Array) -> tuple[int, float]:
        candidates: set[int] = set()
        for key in keys:
            there = self._table.get(key)
            if isinstance(there, int):
                candidates.add(there)
            elif there:
                candidates.update(there)
        if not candidates:
            return NEW, 0.0
        found = np.array(sorted(candidates), dtype=np.int64)
        alike = (self._kept.take(found) == signature).mean(axis=1)
        best = int(alike.argmax())
        return (int(found[best]), float(alike[best])) if alike[best] >= self.threshold else (NEW, 0.0)

    def _remember(self, keys: list[int], signature: Array) -> None:
        number = self._kept.append(signature[None, :])
        for key in keys:
            there = self._table.setdefault(key, number)
            if isinstance(there, list):
                there.append(number)
            elif there != number:
                self._table[key] = [there, number]


@lru_cache(maxsize=16)
def bands_for(threshold: float) -> tuple[int, int]:
    """How many bands of how many values err least about ``threshold``.

    Two texts of similarity s agree in one of b bands of r values with a probability of 1 − (1 − sʳ)ᵇ.
    """
    s = (np.arange(1000) + 0.5) / 1000
    best, choice = np.inf, (1, 1)
    for rows in range(1, PERMUTATIONS + 1):
        for bands in range(1, PERMUTATIONS // rows + 1):
            found = 1 - (1 - s**rows) ** bands
            cost = float(np.where(s < threshold, _FALSE * found, _MISSED * (1 - found)).sum())
            if cost < best:
                best, choice = cost, (bands, rows)
    return choice
