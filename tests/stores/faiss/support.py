"""What the tests of the FAISS store share: the samples, their truth, small collections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from known import some
from vecferry.model import CollectionSchema, Metric, RecordBatch, VectorField, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.faiss import FaissStore

DATA = Path(__file__).parents[2] / "data"
SAMPLES = DATA / "faiss_samples"
WORDNET = DATA.parents[1] / "examples" / "data" / "wordnet_langchain"
NODE = "_llamaindex"


def truth() -> list[dict[str, Any]]:
    """The 200 sample documents: ``id``, ``text``, ``metadata``, ``vector``."""
    documents = json.loads((SAMPLES / "docs.json").read_text("utf-8"))
    vectors = np.load(SAMPLES / "embeddings.npy")
    return [{**doc, "vector": row} for doc, row in zip(documents, vectors, strict=True)]


def random_vectors(n: int, dim: int = 16, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def records(n: int, dim: int = 16, seed: int = 0, **more: Any) -> list[VectorRecord]:
    rows = random_vectors(n, dim, seed)
    return [
        VectorRecord(id=f"r{i}", text=f"text {i}", vector=rows[i], metadata={"n": i, **more})
        for i in range(n)
    ]


def schema(dim: int = 16, metric: Metric = Metric.L2, **more: Any) -> CollectionSchema:
    return CollectionSchema(fields=(VectorField(dim=dim, metric=metric, **more),))


def write(
    path: Path, rows: Sequence[VectorRecord], wanted: CollectionSchema | None = None, **options: Any
) -> FaissStore:
    """A collection written directly."""
    store = FaissStore(path, **options)
    store.prepare(wanted or schema(len(some(rows[0].vector))), WriteMode.UPSERT)
    for start in range(0, len(rows), 100):
        store.write(RecordBatch.from_records(rows[start : start + 100]))
    store.finish()
    return store


def by_id(store: FaissStore) -> dict[Any, VectorRecord]:
    return {record.id: record for batch in store.scan(batch_size=64) for record in batch.records()}
