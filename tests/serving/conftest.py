"""Small collections, an embedder without a model, and sides that misbehave."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vecferry.ports import WriteMode
from vecferry.records import CollectionSchema, EmbeddingSpace, RecordBatch, VectorField, VectorRecord
from vecferry.retry import RetryPolicy
from vecferry.stores.memory import MemoryStore

DIM = 16
QUICK = RetryPolicy(attempts=4, max_seconds=5.0, base=0.001, cap=0.01)


class WordEmbedder:
    """Each word has a fixed random direction; a text is the unit sum. Two names make two spaces."""

    def __init__(self, model: str = "words", dim: int = DIM) -> None:
        self.space = EmbeddingSpace(model=model, dim=dim)
        self.calls = 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls += 1
        return np.stack([self._one(text) for text in texts]).astype(np.float32)

    async def aembed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embed(texts)

    def _one(self, text: str) -> NDArray[np.float64]:
        total = np.full(self.space.dim, 1e-9)
        for word in text.lower().split():
            seed = int.from_bytes(blake2b(f"{self.space.model}/{word}".encode(), digest_size=8).digest())
            total += np.random.default_rng(seed).normal(size=self.space.dim)
        return total / np.linalg.norm(total)


def schema(embedder: WordEmbedder | None) -> CollectionSchema:
    space = embedder.space if embedder else None
    return CollectionSchema(fields=(VectorField(dim=DIM, space=space),))


def record(number: int, embedder: WordEmbedder, text: str = "", **metadata: Any) -> VectorRecord:
    text = text or f"record number n{number} about topic t{number % 7}"
    return VectorRecord(
        id=number, text=text, vector=embedder.embed([text])[0], metadata={"n": number, **metadata}
    )


def fill(store: Any, embedder: WordEmbedder, numbers: Sequence[int] = range(30)) -> Any:
    store.prepare(schema(embedder), WriteMode.UPSERT)
    store.write(RecordBatch.from_records([record(n, embedder) for n in numbers]))
    store.finish()
    return store


def contents(store: Any) -> dict[Any, VectorRecord]:
    return {r.id: r for batch in store.scan() for r in batch.records()}


class Moody(MemoryStore):
    """A memory store that fails, or takes its time, on demand."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.error: Exception | None = None
        self.write_error: Exception | None = None
        self.pause = 0.0
        self.searches = 0

    def search(self, *args: Any, **options: Any) -> list[VectorRecord]:
        self.searches += 1
        time.sleep(self.pause)
        if self.error:
            raise self.error
        return super().search(*args, **options)

    def write(self, batch: RecordBatch) -> Any:
        if self.write_error:
            raise self.write_error
        return super().write(batch)

    def delete(self, ids: Any) -> int:
        if self.write_error:
            raise self.write_error
        return super().delete(ids)


@pytest.fixture
def words() -> WordEmbedder:
    return WordEmbedder()
