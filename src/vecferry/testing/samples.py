"""Records that have tripped migrations before: odd ids, odd types, odd texts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from vecferry.model import (
    CollectionSchema,
    EmbeddingSpace,
    Metric,
    RecordId,
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
