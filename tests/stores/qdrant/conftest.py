"""Stores to test with: a folder, the wire, and small collections of known records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servers.qdrant import QdrantServer
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.connection import Address

DIM = 8


def vectors(n: int, *, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """``(n, dim)`` float32, of many lengths."""
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def records(n: int, *, seed: int = 0, dim: int = DIM) -> list[VectorRecord]:
    values = vectors(n, seed=seed, dim=dim)
    return [VectorRecord(id=i, text=f"text {i}", vector=values[i], metadata={"n": i}) for i in range(n)]


def schema(**changes: Any) -> CollectionSchema:
    return CollectionSchema(fields=(VectorField(dim=DIM),)).model_copy(update=changes)


def fill(store: QdrantStore, rows: list[VectorRecord], like: CollectionSchema | None = None) -> QdrantStore:
    """Create, write, finish."""
    like = like or schema()
    store.prepare(like, WriteMode.CREATE)
    store.write(RecordBatch.from_records(rows, like))
    store.finish()
    return store


def read(store: Any, **how: Any) -> list[VectorRecord]:
    return [record for batch in store.scan(**how) for record in batch.records()]


def address_of(server: QdrantServer, **options: Any) -> Address:
    """The server, points by gRPC."""
    place = {"host": "127.0.0.1", "port": server.rest_port, "grpc_port": server.port, "prefer_grpc": True}
    return Address(**{**place, **options})


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with QdrantServer() as running:
        yield running


@pytest.fixture
def wire(server: QdrantServer) -> Iterator[Callable[..., QdrantStore]]:
    """Opens stores on the test server."""
    opened = []

    def open_(collection: str = "c", **options: Any) -> QdrantStore:
        address = address_of(server, timeout=5)
        opened.append(QdrantStore(address, collection, **options))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Callable[..., QdrantStore]]:
    """Opens stores in one local folder."""
    opened = []

    def open_(collection: str = "c", **options: Any) -> QdrantStore:
        opened.append(QdrantStore(Address(path=str(tmp_path / "db")), collection, **options))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()
