"""Writing to Qdrant: this store against the client's own `upload_collection`, on the same input.

    python benchmarks/bench_qdrant.py [ROWS]

In memory, in a folder, and to the server at QDRANT_URL if there is one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from common import Side, compare
from qdrant_client import QdrantClient, models

from vecferry.model import CollectionSchema, DenseColumn, RecordBatch, VectorField
from vecferry.ports import WriteMode
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.connection import Address

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 8_000
DIM, BATCH = 384, 1024
NUMBER = itertools.count()

vectors = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
texts = [f"a gloss of about the length that a WordNet gloss has, number {i}" for i in range(ROWS)]
metadata = [{"pos": "n", "lexname": "noun.animal", "n": i} for i in range(ROWS)]


def batches(rows: int) -> Iterator[RecordBatch]:
    for start in range(0, rows, BATCH):
        end = min(start + BATCH, rows)
        column = DenseColumn(vectors[start:end])
        yield RecordBatch(
            np.arange(start, end), {"": column}, texts=texts[start:end], metadata=metadata[start:end]
        )


def ours(address: Address, rows: int) -> int:
    store = QdrantStore(address, f"ours{next(NUMBER)}")
    store.prepare(CollectionSchema(fields=(VectorField(dim=DIM),)), WriteMode.CREATE)
    for batch in batches(rows):
        store.write(batch)
    store.finish()
    store.close()
    return rows


def theirs(client: QdrantClient, rows: int, **how: object) -> int:
    name = f"theirs{next(NUMBER)}"
    client.create_collection(name, models.VectorParams(size=DIM, distance=models.Distance.COSINE))
    payload = [{"text": text, **meta} for text, meta in zip(texts[:rows], metadata[:rows], strict=True)]
    client.upload_collection(name, vectors[:rows], payload=payload, ids=range(rows), wait=True, **how)
    client.close()
    return rows


def in_memory() -> None:
    compare(
        f"Qdrant in memory, {ROWS:,} × {DIM}",
        Side("upload_collection", lambda: theirs(QdrantClient(":memory:"), ROWS)),
        Side("vecferry", lambda: ours(Address(path=":memory:"), ROWS)),
        goal=0.95,
    )


def in_folder() -> None:
    rows = min(ROWS, 2_000)  # one commit a point makes the other side slow
    with tempfile.TemporaryDirectory() as folder:
        places = (Path(folder) / str(i) for i in itertools.count())

        def fresh(run: Callable[[str], int]) -> int:
            place = next(places)
            done = run(str(place))
            shutil.rmtree(place)
            return done

        compare(
            f"Qdrant in a folder, {rows:,} × {DIM}",
            Side("upload_collection", lambda: fresh(lambda p: theirs(QdrantClient(path=p), rows))),
            Side("vecferry", lambda: fresh(lambda p: ours(Address(path=p), rows))),
            goal=0.95,
            rounds=3,
        )


def over_the_wire() -> None:
    """Against the server at QDRANT_URL: the client's CPU, the clock, and when every index is complete."""
    url = os.environ["QDRANT_URL"]
    where = urlsplit(url)
    address = Address(host=where.hostname or "localhost", port=where.port or 6333, timeout=300)

    def client() -> QdrantClient:
        return QdrantClient(url=url, grpc_port=address.port + 1, prefer_grpc=True, timeout=300)

    compare(
        f"Qdrant server, {ROWS:,} × {DIM}",
        Side("upload_collection", lambda: theirs(client(), ROWS, batch_size=256)),
        Side("vecferry", lambda: ours(address, ROWS)),
        goal=0.95,
        rounds=3,
    )
    for label, how in (("points by gRPC", {}), ("by REST", {"prefer_grpc": False}), ("HNSW put off", {})):
        name = f"bench{next(NUMBER)}"
        store = QdrantStore(replace(address, **how), name, defer_index="off" in label)
        store.prepare(CollectionSchema(fields=(VectorField(dim=DIM),)), WriteMode.CREATE)
        clock, cpu = time.perf_counter(), time.process_time()
        for batch in batches(ROWS):
            store.write(batch)
        wrote, used = time.perf_counter() - clock, time.process_time() - cpu
        store.finish()
        store.settle(300)
        green = time.perf_counter() - clock
        clock, cpu = time.perf_counter(), time.process_time()
        count = sum(len(batch) for batch in store.scan(batch_size=4096))
        read, reading = time.perf_counter() - clock, time.process_time() - cpu
        assert count == ROWS
        print(
            f"  {label:15} written {ROWS / wrote:8,.0f}/s at {1e6 * used / ROWS:3.0f} µs of CPU, "
            f"green after {green:5.1f} s, read {ROWS / read:8,.0f}/s at {1e6 * reading / ROWS:3.0f} µs"
        )
        store._engine.drop(name)
        store.close()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    in_memory()
    in_folder()
    if "QDRANT_URL" in os.environ:
        over_the_wire()
