"""Over REST, for servers whose gRPC port is closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from known import some
from servers.qdrant import QdrantServer
from vecferry.errors import FatalStoreError, NotFoundError, RejectedRecord, RetryableError
from vecferry.model import CollectionSchema, DenseColumn, RecordBatch, VectorField
from vecferry.ports import Fields, WriteMode
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.connection import Address

from .conftest import DIM, fill, read, records, schema, vectors
from .test_fields import MIXED, mixed


@pytest.fixture
def rest() -> Iterator[QdrantServer]:
    with QdrantServer() as running:
        yield running


def open_(server: QdrantServer, **options: Any) -> QdrantStore:
    return QdrantStore(
        Address(host="127.0.0.1", port=server.rest_port, prefer_grpc=False, timeout=5), "c", **options
    )


def test_every_field_and_type_crosses(rest: QdrantServer) -> None:
    store = fill(open_(rest, batch_points=4), mixed(12), MIXED)
    assert not store._engine.grpc("c")
    assert rest.calls["Upsert"] == 3
    for came, went in zip(read(store, batch_size=5), mixed(12), strict=True):
        assert (came.id, came.text) == (went.id, went.text)
        assert came.vectors.keys() == went.vectors.keys()
        for name, vector in went.vectors.items():
            np.testing.assert_allclose(came.vectors[name], vector, rtol=1e-6)
        assert came.sparse_vectors == went.sparse_vectors
    store.close()


def test_float32_vectors_cross_bit_for_bit(rest: QdrantServer) -> None:
    like = CollectionSchema(fields=(VectorField(dim=DIM, metric="l2"),))
    store = fill(open_(rest), records(50), like)
    np.testing.assert_array_equal(np.stack([some(r.vector) for r in read(store)]), vectors(50))
    assert store.search(vectors(50)[7], 1)[0].id == 7
    many = store.search_many(list(vectors(50)[3:6]), 1, fields=Fields.IDS)
    assert [hits[0].id for hits in many] == [3, 4, 5]
    assert store.delete([7, 8, 99]) == 2
    assert store.fetch([7, 9]).id_list == [9]
    store.close()


def test_a_url_finds_its_way(rest: QdrantServer) -> None:
    with vf.connect(f"qdrant://127.0.0.1:{rest.rest_port}/c?grpc_port=1") as there:
        there.write([{"id": "a", "vector": [1.0, 0.0], "text": "hi"}])
        assert [(r.id, r.text) for r in there.records()] == [("a", "hi")]
    with pytest.raises(NotFoundError, match="nobody"):
        vf.connect(f"qdrant://127.0.0.1:{rest.rest_port}/nobody?grpc_port=1").describe()


def test_the_servers_wish_and_its_refusals(rest: QdrantServer) -> None:
    store = open_(rest)
    store.prepare(schema(), WriteMode.CREATE)
    batch = RecordBatch.from_records(records(3))
    rest.answers = [
        (429, {"retry-after": "3"}, "slow down"),
        (503, {}, "starting"),
        (400, {}, "Wrong input: bad point"),
    ]
    with pytest.raises(RetryableError) as caught:
        store.write(batch)
    assert caught.value.retry_after == 3
    with pytest.raises(RetryableError):
        store.write(batch)
    with pytest.raises(RejectedRecord, match="bad point"):
        store.write(batch)
    assert store.write(batch).written == 3
    store.close()


def test_a_body_beyond_the_limit_is_split() -> None:
    with QdrantServer(max_body=20_000) as small:
        store = open_(small, batch_points=10_000, max_bytes=2**30)
        store.prepare(CollectionSchema(fields=(VectorField(dim=256),)), WriteMode.CREATE)
        store.write(RecordBatch(np.arange(40), {"": DenseColumn(vectors(40, dim=256))}))
        assert store.count() == 40
        with pytest.raises(RejectedRecord, match="limit") as caught:
            store.write(RecordBatch(["big"], {"": DenseColumn(vectors(1, dim=256))}, texts=["x" * 30_000]))
        assert caught.value.ids == ("big",)
        store.close()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "Limit exceeded 8 > 2 for upsert limit"),
        (
            429,
            "Rate limiting exceeded: Write rate limit exceeded, request larger than rate limiter capacity,"
            " please try to split your request",
        ),
    ],
)
def test_more_points_than_strict_mode_allows_are_split(rest: QdrantServer, status: int, text: str) -> None:
    store = open_(rest)
    store.prepare(schema(), WriteMode.CREATE)
    rest.answers = [(status, {}, text), (status, {}, text)]
    store.write(RecordBatch.from_records(records(8)))
    assert store.count() == 8
    assert rest.calls["Upsert"] == 3  # of 2, 2 and 4
    store.close()


def test_pages_are_no_larger_than_strict_mode_allows(rest: QdrantServer) -> None:
    store = fill(open_(rest), records(20), schema())
    rest.extra("c").config["strict_mode_config"] = {"enabled": True, "max_query_limit": 3}
    assert [r.id for r in read(store, batch_size=100)] == list(range(20))
    assert sum(len(read(store, partition=share)) for share in store.partitions(4)) == 20
    assert len(store.versions()) == 1
    rest.client.create_collection("c__vf_new", {})
    store.publish("new")
    assert rest.client.count("c__vf_plain").count == 20
    store.close()


def test_of_two_records_with_one_id_the_later_one_counts(rest: QdrantServer) -> None:
    store = open_(rest, batch_points=1)
    store.prepare(schema(), WriteMode.CREATE)
    first, other, last = records(3)
    for _ in range(5):
        store.write(RecordBatch.from_records([first, other, last.model_copy(update={"id": first.id})]))
        assert store.fetch([first.id]).text_list == [last.text]
    store.close()


def test_nothing_is_asked_for_nothing(rest: QdrantServer) -> None:
    store = fill(open_(rest), records(3), schema())
    assert store.search(vectors(1)[0], 0) == []
    store.close()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantServer(api_key="s3cr3t-key") as guarded:
        monkeypatch.setenv("QDRANT_URL", f"http://127.0.0.1:{guarded.rest_port}")
        with pytest.raises(FatalStoreError, match="QDRANT_API_KEY"):
            vf.connect("qdrant:///c?grpc_port=1").store.count()
        monkeypatch.setenv("QDRANT_API_KEY", "s3cr3t-key")
        with vf.connect("qdrant:///c?grpc_port=1") as there:
            there.write([{"id": 1, "vector": [1.0]}])
            assert there.count() == 1
            assert "s3cr3t" not in repr(there) + there.url + repr(there.store._address)
