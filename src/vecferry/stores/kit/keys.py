"""Sets and indexes of typed ids in 16 bytes each (`id_key`), as numpy arrays of ``S16``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vecferry.model.ids import KEY_TYPE, keys_of
from vecferry.model.vectors import Array

__all__ = ["KEY_TYPE", "KeyIndex", "keys_of", "last_of_each"]


def last_of_each(keys: Array) -> Array:
    """bool ``(n,)``: true where no later row has the same key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    last = np.ones(len(keys), dtype=np.bool_)
    last[order[:-1]] = ordered[1:] != ordered[:-1]
    return last


class KeyIndex:
    """Key → position, in 24 bytes a row. Of equal keys the last wins.

    Args:
        chunks: pairs of keys ``(n,)`` and positions int64 ``(n,)``.
    """

    def __init__(self, chunks: Iterable[tuple[Array, Array]]) -> None:
        parts = list(chunks)
        keys = np.concatenate([np.empty(0, KEY_TYPE), *(part[0] for part in parts)])
        positions = np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])
        order = np.argsort(keys, kind="stable")
        self._keys, self._positions = keys[order], positions[order]

    def __len__(self) -> int:
        return len(self._keys)

    def positions(self, keys: Array) -> Array:
        """int64 ``(n,)``: where each key stands, −1 where it is unknown."""
        if not len(self._keys):
            return np.full(len(keys), -1, dtype=np.int64)
        # The right edge of the run of equal keys: the last one wins.
        at = np.searchsorted(self._keys, keys, side="right") - 1
        found = (at >= 0) & (self._keys[np.maximum(at, 0)] == keys)
        return np.where(found, self._positions[np.maximum(at, 0)], -1)
