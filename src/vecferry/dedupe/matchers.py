"""What a rule looks at, and what decides it, record by record in order, with memory of all it kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vecferry.model.vectors import Array

NEW, APART = -1, -2
"""Verdicts: kept and remembered; and not comparable (kept, not remembered)."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Rows of one rule: ``values`` ``(n, width)``, ``has`` bool ``(n,)``, ``group`` uint64 ``(n,)``.

    Rows without ``has`` hold zeros and take no part. ``group`` is ``None`` without ``within``. ``tokens``
    are the texts themselves where a rule must see them to be sure, else ``None``.
    """

    values: Array
    has: Array
    group: Array | None = None
    tokens: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Array) -> Features:
        """The given rows."""
        group = None if self.group is None else self.group[rows]
        tokens = None if self.tokens is None else [self.tokens[row] for row in rows.tolist()]
        return Features(self.values[rows], self.has[rows], group, tokens)


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
