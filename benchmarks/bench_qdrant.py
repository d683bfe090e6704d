"""Writing to Qdrant: this store against the client's own `upload_collection`, on the same input.

    python benchmarks/bench_qdrant.py [ROWS]

In memory, in a folder, and over gRPC to the test server (which answers at once, so what is measured is the
client's side of the wire).
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

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


def ours(address: Address, rows: int) -> int:
    store = QdrantStore(address, f"ours{next(NUMBER)}")
    store.prepare(CollectionSchema(fields=(VectorField(dim=DIM),)), WriteMode.CREATE)
    for start in range(0, rows, BATCH):
        end = min(start + BATCH, rows)
        column = DenseColumn(vectors[start:end])
        store.write(
            RecordBatch(
                np.arange(start, end), {"": column}, texts=texts[start:end], metadata=metadata[start:end]
            )
        )
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


def over_grpc() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from servers.qdrant import QdrantServer, _done, _Points

    # The server takes the messages off the wire and forgets them.
    _Points.Upsert = lambda self, request, context: _done()  # type: ignore[method-assign]
    with QdrantServer() as server:
        address = Address(host="127.0.0.1", grpc_port=server.port, prefer_grpc=True)

        def client() -> QdrantClient:
            return QdrantClient(
                host="127.0.0.1", grpc_port=server.port, prefer_grpc=True, check_compatibility=False
            )

        compare(
            f"Qdrant over gRPC, client's side, {ROWS:,} × {DIM}",
            Side("upload_collection", lambda: theirs(client(), ROWS, batch_size=256)),
            Side("vecferry", lambda: ours(address, ROWS)),
            goal=0.85,
        )


def reading() -> None:
    """Both sides read the same answers; the server has them ready."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from servers.qdrant import QdrantServer, _Points

    rows, cache = min(ROWS, 4_000), {}
    original = _Points.Scroll

    def remembered(self: object, request: object, context: object) -> object:
        key = request.SerializeToString()  # type: ignore[attr-defined]
        if key not in cache:
            cache[key] = original(self, request, context)
        return cache[key]

    _Points.Scroll = remembered  # type: ignore[method-assign]
    with QdrantServer() as server:
        server.client.create_collection("c", models.VectorParams(size=DIM, distance=models.Distance.DOT))
        payload = [{"text": texts[i], **metadata[i]} for i in range(rows)]
        server.client.upload_collection("c", vectors[:rows], payload=payload, ids=range(rows))
        address = Address(host="127.0.0.1", grpc_port=server.port, prefer_grpc=True)
        vendor = QdrantClient(
            host="127.0.0.1", grpc_port=server.port, prefer_grpc=True, check_compatibility=False
        )

        def limit() -> int:
            offset, seen = None, 0
            while True:
                points, offset = vendor.scroll("c", limit=BATCH, offset=offset, with_vectors=True)
                seen += len(np.asarray([p.vector for p in points], dtype=np.float32))
                if offset is None:
                    return seen

        store = QdrantStore(address, "c")

        def read() -> int:
            return sum(len(batch) for batch in store.scan(batch_size=BATCH))

        assert limit() == read() == rows
        compare(
            f"Reading over gRPC, client's side, {rows:,} × {DIM}",
            Side("scroll, as arrays", limit),
            Side("vecferry, as batches", read),
            goal=2.0,
            rounds=3,
        )
        store.close()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    in_memory()
    in_folder()
    reading()
    over_grpc()
