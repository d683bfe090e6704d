"""The digest is what the page says, to the byte."""

from __future__ import annotations

import json
from datetime import date
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecferry.model import DenseColumn, RecordBatch, VectorRecord, encode_id, to_json
from vecferry.model.canonical import hash_rows
from vecferry.verifying import Digest, canonical_rows
from vecferry.verifying.digest import buckets_of, hash_vectors, keyed

DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"b": 1, "a": [1, "x", None, True]},
    {"n": 2**63, "m": -(2**63), "o": 2**63 - 1, "p": 2**90},
    {"f": 0.1, "g": -0.0, "h": float("inf"), "i": 1e300},
    {"t": (1, [2]), "d": date(2020, 1, 1), "s": {"a", "b"}, "y": b"x"},
    {"nested": {"z": {"ü": "é"}, "a": [{"k": 2**64 - 1}]}},
    {"numpy": np.float32(0.5)},
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_canonical_form_is_as_described(document: dict[str, Any]) -> None:
    """Whichever way it is computed: written here once more with the standard library alone."""
    batch = RecordBatch.from_records([VectorRecord(id=7, text="é", metadata=document)])
    plain, types = to_json(document)
    row = [encode_id(7), "é", plain, types]
    expected = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert json.loads(canonical_rows(batch)[0]) == json.loads(expected)
    if "f" not in document:  # the digits of 1e300 are written 1e300 or 1e+300
        assert canonical_rows(batch) == [expected]


def digest_of(records: list[VectorRecord]) -> Digest:
    digest = Digest()
    for start in range(0, len(records), 3):
        batch = RecordBatch.from_records(records[start : start + 3])
        digest.add(hash_rows(canonical_rows(batch)), buckets_of(batch.id_list))
    return digest


def test_the_sum_is_as_described() -> None:
    records = [VectorRecord(id=i, text=f"t{i}") for i in range(10)]
    rows = canonical_rows(RecordBatch.from_records(records))
    numbers = [int.from_bytes(blake2b(row, digest_size=16).digest(), "little") for row in rows]
    assert digest_of(records).hex == f"{sum(numbers) % 2**128:032x}"
    assert digest_of(records * 3).hex == f"{3 * sum(numbers) % 2**128:032x}" != digest_of(records).hex


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(12)), at=st.integers(0, 11))
def test_order_and_interruptions_do_not_matter(order: list[int], at: int) -> None:
    records = [VectorRecord(id=i, metadata={"n": i}) for i in range(12)]
    straight = digest_of(records)
    shuffled = [records[i] for i in order]
    first = digest_of(shuffled[:at])
    resumed = Digest.restore(json.loads(json.dumps(first.state())))
    batch = RecordBatch.from_records(shuffled[at:])
    resumed.add(hash_rows(canonical_rows(batch)), buckets_of(batch.id_list))
    assert (resumed.hex, resumed.count, resumed.buckets()) == (straight.hex, 12, straight.buckets())
    assert not straight.differing(resumed)
    changed = [*records[:at], VectorRecord(id=at, metadata={"n": str(at)}), *records[at + 1 :]]
    assert straight.differing(digest_of(changed)) == buckets_of([at]).tolist()


@pytest.mark.parametrize("id_", [7, "a"])
def test_the_hash_of_a_vector_is_as_described(id_: int | str) -> None:
    """Written here once more: the key of the id, then the vector; so that two swapped ones are seen."""
    record = VectorRecord(
        id=id_,
        vectors={"": np.float32([1, 2]), "late": np.float32([[1, 2], [3, 4]])},
        sparse_vectors={"words": {3: 0.5, 9: 2.0}},
    )
    batch = RecordBatch.from_records([record])
    key = blake2b(encode_id(id_).encode(), digest_size=16).digest()
    bodies = {
        "": np.array([1, 2], "<f4").tobytes(),
        "late": (2).to_bytes(4, "little") + np.array([1, 2, 3, 4], "<f4").tobytes(),
        "words": np.array([3, 9], "<u4").tobytes() + np.array([0.5, 2], "<f4").tobytes(),
    }
    for name, body in bodies.items():
        [found] = hash_vectors(batch.column(name), keyed(batch.ids).keys, "float32")
        assert found.tobytes() == blake2b(key + body, digest_size=16).digest()
    half = batch.replace(vectors={"": DenseColumn(np.float16([[1, 2]]))})
    wide = [hash_vectors(b.column(""), keyed(b.ids).keys, "float32").tolist() for b in (batch, half)]
    assert wide[0] == wide[1], "the same numbers in a narrower type"
    none = batch.replace(vectors={"": DenseColumn(np.zeros((1, 2), np.float32), np.array([False]))})
    assert not hash_vectors(none.column(""), keyed(none.ids).keys, "float32").any()
