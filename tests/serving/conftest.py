"""Small collections, an embedder without a model, and sides that misbehave."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vecferry.core.retry import RetryPolicy
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.ports import Changes, WriteMode
from vecferry.stores.memory import MemoryStore
from words import DIM, WordEmbedder

__all__ = ["DIM", "WordEmbedder"]

Store = TypeVar("Store")
QUICK = RetryPolicy(attempts=4, max_seconds=5.0, base=0.001, cap=0.01)


def schema(embedder: WordEmbedder | None) -> CollectionSchema:
    space = embedder.space if embedder else None
    return CollectionSchema(fields=(VectorField(dim=DIM, space=space),))


def record(number: int, embedder: WordEmbedder, text: str = "", **metadata: Any) -> VectorRecord:
    text = text or f"record number n{number} about topic t{number % 7}"
    return VectorRecord(
        id=number, text=text, vector=embedder.embed([text])[0], metadata={"n": number, **metadata}
    )


def fill(store: Store, embedder: WordEmbedder, numbers: Sequence[int] = range(30)) -> Store:
    sink: Any = store
    sink.prepare(schema(embedder), WriteMode.UPSERT)
    sink.write(RecordBatch.from_records([record(n, embedder) for n in numbers]))
    sink.finish()
    return store


def contents(store: Any) -> dict[Any, VectorRecord]:
    return {r.id: r for batch in store.scan() for r in batch.records()}


class Moody(MemoryStore):
    """A memory store that fails, or takes its time, on demand."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.error: Exception | None = None
        self.write_error: BaseException | None = None
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


@pytest.fixture
def source(words: WordEmbedder) -> Moody:
    return fill(Moody(), words)


@pytest.fixture
def target(words: WordEmbedder) -> Moody:
    return fill(Moody(), words, [])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "sync.sqlite3"


def tracked(source: MemoryStore, words: WordEmbedder) -> Any:
    """A store that keeps a log of changes, as a database with triggers does."""

    class Tracked(Moody):
        log: list[tuple[str, Any]]
        tracking = False

        def write(self, batch: RecordBatch) -> Any:
            if self.tracking:
                self.log.extend(("upsert", i) for i in batch.id_list)
            return super().write(batch)

        def delete(self, ids: Any) -> int:
            if self.tracking:
                self.log.extend(("delete", i) for i in ids)
            return super().delete(ids)

        def track(self) -> int:
            self.tracking = True
            return len(self.log)

        def changes(self, after: int, *, batch_size: int = 1024) -> Iterator[Changes]:
            while after < len(self.log):
                part = self.log[after : after + batch_size]
                after += len(part)
                ids = [i for what, i in part if what == "upsert"]
                found = self.fetch(list(dict.fromkeys(ids)))
                gone = [i for what, i in part if what == "delete" and i not in found.id_list]
                yield Changes(after, found, gone)

        def untrack(self) -> None:
            self.tracking = False
            self.log.clear()

    store = Tracked()
    store.log = []
    return fill(store, words)
