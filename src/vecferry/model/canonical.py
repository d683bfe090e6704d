"""The canonical form of a record: two records are equal exactly if theirs are, vectors aside.

It is the JSON array ``[id, text, metadata, types]``, UTF-8, keys sorted, no white space, where ``id`` is
`encode_id`, ``text`` a string or null, and ``metadata`` and ``types`` are the two results of `to_json`: so
that ``1``, ``1.0``, ``True`` and ``"1"`` are four values, a tuple is no list and a datetime no string. Its
digest is BLAKE2b with 16 bytes (RFC 7693). A form that holds half a surrogate pair is ASCII instead of
UTF-8, all other characters escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from vecferry.model.batch import RecordBatch
from vecferry.model.json_column import JsonColumn
from vecferry.model.typed import dump_json, is_plain, parse_json, to_json
from vecferry.model.vectors import Array


def canonical_rows(batch: RecordBatch, *, text: bool = True, metadata: bool = True) -> list[bytes]:
    """The canonical form of each row, without text or metadata where those do not count."""
    texts: Sequence[str | None] = batch.text_list if text else [None] * len(batch)
    ids = batch.ids.encoded()
    if not metadata or batch.metadata is None:
        return [dump_json([i, t, {}, {}], sort=True) for i, t in zip(ids, texts, strict=True)]
    if isinstance(batch.metadata, JsonColumn):
        typed, bodies = batch.metadata.typed, batch.metadata.bodies()
        rows = zip(ids, texts, bodies, strict=True)
        return [dump_json([i, t, m, typed.get(row, {})], sort=True) for row, (i, t, m) in enumerate(rows)]
    return [
        dump_json([i, t, m, {}] if is_plain(m) else [i, t, *to_json(m)], sort=True)
        for i, t, m in zip(ids, texts, batch.metadata, strict=True)
    ]


def canonical_value(value: Any) -> bytes:
    """The canonical form of a single metadata value, its type included.

    Raises:
        TypeError: for a value that metadata cannot hold.
    """
    return dump_json(to_json({"": value}), sort=True)


def parse_canonical(row: bytes) -> tuple[str, str | None, dict[str, Any], dict[str, str]]:
    """``(encoded id, text, metadata, types)`` of a canonical form."""
    id_, text, metadata, types = parse_json(row)
    return id_, text, metadata, types


def hash_rows(rows: Sequence[bytes]) -> Array:
    """uint32 ``(n, 4)``: the digest of each canonical form, least significant limb first."""
    joined = b"".join([blake2b(row, digest_size=16).digest() for row in rows])
    return np.frombuffer(joined, dtype="<u4").reshape(-1, 4)


__all__ = ["canonical_rows", "canonical_value", "hash_rows", "parse_canonical"]
