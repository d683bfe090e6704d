"""Against a real server at ``QDRANT_URL`` (``docker compose up -d qdrant``), left as it was found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from known import some
from vecferry.model import CollectionSchema, RecordBatch, VectorField, matches, parse_where
from vecferry.ports import StoreURL, WriteMode
from vecferry.stores.qdrant import QdrantStore
from vecferry.testing import StoreContract, VendorView

from .conftest import DIM, fill, read, records, schema
from .test_contract import TEXTS, peek
from .test_fields import MIXED, mixed
from .test_filters import METADATA
from .test_versions import build, tags

pytestmark = pytest.mark.qdrant_server
if "QDRANT_URL" not in os.environ:
    pytest.skip("QDRANT_URL is not set", allow_module_level=True)
PREFIX = "vecferry-test-"


def client() -> QdrantClient:
    return QdrantClient(
        url=os.environ["QDRANT_URL"],
        api_key=os.environ.get("QDRANT_API_KEY"),
        timeout=60,
        check_compatibility=False,
    )


@pytest.fixture(params=["grpc", "rest"])
def server(request: pytest.FixtureRequest) -> Iterator[Callable[..., QdrantStore]]:
    """Opens stores on the server; afterwards every collection and alias made here is gone."""
    run, opened = uuid4().hex[:8], []

    def open_(name: str = "c", **options: Any) -> QdrantStore:
        url = StoreURL.parse(f"qdrant:///{PREFIX}{run}-{name}")
        opened.append(QdrantStore.from_url(url, prefer_grpc=request.param == "grpc", **options))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()
    vendor = client()
    for collection in vendor.get_collections().collections:
        if collection.name.startswith(f"{PREFIX}{run}"):
            vendor.delete_collection(collection.name)
    vendor.close()


def test_the_version_is_one_that_keeps_metadata() -> None:
    vendor = client()
    found = vendor.info().version
    vendor.close()
    assert tuple(map(int, found.split(".")[:2])) >= (1, 16)


class TestServer(StoreContract):
    """The contract, under the metric that keeps vectors to the bit."""

    @pytest.fixture(autouse=True)
    def _server(self, server: Callable[..., QdrantStore]) -> None:
        self.server = server

    def open(self, folder: Path, name: str) -> QdrantStore:
        return self.server(name)

    def vendor_view(self, store: QdrantStore) -> dict[Any, VendorView]:
        vendor = client()
        try:
            return peek(vendor, store.collection, TEXTS["plain"])
        finally:
            vendor.close()


def test_every_kind_of_field(server: Callable[..., QdrantStore]) -> None:
    store = fill(server(), mixed(12), MIXED)
    for came, went in zip(read(store, batch_size=5), mixed(12), strict=True):
        assert came.vectors.keys() == went.vectors.keys()
        for name, vector in went.vectors.items():
            np.testing.assert_allclose(came.vectors[name], vector, rtol=1e-5, atol=1e-6)
        assert came.sparse_vectors == went.sparse_vectors


def test_lengths_are_restored(server: Callable[..., QdrantStore]) -> None:
    store = fill(server(), records(50))
    for came, went in zip(read(store), records(50), strict=True):
        np.testing.assert_allclose(some(came.vector), some(went.vector), rtol=1e-5)


def test_filters_pick_what_they_pick_in_python(server: Callable[..., QdrantStore]) -> None:
    rows = [r.replace(metadata=meta) for r, meta in zip(records(len(METADATA)), METADATA, strict=True)]
    store = fill(server(), rows)
    for expression in ("k > 1", "k == 'a'", "not k == 1", "k in [1, 'b', True]", "k <= 2.5 or l == False"):
        where = parse_where(expression)
        wanted = [i for i, meta in enumerate(METADATA) if matches(where, meta)]
        assert [r.id for r in read(store, where=where)] == wanted, expression


def test_settings_and_indexes_are_carried_over(server: Callable[..., QdrantStore]) -> None:
    settings = {
        "on_disk_payload": True,
        "hnsw_config": {"m": 8, "ef_construct": 50},
        "quantization_config": {"scalar": {"type": "int8", "quantile": 0.5, "always_ram": True}},
    }
    like = schema(settings={"qdrant": settings}, payload_indexes={"n": "integer"})
    first = fill(server("first"), records(20), like)
    second = fill(server("second"), records(20), first.describe())
    before, after = first.describe(), second.describe()
    assert after.payload_indexes == before.payload_indexes == {"n": "integer"}
    for key, value in settings.items():
        found = after.settings["qdrant"][key]
        assert found.items() >= value.items() if isinstance(value, dict) else found == value


def test_the_graph_is_put_off_and_built(server: Callable[..., QdrantStore]) -> None:
    store, vendor = server(defer_index=True), client()
    store.prepare(CollectionSchema(fields=(VectorField(dim=DIM),)), WriteMode.CREATE)
    assert vendor.get_collection(store.collection).config.hnsw_config.m == 0
    store.write(RecordBatch.from_records(records(3000)))
    store.finish()
    info = vendor.get_collection(store.collection)
    assert info.config.hnsw_config.m > 0
    assert info.points_count == 3000
    vendor.close()


def test_a_rate_limit_is_waited_for(server: Callable[..., QdrantStore]) -> None:
    """28 points a minute: the third request of ten has to wait until two more are allowed."""
    store, vendor = server(batch_points=10, parallel=1), client()
    store.prepare(schema(), WriteMode.CREATE)
    limits = models.StrictModeConfig(enabled=True, write_rate_limit=28)
    vendor.update_collection(store.collection, strict_mode_config=limits)
    began = time.monotonic()
    store.write(RecordBatch.from_records(records(30)))
    assert time.monotonic() - began > 1, "the limit has struck"
    assert vendor.count(store.collection).count == 30
    vendor.close()


def test_the_first_switch_and_the_way_back(server: Callable[..., QdrantStore]) -> None:
    store = fill(server(), records(600))
    build(store, "new", records(5))
    store.publish("new")
    assert tags(store) == [("new", True, 5), ("plain", False, 600)]
    store.rollback()
    assert len(read(store)) == 600
