"""A digest of ids, texts and metadata that does not depend on the order of the records.

The digest of a record is that of its canonical form (`vecferry.model.canonical`), read as a little-endian
number; that of a collection is the sum of those of its records modulo 2¹²⁸. A sum, unlike an exclusive or,
also tells one copy from three.

Records fall into 256 buckets by the CRC-32 of their encoded id, each with a sum of its own: two collections
that differ in a few records differ in a few buckets.

Vectors have a digest of their own for each field (`hash_vectors`): a sum in the same manner of the hashes
of the bits that a collection gives back, each together with the id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np

from vecferry.model import DenseColumn, IdColumn, RecordId, SparseVector
from vecferry.model.vectors import Array, Column

BUCKETS = 256
_EXACT = 1 << 20
"""So many numbers below 2³² add up exactly as float64, in which `numpy.bincount` sums."""


@dataclass(frozen=True, slots=True)
class KeyedIds:
    """The ids of a batch as text, as keys and in buckets.

    Attributes:
        encoded: as `encode_id` writes them.
        keys: uint64 ``(n, 2)``: `id_key` of each, in the order of its bytes.
        buckets: int64 ``(n,)``.
    """

    encoded: list[str]
    keys: Array
    buckets: Array

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, rows: Array) -> KeyedIds:
        return KeyedIds([self.encoded[i] for i in rows.tolist()], self.keys[rows], self.buckets[rows])


def keyed(ids: Sequence[RecordId]) -> KeyedIds:
    """The three forms of typed ids."""
    column = ids if isinstance(ids, IdColumn) else IdColumn(ids)
    encoded = column.encoded()
    data = (text.encode("utf-8", "surrogatepass") for text in encoded)
    codes = np.fromiter(map(crc32, data), np.int64, len(encoded))
    return KeyedIds(encoded, key_halves(column), codes % BUCKETS)


def key_halves(ids: IdColumn) -> Array:
    """uint64 ``(n, 2)``: the key of each id."""
    return np.ascontiguousarray(ids.keys).view("<u8").reshape(-1, 2)


def _hashes(data: Iterable[Any]) -> Array:
    """uint64 ``(n, 2)``: BLAKE2b-128 of each."""
    joined = b"".join([blake2b(row, digest_size=16).digest() for row in data])
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


def hash_vectors(column: Column | None, keys: Array, dtype: str) -> Array:
    """uint64 ``(n, 2)``: BLAKE2b-128 of the key of the id and the vector; zeros where there is none.

    A dense vector counts with the little-endian bytes of its components, converted to ``dtype`` where that
    changes none of them; before those of a multi-vector stands the number of its rows, before the values of
    a sparse one their indices, as uint32.
    """
    out = np.zeros((len(keys), 2), np.uint64)
    rows = np.flatnonzero(column.present) if column is not None else np.empty(0, np.int64)
    if column is None or not len(rows):
        return out
    heads = np.ascontiguousarray(keys[rows]).astype("<u8", copy=False).view(np.uint8)
    if isinstance(column, DenseColumn):
        values = column.values if len(rows) == len(column) else column.values[rows]
        if values.shape[1] == 0:
            out[rows] = _hashes([head.tobytes() for head in heads])
            return out
        own, wanted = values, values.astype(dtype, copy=False)
        out[rows] = _hash_matrix(heads, wanted)
        if not np.can_cast(own.dtype, wanted.dtype):
            there, back = (v.view(np.uint8) for v in (own, wanted.astype(own.dtype)))
            odd = np.flatnonzero((there != back).any(axis=1))
            out[rows[odd]] = _hash_matrix(heads[odd], own[odd])
        return out
    bodies = (_ragged_bytes(column[row], dtype) for row in rows.tolist())
    out[rows] = _hashes([head.tobytes() + body for head, body in zip(heads, bodies, strict=True)])
    return out


def _hash_matrix(heads: Array, values: Array) -> Array:
    body = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).view(np.uint8)
    flat = np.concatenate([heads, body], axis=1)
    step, data = flat.shape[1], flat.data.cast("B")
    return _hashes([data[at : at + step] for at in range(0, len(data), step)])


def _ragged_bytes(value: Any, dtype: str) -> bytes:
    if isinstance(value, SparseVector):
        return bytes(value.indices.astype("<u4").tobytes() + value.values.astype("<f4").tobytes())
    wanted = value.astype(dtype, copy=False)
    if not np.can_cast(value.dtype, dtype) and wanted.astype(value.dtype).tobytes() != value.tobytes():
        wanted = value
    return len(value).to_bytes(4, "little") + bytes(wanted.astype(wanted.dtype.newbyteorder("<")).tobytes())


def buckets_of(ids: Sequence[RecordId]) -> Array:
    """int64 ``(n,)``: the bucket of each id."""
    return keyed(ids).buckets


class Digest:
    """The sums of a growing collection."""

    def __init__(self) -> None:
        self._sums = np.zeros((BUCKETS, 4), dtype=np.uint64)
        self._counts = np.zeros(BUCKETS, dtype=np.int64)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, hashes: Array, buckets: Array) -> None:
        """Add hashes of 16 bytes each; limbs are kept apart, so that 2³² of them do not overflow."""
        limbs = np.ascontiguousarray(hashes).view("<u4").reshape(-1, 4)
        for low in range(0, len(limbs), _EXACT):
            some = slice(low, low + _EXACT)
            for i in range(4):
                sums = np.bincount(buckets[some], limbs[some, i], minlength=BUCKETS)
                self._sums[:, i] += sums.astype(np.uint64)
        self._counts += np.bincount(buckets, minlength=BUCKETS)

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
