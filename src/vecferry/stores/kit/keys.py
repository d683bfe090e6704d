"""Sets and indexes of typed ids in 16 bytes each (`id_key`), as numpy arrays of ``S16``.

numpy strips trailing zero bytes when an ``S16`` becomes ``bytes``, but compares and sorts with them, so
that keys are only ever compared as arrays here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vecferry.model import RecordId, id_key
from vecferry.model.vectors import Array

KEY_TYPE = np.dtype("S16")


def keys_of(ids: Sequence[RecordId] | Array) -> Array:
    """``S16 (n,)``: the key of each id."""
    values: Sequence[RecordId] = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return np.frombuffer(b"".join(map(id_key, values)), dtype=KEY_TYPE)


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
