"""A digest of ids, texts and metadata that does not depend on the order of the records.

The digest of a record is that of its canonical form (see `vecferry.model.canonical`), read as a
little-endian number. The digest of a collection is the sum of those of its records modulo 2¹²⁸. A sum,
unlike an exclusive or, also tells one copy from three.

Records fall into 256 buckets by the CRC-32 of their encoded id, each with a sum of its own: two collections
that differ in a few records differ in a few buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from vecferry.model import RecordId, encode_id
from vecferry.model.vectors import Array

BUCKETS = 256


def buckets_of(ids: Sequence[RecordId]) -> Array:
    """int64 ``(n,)``: the bucket of each id."""
    codes = [crc32(encode_id(i).encode("utf-8", "surrogatepass")) % BUCKETS for i in ids]
    return np.array(codes, dtype=np.int64)


class Digest:
    """The sums of a growing collection."""

    def __init__(self) -> None:
        self._sums = np.zeros((BUCKETS, 4), dtype=np.uint64)
        self._counts = np.zeros(BUCKETS, dtype=np.int64)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, hashes: Array, buckets: Array) -> None:
        """Add rows; limbs are kept apart, so that sums of 2³² records do not overflow."""
        np.add.at(self._sums, buckets, hashes)
        np.add.at(self._counts, buckets, 1)

    @property
    def hex(self) -> str:
        """32 hexadecimal digits."""
        return f"{_number(self._sums.sum(axis=0)):032x}"

    def buckets(self) -> list[str]:
        """``count:digest`` of each bucket."""
        return [f"{n}:{_number(limbs):032x}" for n, limbs in zip(self._counts, self._sums, strict=True)]

    def differing(self, other: Digest) -> list[int]:
        """The buckets in which the two differ."""
        return [i for i, (a, b) in enumerate(zip(self.buckets(), other.buckets(), strict=True)) if a != b]

    def state(self) -> dict[str, Any]:
        """As JSON, for `restore`."""
        return {"counts": self._counts.tolist(), "sums": self._sums.tolist()}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Digest:
        digest = cls()
        digest._counts = np.array(state["counts"], dtype=np.int64)
        digest._sums = np.array(state["sums"], dtype=np.uint64)
        return digest


def _number(limbs: Array) -> int:
    return sum(int(limb) << (32 * i) for i, limb in enumerate(limbs)) % (1 << 128)
