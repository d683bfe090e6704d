"""What decides a rule, record by record in order, with memory of all that was kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vecferry.dedupe.features import Features
from vecferry.dedupe.ledger import KeyLedger
from vecferry.dedupe.rules import Dedupe
from vecferry.model.vectors import Array

NEW, APART = -1, -2
"""Verdicts: kept and remembered; and not comparable (kept, not remembered)."""


@dataclass(slots=True)
class Verdicts:
    """What was decided about one batch.

    Attributes:
        entries: int64 ``(n,)``: `NEW`, `APART`, or the number of the kept record it duplicates.
        new: the rows that were remembered, in the order of their numbers.
        scores: float32 ``(n,)``: how alike a duplicate and its kept record are; ``None`` for equal keys.
        notes: JSON that `Matcher.load` wants back beside the new rows.
    """

    entries: Array
    new: Array
    scores: Array | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Matcher(Protocol):
    """Remembers the features of what was kept, and finds duplicates of it."""

    def match(self, features: Features) -> Verdicts:
        """Decide in order, and remember what is new."""
        ...

    def load(self, features: Features, notes: dict[str, Any]) -> None:
        """Remember what an earlier `match` found to be new: its rows in order, and its notes."""
        ...


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


def by_group(features: Features) -> Iterator[tuple[int, Array]]:
    """Each group among the comparable rows, with its rows in order."""
    rows = np.flatnonzero(features.has)
    if not len(rows):
        return
    if features.group is None:
        yield 0, rows
        return
    groups = features.group[rows]
    order = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[order], return_index=True)
    yield from zip(names.tolist(), np.split(rows[order], starts[1:]), strict=True)


def matcher_for(rule: Dedupe, memory_keys: int) -> Matcher:
    """The matcher that decides ``rule``."""
    from vecferry.dedupe.minhash import MinHashMatcher
    from vecferry.dedupe.similar import SimilarMatcher

    if rule.threshold is None:
        return ExactMatcher(memory_keys)
    return SimilarMatcher(rule.threshold) if rule.by == "similar" else MinHashMatcher(rule.threshold)
