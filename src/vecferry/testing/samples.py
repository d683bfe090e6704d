"""Records that have tripped migrations before: odd ids, odd types, odd texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from vecferry.model import (
    CollectionSchema,
    EmbeddingSpace,
    Kind,
    Metric,
    RecordId,
    SparseVector,
    VectorField,
    VectorRecord,
)

DIM = 8
SPACE = EmbeddingSpace(model="contract-model", dim=DIM)

ODD_IDS: dict[str, tuple[RecordId, ...]] = {
    "int": (0, 7, 2**63 - 1),
    "str": ("7", "007", "", "päivää 안녕", "a/b#c?d%25", "9f0b5e0e-7a3c-4d8e-8b1a-2f5f6c7d8e9f"),
    "uuid": (UUID("9f0b5e0e-7a3c-4d8e-8b1a-2f5f6c7d8e9f"), UUID(int=1)),
    "tuple": ((1, "a"), (1, "b"), ("1", "a")),
}

TYPED_METADATA: dict[str, Any] = {
    "int": 3,
    "float": 3.0,
    "big": 2**53 + 1,
    "yes": True,
    "none": None,
    "text": "Größe 안녕 😀",
    "nested": {"a": {"b": [1, 2.0, None, "x"]}, "empty": {}, "with/slash": 1, "with.dot": 2},
    "list": ["a", "b"],
    "empty": [],
    "when": datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC),
    "local": datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=9))),
    "naive": datetime(2026, 2, 3, 4, 5, 6),
    "day": date(2026, 2, 3),
    "price": Decimal("19.90"),
    "uuid": UUID("9f0b5e0e-7a3c-4d8e-8b1a-2f5f6c7d8e9f"),
    "bytes": b"\x00\xff",
    "deep": [{"when": date(2020, 1, 1)}, (1, 2)],
}


def sample_schema(metric: Metric = Metric.L2, **changes: Any) -> CollectionSchema:
    """One unnamed float32 field of `DIM` dimensions in `SPACE`."""
    fields = (VectorField(dim=DIM, metric=metric, space=SPACE),)
    return CollectionSchema(name="contract", fields=fields).model_copy(update=changes)


def sample_records(
    n: int = 25, *, ids: Iterable[RecordId] | None = None, seed: int = 0, unit: bool = False
) -> list[VectorRecord]:
    """``n`` records with integer ids (or the given ones), and `TYPED_METADATA` in the first.

    Args:
        unit: whether the vectors have unit length, for stores that normalise.
    """
    numbers = list(range(n)) if ids is None else list(ids)
    vectors = np.random.default_rng(seed).standard_normal((len(numbers), DIM)).astype(np.float32)
    if unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        VectorRecord(
            id=id_,
            text=f"text {i} – 안녕",
            vector=vectors[i],
            metadata={"n": i, "even": i % 2 == 0, "topic": f"t{i % 3}"}
            | (TYPED_METADATA if i == 0 else {}),
        )
        for i, id_ in enumerate(numbers)
    ]


def sample_fields(
    kinds: Collection[Kind],
    metric: Metric = Metric.L2,
    *,
    unit: bool = False,
    last_index: int = 4_000_000_000,
) -> tuple[list[VectorRecord], tuple[VectorField, ...]]:
    """Ten records with two dense fields, and a sparse and a multi field where ``kinds`` has them.

    Every field is missing in some record. ``last_index`` is the greatest index of a sparse vector.
    """
    rng = np.random.default_rng(11)
    fields = [
        VectorField(name="title", dim=DIM, metric=metric),
        VectorField(name="body", dim=5, metric=metric),
    ]
    if Kind.SPARSE in kinds:
        fields.append(VectorField(name="words", kind=Kind.SPARSE, metric=Metric.IP))
    if Kind.MULTI in kinds:
        fields.append(VectorField(name="tokens", kind=Kind.MULTI, dim=4, metric=metric))
    records = []
    for i, record in enumerate(sample_records(10, unit=unit)):
        vectors: dict[str, Any] = {"title": record.vector, "body": _unit(rng.standard_normal(5), unit)}
        sparse = {}
        if Kind.SPARSE in kinds and i % 5 != 3:
            sparse["words"] = SparseVector([1, 7 + i, last_index], [0.5, 1.25, float(i) + 0.1])
        if Kind.MULTI in kinds and i % 4 != 1:
            vectors["tokens"] = np.stack([_unit(row, True) for row in rng.standard_normal((2 + i % 3, 4))])
        records.append(record.replace(vectors=vectors, sparse_vectors=sparse))
    return records, tuple(fields)


def _unit(vector: Any, unit: bool) -> Any:
    length = np.linalg.norm(vector) if unit else 1.0
    return (vector / length).astype(np.float32)


_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (-3, 0, 7, 40, 2**40),
    "x": (-2.5, 0.0, 0.25, 7.0, 1e9),
    "word": ("", "en", "EN", "größe", "a'b\"c", "%"),
    "flag": (True, False),
    "tags": ([], ["a"], ["a", "b"], ["b", "c"]),
}


def filter_records(*, unit: bool = False) -> list[VectorRecord]:
    """Forty records whose metadata have a few values of each type, nested and missing ones too."""
    rng = np.random.default_rng(3)
    records = []
    for record in sample_records(40, unit=unit):
        metadata = {
            key: values[int(rng.integers(len(values)))]
            for key, values in _VALUES.items()
            if rng.random() > 0.25
        }
        if rng.random() > 0.5:
            metadata["deep"] = {"n": int(rng.integers(5)), "word": "en"}
        records.append(record.replace(metadata=metadata))
    return records


def filters() -> Any:
    """A Hypothesis strategy for filters over the keys of `filter_records`: every operator, any nesting."""
    from hypothesis import strategies as st

    def condition(key: str) -> Any:
        kind = key.rpartition(".")[2]
        values = st.sampled_from([v for v in _VALUES[kind] if not isinstance(v, list)] or ["a", "b", "z"])
        tests = {
            "$eq": values,
            "$ne": values,
            "$in": st.lists(values, min_size=1, max_size=3),
            "$nin": st.lists(values, min_size=1, max_size=3),
            "$exists": st.booleans(),
        }
        if kind not in ("flag", "tags"):
            tests |= dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), values)
        one = st.sampled_from(sorted(tests)).flatmap(lambda name: st.tuples(st.just(name), tests[name]))
        several = st.lists(one, min_size=1, max_size=2).map(dict)
        return st.one_of(values, several).map(lambda test: {key: test})

    keys = st.sampled_from([*_VALUES, "deep.n", "deep.word"])
    leaf = keys.flatmap(condition)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
            inner.map(lambda part: {"$not": part}),
        ),
        max_leaves=5,
    )
