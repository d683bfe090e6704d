"""`KeyLedger`: which 128-bit keys were seen, at 24 bytes a key, looked up a batch at a time.

Keys lie in sorted runs that are merged as they grow, as in a log-structured merge tree (O'Neil et al.,
1996). Beyond ``memory_keys`` the large runs move into unlinked temporary files and are memory-mapped, so
that the system can drop their pages.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from vecferry.dedupe.matchers import APART, NEW, Features, Verdicts
from vecferry.model.vectors import Array

_SMALLEST_CAP = 1 << 20
_LARGE_RUNS = 32


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Ascending by ``high``; ``entry`` is the number given when the key was added."""

    high: Array
    low: Array
    entry: Array

    def __len__(self) -> int:
        return len(self.high)

    @classmethod
    def of(cls, high: Array, low: Array, entry: Array) -> _Run:
        order = np.argsort(high, kind="stable")
        return cls(high[order], low[order], entry[order])

    @classmethod
    def merged(cls, runs: list[_Run]) -> _Run:
        parts = [(run.high, run.low, run.entry) for run in runs]
        return cls.of(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def find(self, high: Array, low: Array) -> Array:
        """The entries of the keys, −1 where there is none. ``high`` is ascending.

        Only one key of equal ``high`` halves is compared: two different keys share it with a
        probability of 2⁻⁶⁴ a pair, and then a duplicate would stay, which loses nothing.
        """
        at = np.minimum(np.searchsorted(self.high, high), len(self) - 1)
        hit = (self.high[at] == high) & (self.low[at] == low)
        return np.where(hit, self.entry[at], -1)


class KeyLedger:
    """A growing map from 128-bit keys to the running numbers of their first appearance.

    Args:
        memory_keys: beyond so many keys, large runs are kept on disk.
    """

    def __init__(self, memory_keys: int = 20_000_000) -> None:
        self.memory_keys = memory_keys
        self._large: list[_Run] = []
        self._small: list[_Run] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes held in memory (runs on disk not counted)."""
        runs = [run for run in (*self._large, *self._small) if not isinstance(run.high, np.memmap)]
        return sum(run.high.nbytes + run.low.nbytes + run.entry.nbytes for run in runs)

    def find(self, keys: Array) -> Array:
        """int64 ``(n,)``: the entry of each key of uint64 ``(n, 2)``, −1 where it is new."""
        order = np.argsort(keys[:, 0])
        high, low = keys[order, 0], keys[order, 1]
        found = np.full(len(keys), -1, dtype=np.int64)
        for run in (*self._large, *self._small):
            np.maximum(found, run.find(high, low), out=found)
        result = np.empty_like(found)
        result[order] = found
        return result

    def add(self, keys: Array) -> None:
        """Take in keys that are not there yet and differ from each other, in order of their numbers."""
        if not len(keys):
            return
        numbers = np.arange(self._count, self._count + len(keys), dtype=np.int64)
        self._count += len(keys)
        self._small.append(_Run.of(keys[:, 0], keys[:, 1], numbers))
        while len(self._small) > 1 and len(self._small[-2]) < 2 * len(self._small[-1]):
            self._small[-2:] = [_Run.merged(self._small[-2:])]
        if len(self._small[0]) >= max(_SMALLEST_CAP, self._count // _LARGE_RUNS):
            self._large.append(self._settled(self._small.pop(0)))

    def match(self, keys: Array) -> Array:
        """Look up and take in: int64 ``(n,)``, the entry of an equal earlier key, −1 where it was new.

        Equal keys within the batch: the first is new, the others are duplicates of it.
        """
        entries = self.find(keys)
        new = np.flatnonzero(entries < 0)
        first, inverse = first_of_equals(keys[new])
        fresh = np.sort(new[np.unique(first)])
        numbers = np.full(len(keys), -1, dtype=np.int64)
        numbers[fresh] = np.arange(self._count, self._count + len(fresh))
        again = new[first[inverse] != np.arange(len(new))]
        entries[again] = numbers[new[first[inverse]]][first[inverse] != np.arange(len(new))]
        self.add(keys[fresh])
        return entries

    def _settled(self, run: _Run) -> _Run:
        if self._count <= self.memory_keys:
            return run
        return _Run(*(_on_disk(column) for column in (run.high, run.low, run.entry)))


class ExactMatcher:
    """Equal keys, through a `KeyLedger`."""

    def __init__(self, memory_keys: int) -> None:
        self.ledger = KeyLedger(memory_keys)

    def match(self, features: Features) -> Verdicts:
        entries = np.full(len(features), APART, dtype=np.int64)
        rows = np.flatnonzero(features.has)
        entries[rows] = self.ledger.match(features.values[rows])
        return Verdicts(entries, np.flatnonzero(entries == NEW))

    def load(self, features: Features, notes: dict[str, Any]) -> None:
        self.ledger.add(features.values)


def first_of_equals(keys: Array) -> tuple[Array, Array]:
    """For uint64 ``(n, 2)``: by group the row that comes first, and by row its group."""
    n = len(keys)
    order = np.lexsort((np.arange(n), keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    starts = np.ones(n, dtype=np.bool_)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    inverse = np.empty(n, dtype=np.int64)
    inverse[order] = np.cumsum(starts) - 1
    return order[starts], inverse


def _on_disk(array: Array) -> Array:
    with tempfile.TemporaryFile(prefix="vecferry-ledger-") as file:
        array.tofile(file)
        file.flush()
        return cast(Array, np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape))
