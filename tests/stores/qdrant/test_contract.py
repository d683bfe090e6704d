"""The contract: in a folder, in memory and over gRPC, under two metrics and in several layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from servers.qdrant import QdrantServer
from vecferry.model import Metric
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.connection import MEMORY, Address
from vecferry.stores.qdrant.folder import _OPEN
from vecferry.testing import StoreContract, VendorView

TEXTS: dict[str, Callable[[Any], str]] = {
    "plain": lambda payload: payload["text"],
    "langchain": lambda payload: payload["page_content"],
    "llamaindex": lambda payload: json.loads(payload["_node_content"])["text"],
}


def peek(client: QdrantClient, collection: str, text_of: Callable[[Any], str]) -> dict[Any, VendorView]:
    points, _ = client.scroll(collection, limit=1000, with_vectors=True)
    return {point.id: VendorView(text_of(point.payload), point.vector) for point in points}


class TestFolder(StoreContract):
    layout = "plain"

    def open(self, folder: Path, name: str) -> QdrantStore:
        return QdrantStore(Address(path=str(folder / "db")), name, layout=self.layout)

    def vendor_view(self, store: QdrantStore) -> dict[Any, VendorView]:
        client = QdrantClient(path=store._address.path)
        try:
            return peek(client, store.collection, TEXTS[self.layout])
        finally:
            client.close()


class TestCosineFolder(TestFolder):
    """Unit vectors, which a cosine collection keeps up to rounding."""

    metric = Metric.COSINE
    exact = False


class TestLangChainInMemory(TestFolder):
    layout = "langchain"

    def open(self, folder: Path, name: str) -> QdrantStore:
        collection = f"{folder}-{name}".replace("/", "_")
        return QdrantStore(Address(path=MEMORY), collection, layout=self.layout)

    def vendor_view(self, store: QdrantStore) -> dict[Any, VendorView]:
        return peek(_OPEN[MEMORY].client, store.collection, TEXTS[self.layout])


class TestLlamaIndexInMemory(TestLangChainInMemory):
    layout = "llamaindex"


class TestWire(StoreContract):
    """Over gRPC, in small requests, several at once."""

    @pytest.fixture(autouse=True)
    def _server(self) -> Any:
        with QdrantServer() as server:
            self.server = server
            yield

    def open(self, folder: Path, name: str) -> QdrantStore:
        address = Address(host="127.0.0.1", port=self.server.rest_port, grpc_port=self.server.port)
        return QdrantStore(address, name, batch_points=3, parallel=3)

    def vendor_view(self, store: QdrantStore) -> dict[Any, VendorView]:
        return peek(self.server.client, store.collection, TEXTS["plain"])
