"""What serving during a move costs, next to doing without it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from common import Side, compare

from vecferry.connecting import Collection
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.model.vectors import DenseColumn
from vecferry.ports import WriteMode
from vecferry.serving import DualWriter, FallbackCollection, sync
from vecferry.serving.syncstate import content_digests
from vecferry.stores.memory import MemoryStore

DIM, N = 384, 5000
SCHEMA = CollectionSchema(fields=(VectorField(dim=DIM),))


class Instant(MemoryStore):
    """Answers at once, so that only what is around it is measured."""

    def search(self, *_: object, **__: object) -> list[VectorRecord]:
        return [VectorRecord.model_construct(id=i, text="t", vectors={}, sparse_vectors={}, metadata={},
                                             score=1.0) for i in range(10)]  # fmt: skip


def batch(n: int, start: int = 0) -> RecordBatch:
    values = np.random.default_rng(start).normal(size=(n, DIM)).astype(np.float32)
    return RecordBatch(
        ids=np.arange(start, start + n),
        vectors={"": DenseColumn(values)},
        texts=[f"text number {i}" for i in range(start, start + n)],
        metadata=[{"n": i, "lang": "en"} for i in range(start, start + n)],
    )


def filled(n: int) -> MemoryStore:
    store = MemoryStore()
    store.prepare(SCHEMA, WriteMode.UPSERT)
    if n:
        store.write(batch(n))
    return store


def searching() -> None:
    store = Instant()
    store.prepare(SCHEMA, WriteMode.UPSERT)
    plain = Collection(store)
    query = np.ones(DIM, np.float32)
    direct = FallbackCollection(store, Instant())
    timed = FallbackCollection(store, Instant(), timeout=5.0)

    def asking(what: object) -> int:
        for _ in range(2000):
            what.search(query, 10)  # type: ignore[attr-defined]
        return 2000

    for name, kb, goal in (("FallbackCollection", direct, 0.2), ("… with a timeout", timed, 0.1)):
        compare(
            "searches that cost nothing by themselves",
            Side("Collection.search", lambda: asking(plain)),
            Side(name, lambda kb=kb: asking(kb)),  # type: ignore[misc]
            goal=goal,
        )


def digesting() -> None:
    data = batch(N)

    def touch() -> int:
        for record in data.records():
            record.vectors[""].tobytes()
        return N

    compare(
        "content digests, next to going through the records",
        Side("records(), bytes of the vector", touch),
        Side("content_digests", lambda: len(content_digests(data))),
        goal=0.2,
    )


def syncing() -> None:
    source = filled(N)
    with tempfile.TemporaryDirectory() as folder:
        target = filled(0)
        sync(source, target, state=Path(folder) / "s")
        compare(
            "a sync that finds nothing, next to a plain copy",
            Side("write everything again", lambda: target.write(batch(N)).written),
            Side("sync by digest", lambda: sync(source, target, state=Path(folder) / "s").unchanged),
            goal=0.3,
            rounds=3,
        )


def writing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        old, new = filled(0), filled(0)
        pieces = [batch(50, 50 * i) for i in range(40)]

        def twice() -> int:
            for piece in pieces:
                old.write(piece)
                new.write(piece)
            return 2000

        with DualWriter(old, new, Path(folder) / "journal") as writer:
            compare(
                "writes of 50 to two collections in memory (the journal's fsync is the price)",
                Side("both, no journal", twice),
                Side("DualWriter", lambda: sum(writer.write(piece) for piece in pieces)),
                goal=0.1,
                rounds=3,
            )


if __name__ == "__main__":
    searching()
    digesting()
    syncing()
    writing()
