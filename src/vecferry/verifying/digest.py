"""A digest of ids, texts and metadata that does not depend on the order of the records.

The canonical form of a record is the JSON array ``[id, text, metadata, types]``, UTF-8, keys sorted, no
white space, where ``id`` is `encode_id`, ``text`` a string or null, and ``metadata`` and ``types`` are the
two results of `to_json`: so that ``1``, ``1.0``, ``True`` and ``"1"`` are four values, a tuple is no list
and a datetime no string. Its digest is BLAKE2b with 16 bytes (RFC 7693), read as a little-endian number.
The digest of a collection is the sum of those of its records modulo 2¹²⁸. A sum, unlike an exclusive or,
also tells one copy from three.

Records fall into 256 buckets by the CRC-32 of their encoded id, each with a sum of its own: two collections
that differ in a few records differ in a few buckets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np
import orjson

from vecferry.model import RecordBatch, RecordId, encode_id, to_json
from vecferry.model.vectors import Array

BUCKETS = 256
_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME
_SAFE = frozenset({str, bool, type(None)})
_INT64 = 1 << 63


def canonical_rows(batch: RecordBatch, *, text: bool = True, metadata: bool = True) -> list[bytes]:
    """The canonical form of each row, without text or metadata where those do not count."""
    texts: Sequence[str | None] = batch.text_list if text else [None] * len(batch)
    rows: Sequence[Mapping[str, Any]] = batch.metadata_list if metadata else [{}] * len(batch)
    return [_canonical(i, t, m) for i, t, m in zip(batch.id_list, texts, rows, strict=True)]


def _canonical(id_: RecordId, text: str | None, metadata: Mapping[str, Any]) -> bytes:
    try:
        if _is_plain(metadata):
            return orjson.dumps([encode_id(id_), text, metadata, {}], option=_SORTED)
        return orjson.dumps([encode_id(id_), text, *to_json(metadata)], option=_SORTED)
    except TypeError:  # a lone surrogate, which UTF-8 cannot hold
        row = [encode_id(id_), text, *to_json(metadata)]
        return json.dumps(row, sort_keys=True, separators=(",", ":")).encode()


def _is_plain(metadata: Mapping[str, Any]) -> bool:
    """Whether `to_json` would leave every value as it is. It need not be asked for most metadata."""
    for value in metadata.values():
        kind = type(value)
        if kind in _SAFE:
            continue
        if kind is int and -_INT64 <= value < _INT64:
            continue
        if kind is float and value - value == 0.0:
            continue
        if kind is list and all(type(item) in _SAFE for item in value):
            continue
        if kind is dict and all(type(key) is str for key in value) and _is_plain(value):
            continue
        return False
    return True


def parse_canonical(row: bytes) -> tuple[str, str | None, dict[str, Any], dict[str, str]]:
    """``(encoded id, text, metadata, types)`` of a canonical form."""
    try:
        return tuple(orjson.loads(row))
    except orjson.JSONDecodeError:
        return tuple(json.loads(row))


def hash_rows(rows: Sequence[bytes]) -> Array:
    """uint32 ``(n, 4)``: the digest of each canonical form, least significant limb first."""
    joined = b"".join([blake2b(row, digest_size=16).digest() for row in rows])
    return np.frombuffer(joined, dtype="<u4").reshape(-1, 4)


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
