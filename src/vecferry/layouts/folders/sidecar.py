"""What stands beside an index: its records without their vectors, and which belongs to which vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vecferry.errors import CorruptDataError
from vecferry.layouts.folders.lines import Entries, Entry
from vecferry.model.vectors import Array


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Records for the vectors of an index.

    Attributes:
        entries: the records, in whatever order the file has them.
        order: int64 ``(n,)``, the entry that belongs to the vector at each position of the index;
            ``None`` where position and entry agree.
    """

    entries: Entries
    order: Array | None = None

    def read(self, positions: Array) -> list[Entry]:
        """The records of the vectors at ``positions`` (int64)."""
        return self.entries.read(positions if self.order is None else self.order[positions])

    def close(self) -> None:
        self.entries.close()


@dataclass(frozen=True, slots=True)
class Numbering:
    """How an index numbers its vectors.

    Attributes:
        count: of vectors.
        ids: int64 ``(n,)`` by position; ``None`` where the number is the position.
        in_order: whether positions follow the order in which vectors were added (not so in an IVF).
    """

    count: int
    ids: Array | None = None
    in_order: bool = True

    @property
    def rows(self) -> Array | None:
        """The row of each position in a list written beside the index; ``None`` where they agree.

        Raises:
            LookupError: if the numbers do not tell.
        """
        if self.ids is None:
            return None
        if np.array_equal(np.sort(self.ids), np.arange(self.count)):
            return None if np.array_equal(self.ids, np.arange(self.count)) else self.ids
        if not self.in_order:
            raise LookupError
        return None


def rows_of(keys: Array, numbering: Numbering, name: str) -> Array | None:
    """The row of each position, where row i of a sidecar says that it belongs to the number ``keys[i]``.

    Raises:
        CorruptDataError: if the sidecar and the index do not hold the same numbers.
    """
    count = numbering.count
    check_count(len(keys), count, name)
    order = np.argsort(keys, kind="stable")
    numbers = np.arange(count) if numbering.ids is None else numbering.ids
    at = np.minimum(np.searchsorted(keys, numbers, sorter=order), max(count - 1, 0))
    rows = np.asarray(order[at], dtype=np.int64)
    missing = np.flatnonzero(keys[rows] != numbers)
    if len(missing):
        raise CorruptDataError(
            f"{name} has no record for the vector numbered {numbers[missing[0]]}; "
            "restore the folder from a backup"
        )
    return None if np.array_equal(rows, np.arange(count)) else rows


def check_count(have: int, want: int, name: str) -> None:
    """Whether a sidecar is as long as the index.

    Raises:
        CorruptDataError: with both numbers.
    """
    if have != want:
        raise CorruptDataError(
            f"{name} holds {have:,} records for an index of {want:,} vectors; restore the folder from a "
            "backup, or read the index alone with ?layout=none"
        )
