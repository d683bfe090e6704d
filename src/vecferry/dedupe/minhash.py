"""Near-duplicate texts: the Jaccard similarity of their word 3-shingles, estimated by MinHash.

Candidates come from datasketch's locality-sensitive hashing; each is then judged by the share of equal
values in the two signatures of 128, an estimate with a standard deviation of at most 0.044.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vecferry.dedupe.features import PERMUTATIONS, Features, sketch
from vecferry.dedupe.matchers import APART, NEW, Verdicts, by_group
from vecferry.dedupe.spill import Rows
from vecferry.errors import MissingDependencyError
from vecferry.model.vectors import Array

_RATHER_FALSE_THAN_MISSED = (0.1, 0.9)


class MinHashMatcher:
    """Estimated similarity at least ``threshold`` to something kept before.

    The hash tables hold about 1 kB a kept text in memory; the signatures lie in a temporary file.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._kept = Rows(np.uint32, PERMUTATIONS)
        self._tables: dict[int, Any] = {}

    def match(self, features: Features) -> Verdicts:
        entries = np.full(len(features), APART, dtype=np.int64)
        scores = np.zeros(len(features), dtype=np.float32)
        new: list[int] = []
        for name, rows in by_group(features):
            table = self._table(name)
            for row in rows.tolist():
                signature = features.values[row]
                entries[row], scores[row] = self._nearest(table, signature)
                if entries[row] == NEW:
                    self._remember(table, signature)
                    new.append(row)
        return Verdicts(entries, np.array(new, dtype=np.int64), scores)

    def load(self, features: Features, notes: dict[str, Any]) -> None:
        for row in range(len(features)):
            name = 0 if features.group is None else int(features.group[row])
            self._remember(self._table(name), features.values[row])

    def _nearest(self, table: Any, signature: Array) -> tuple[int, float]:
        found = np.array(sorted(table.query(sketch(signature))), dtype=np.int64)
        if not len(found):
            return NEW, 0.0
        alike = (self._kept.take(found) == signature).mean(axis=1)
        best = int(alike.argmax())
        return (int(found[best]), float(alike[best])) if alike[best] >= self.threshold else (NEW, 0.0)

    def _remember(self, table: Any, signature: Array) -> None:
        table.insert(self._kept.append(signature[None, :]), sketch(signature), check_duplication=False)

    def _table(self, name: int) -> Any:
        if name not in self._tables:
            try:
                from datasketch import MinHashLSH
            except ImportError:
                raise MissingDependencyError('Dedupe(by="minhash")', "dedupe") from None
            self._tables[name] = MinHashLSH(
                threshold=self.threshold, num_perm=PERMUTATIONS, weights=_RATHER_FALSE_THAN_MISSED
            )
        return self._tables[name]
