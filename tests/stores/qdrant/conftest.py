"""Stores to test with: a folder, the wire, and small collections of known records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from servers.qdrant import QdrantServer
from servers.real_qdrant import RealServer
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
    if isinstance(server, RealServer):
        place |= {"host": server.host, "api_key": server.api_key}
    return Address(**{**place, **options})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the versions that the run was against."""
    url = os.environ.get("QDRANT_URL")
    if url is None:
        return
    key = os.environ.get("QDRANT_API_KEY")
    try:
        answer = httpx.get(url, headers={"api-key": key} if key else {}, timeout=10)
        server = answer.json()["version"]
    except (httpx.HTTPError, ValueError, LookupError) as error:
        server = f"of unknown version ({error!r})"
    terminalreporter.write_line(f"Qdrant server {server}, qdrant-client {version('qdrant-client')}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules that say ``REAL_TOO`` meet both servers, save their tests that are ``wire_only``."""
    if "server" not in metafunc.fixturenames or not getattr(metafunc.module, "REAL_TOO", False):
        return
    if metafunc.definition.get_closest_marker("wire_only"):
        return
    skip = pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="QDRANT_URL is not set")
    real = pytest.param("real", marks=[pytest.mark.qdrant_server, skip])
    metafunc.parametrize("server", ["wire", real], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[QdrantServer | RealServer]:
    """The test server; for tests of both, the real one too."""
    with RealServer() if getattr(request, "param", "wire") == "real" else QdrantServer() as running:
        yield running


@pytest.fixture
def wire(server: QdrantServer) -> Iterator[Callable[..., QdrantStore]]:
    """Opens stores on the test server."""
    opened = []

    def open_(collection: str = "c", **options: Any) -> QdrantStore:
        address = address_of(server, timeout=60 if isinstance(server, RealServer) else 5)
        opened.append(QdrantStore(address, server.named(collection), **options))
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
