"""Over REST, for servers whose gRPC port is closed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import vecferry as vf
from servers.qdrant_rest import QdrantRest
from vecferry.errors import FatalStoreError, NotFoundError, RejectedRecord, RetryableError
from vecferry.ports import Fields, WriteMode
from vecferry.records import CollectionSchema, DenseColumn, RecordBatch, VectorField
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.connection import Address

from .conftest import DIM, fill, read, records, schema, vectors
from .test_fields import MIXED, mixed


@pytest.fixture
def rest() -> Iterator[QdrantRest]:
    with QdrantRest() as running:
        yield running


def open_(server: QdrantRest, **options: object) -> QdrantStore:
    return QdrantStore(Address(host="127.0.0.1", port=server.port, grpc_port=1, timeout=5), "c", **options)


def test_every_field_and_type_crosses(rest: QdrantRest) -> None:
    store = fill(open_(rest, batch_points=4), mixed(12), MIXED)
    assert not store._at.grpc
    assert rest.calls["upsert"] == 3
    for came, went in zip(read(store, batch_size=5), mixed(12), strict=True):
        assert (came.id, came.text) == (went.id, went.text)
        assert came.vectors.keys() == went.vectors.keys()
        for name, vector in went.vectors.items():
            np.testing.assert_allclose(came.vectors[name], vector, rtol=1e-6)
        assert came.sparse_vectors == went.sparse_vectors
    store.close()


def test_float32_vectors_cross_bit_for_bit(rest: QdrantRest) -> None:
    like = CollectionSchema(fields=(VectorField(dim=DIM, metric="l2"),))
    store = fill(open_(rest), records(50), like)
    np.testing.assert_array_equal(np.stack([r.vector for r in read(store)]), vectors(50))
    assert store.search(vectors(50)[7], 1)[0].id == 7
    many = store.search_many(vectors(50)[3:6], 1, fields=Fields.IDS)
    assert [hits[0].id for hits in many] == [3, 4, 5]
    assert store.delete([7, 8, 99]) == 2
    assert store.fetch([7, 9]).id_list == [9]
    store.close()


def test_a_url_finds_its_way(rest: QdrantRest) -> None:
    with vf.connect(f"qdrant://127.0.0.1:{rest.port}/c?grpc_port=1") as there:
        there.write([{"id": "a", "vector": [1.0, 0.0], "text": "hi"}])
        assert [(r.id, r.text) for r in there.records()] == [("a", "hi")]
    with pytest.raises(NotFoundError, match="nobody"):
        vf.connect(f"qdrant://127.0.0.1:{rest.port}/nobody?grpc_port=1").describe()


def test_the_servers_wish_and_its_refusals(rest: QdrantRest) -> None:
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
    with QdrantRest(max_body=20_000) as small:
        store = open_(small, batch_points=10_000, max_bytes=2**30)
        store.prepare(CollectionSchema(fields=(VectorField(dim=256),)), WriteMode.CREATE)
        store.write(RecordBatch(np.arange(40), {"": DenseColumn(vectors(40, dim=256))}))
        assert store.count() == 40
        with pytest.raises(RejectedRecord, match="limit") as caught:
            store.write(RecordBatch(["big"], {"": DenseColumn(vectors(1, dim=256))}, texts=["x" * 30_000]))
        assert caught.value.ids == ("big",)
        store.close()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantRest(api_key="s3cr3t-key") as guarded:
        monkeypatch.setenv("QDRANT_URL", f"http://127.0.0.1:{guarded.port}")
        with pytest.raises(FatalStoreError, match="QDRANT_API_KEY"):
            vf.connect("qdrant:///c?grpc_port=1").store.count()
        monkeypatch.setenv("QDRANT_API_KEY", "s3cr3t-key")
        with pytest.warns(UserWarning, match="insecure"), vf.connect("qdrant:///c?grpc_port=1") as there:
            there.write([{"id": 1, "vector": [1.0]}])
            assert there.count() == 1
            assert "s3cr3t" not in repr(there) + there.url + repr(there.store._at.address)
