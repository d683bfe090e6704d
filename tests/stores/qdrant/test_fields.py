"""Every kind, type and metric of vectors, ids and metadata, in a folder and over the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from known import some
from vecferry.errors import RejectedRecord, SchemaMismatchError, UnsupportedError
from vecferry.model import (
    CollectionSchema,
    EmbeddingSpace,
    Metric,
    RecordBatch,
    RecordId,
    SparseVector,
    VectorField,
    VectorRecord,
    encode_id,
)
from vecferry.model.metrics import score, sparse_score
from vecferry.ports import Fields, Sink, Store, WriteMode
from vecferry.ports.abilities import BatchSearchable, Deletable, Fetchable, Publishable
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.points import after, order, point_id

from .conftest import DIM, fill, read, records, schema, vectors

Open = Callable[..., QdrantStore]


@pytest.fixture(params=["folder", "wire"])
def open_(request: pytest.FixtureRequest) -> Open:
    found: Open = request.getfixturevalue(request.param)
    return found


def test_the_store_has_every_ability_it_should(folder: Open) -> None:
    store = folder()
    for ability in (Store, Sink, Fetchable, BatchSearchable, Deletable, Publishable):
        assert isinstance(store, ability)


# -- fields -------------------------------------------------------------------------------------

MIXED = CollectionSchema(
    fields=(
        VectorField(name="", dim=DIM),
        VectorField(name="title", dim=3, metric="ip"),
        VectorField(name="colbert", kind="multi", dim=4, metric="ip"),
        VectorField(name="words", kind="sparse", metric="ip"),
    )
)


def mixed(n: int) -> list[VectorRecord]:
    """Records in which each field is missing now and then, and everything in the last."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(n):
        dense: dict[str, Any] = {"": rng.standard_normal(DIM), "title": rng.standard_normal(3)}
        dense["colbert"] = rng.standard_normal((i % 3 + 1, 4))
        sparse = {"words": SparseVector(np.array([i, i + 10, 400]), rng.random(3).astype(np.float32) + 0.1)}
        keep = {name: value for j, (name, value) in enumerate(dense.items()) if (i + j) % 4 and i < n - 1}
        kept_sparse = sparse if i % 3 and i < n - 1 else {}
        found.append(VectorRecord(id=i, text=f"t{i}", vectors=keep, sparse_vectors=kept_sparse))
    return found


def test_named_sparse_multi_and_missing_vectors_come_back(open_: Open) -> None:
    rows = mixed(12)
    store = fill(open_(), rows, MIXED)
    fields = {f.name: (f.kind, f.dim, f.metric) for f in store.describe().fields}
    assert fields == {f.name: (f.kind, f.dim, f.metric) for f in MIXED.fields}
    for came, went in zip(read(store, batch_size=5), rows, strict=True):
        assert came.vectors.keys() == went.vectors.keys()
        for name, vector in went.vectors.items():
            np.testing.assert_allclose(came.vectors[name], vector, rtol=1e-6)
        assert came.sparse_vectors == went.sparse_vectors


def test_only_the_fields_wanted_are_read(open_: Open) -> None:
    store = fill(open_(), mixed(6), MIXED)
    (batch,) = store.scan(fields=Fields(vectors=("title", "words"), text=False))
    assert set(batch.vectors) == {"title"}
    assert set(batch.sparse_vectors) == {"words"}
    assert batch.texts is None and batch.metadata is not None


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2", "l1"])
def test_scores_are_those_of_the_metric(open_: Open, metric: str) -> None:
    like = CollectionSchema(fields=(VectorField(dim=DIM, metric=metric),))
    rows, query = records(20), vectors(1, seed=9)[0]
    store = fill(open_(), rows, like)
    field = like.fields[0]
    expected = sorted(
        ((score(field.metric, field.kind, query, r.vector), r.id) for r in rows), reverse=True
    )[:7]
    hits = store.search(query, 7)
    assert [hit.id for hit in hits] == [id_ for _, id_ in expected]
    np.testing.assert_allclose([some(hit.score) for hit in hits], [s for s, _ in expected], rtol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_multi_vectors_score_by_the_best_match_of_each_row(open_: Open, metric: str) -> None:
    like = CollectionSchema(fields=(VectorField(name="m", kind="multi", dim=4, metric=metric),))
    rng = np.random.default_rng(1)
    rows = [VectorRecord(id=i, vectors={"m": rng.standard_normal((i % 3 + 1, 4))}) for i in range(10)]
    query = rng.standard_normal((2, 4)).astype(np.float32)
    store = fill(open_(), rows, like)
    field = like.fields[0]
    expected = sorted(
        ((score(field.metric, field.kind, query, r.vectors["m"]), r.id) for r in rows), reverse=True
    )
    hits = store.search(query, 10, field="m")
    if metric == "l2":  # Qdrant sums squared distances here: the order is its own, the sign is ours
        assert [some(h.score) for h in hits] == sorted((some(h.score) for h in hits), reverse=True)
        return
    assert [hit.id for hit in hits] == [id_ for _, id_ in expected]
    np.testing.assert_allclose([some(hit.score) for hit in hits], [s for s, _ in expected], rtol=1e-4)


def test_many_queries_are_answered_as_one_by_one(open_: Open) -> None:
    store = fill(open_(), records(60))
    queries: Any = vectors(40, seed=4)
    for where in (None, {"n": {"$lt": 30}}, {"n": {"$nin": ["x", None]}}):
        each = [store.search(query, 5, where=where) for query in queries]
        assert store.search_many(queries, 5, where=where) == each
    (only,) = store.search_many(queries[:1], 3, fields=Fields.IDS)
    assert [hit.id for hit in only] == [hit.id for hit in store.search(queries[0], 3)]
    assert not only[0].vectors
    assert only[0].text is None
    assert store.search_many([], 3) == []


def test_sparse_vectors_are_searched(open_: Open) -> None:
    rows = mixed(12)
    store = fill(open_(), rows, MIXED)
    query = SparseVector(np.array([4, 14, 400]), np.array([1, 2, 0.5], np.float32))
    hits = store.search(query, 3, field="words")
    assert hits[0].id == 4
    stored = {r.id: r.sparse_vectors.get("words") for r in rows}
    for hit in hits:
        assert hit.score == pytest.approx(sparse_score(Metric.IP, query, some(stored[hit.id])), rel=1e-5)
    with pytest.raises(SchemaMismatchError, match="SparseVector"):
        store.search([1.0], 3, field="words")


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8"])
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_component_types_come_back(open_: Open, dtype: str, metric: str) -> None:
    like = CollectionSchema(fields=(VectorField(dim=DIM, dtype=dtype, metric=metric),))
    numbers = np.random.default_rng(2).integers(0 if dtype == "uint8" else -90, 99, (20, DIM)).astype(dtype)
    rows = [VectorRecord(id=i, vector=numbers[i]) for i in range(20)]
    store = fill(open_(), rows, like)
    assert store.describe().fields[0].dtype == dtype
    came = np.stack([some(r.vector) for r in read(store)])
    assert came.dtype == dtype
    np.testing.assert_allclose(came, numbers, rtol=2e-3 if dtype == "float16" else 0)


@pytest.mark.parametrize(
    ("field", "error"),
    [
        (VectorField(dim=8, dtype="bit", metric="hamming"), UnsupportedError),
        (VectorField(dim=8, dtype="bit", metric="cosine"), UnsupportedError),
        (VectorField(dim=None), SchemaMismatchError),
        (VectorField(kind="sparse", metric="ip"), UnsupportedError),
    ],
)
def test_what_qdrant_has_not_is_refused_before_anything_is_made(
    open_: Open, field: VectorField, error: type[Exception]
) -> None:
    store = open_()
    with pytest.raises(error):
        store.prepare(CollectionSchema(fields=(field,)), WriteMode.CREATE)
    assert not store.exists()


# -- lengths ------------------------------------------------------------------------------------


def test_lengths_that_cosine_takes_are_kept_and_restored(open_: Open) -> None:
    rows = records(30)
    store = fill(open_(), rows)
    assert store.capabilities().keeps_norms
    for _ in range(2):  # from the client that wrote, and from one that opens it anew
        for came, went in zip(read(store), rows, strict=True):
            np.testing.assert_allclose(some(came.vector), some(went.vector), rtol=1e-6)
        np.testing.assert_allclose(store.fetch([3]).vectors[""].values[0], some(rows[3].vector), rtol=1e-6)
        store.close()


def test_lengths_may_be_let_go(open_: Open) -> None:
    store = fill(open_(keep_norms=False), records(5))
    assert not store.capabilities().keeps_norms
    store.close()
    plain = open_(keep_norms=False)
    (batch,) = plain.scan(fields=Fields(text=False, metadata=False))
    directions = vectors(5) / np.linalg.norm(vectors(5), axis=1, keepdims=True)
    came = batch.vectors[""].values
    np.testing.assert_allclose(came / np.linalg.norm(came, axis=1, keepdims=True), directions, rtol=1e-5)


def test_unit_vectors_need_no_envelope(folder: Open) -> None:
    unit = vectors(5) / np.linalg.norm(vectors(5), axis=1, keepdims=True)
    store = fill(folder(), [VectorRecord(id=i, text="x", vector=unit[i]) for i in range(5)])
    path = store._address.path
    store.close()
    client = QdrantClient(path=path)
    assert [p.payload for p in client.scroll("c")[0]] == [{"text": "x"}] * 5
    client.close()


# -- ids ----------------------------------------------------------------------------------------


def test_integers_and_uuids_are_themselves(folder: Open) -> None:
    ids: list[RecordId] = [0, 2**64 - 1, UUID(int=5)]
    store = fill(folder(), [VectorRecord(id=i, vector=np.ones(DIM)) for i in ids])
    path = store._address.path
    store.close()
    client = QdrantClient(path=path)
    assert [p.id for p in client.scroll("c")[0]] == [0, 2**64 - 1, str(UUID(int=5))]
    client.close()


def test_the_order_of_ids_is_qdrants(folder: Open) -> None:
    ids: list[RecordId] = [3, 2**64 - 1, 0, UUID(int=0), uuid4(), uuid4(), UUID(int=2**128 - 1)]
    store = fill(folder(), [VectorRecord(id=i, vector=np.ones(DIM)) for i in ids])
    found = [point_id(r.id, text_ids=False)[0] for r in read(store, batch_size=2)]
    assert found == sorted(found, key=order)
    assert after(2**64 - 1) == str(UUID(int=0))
    assert after(str(UUID(int=2**128 - 1))) is None
    last = [b.cursor for b in store.scan(batch_size=3)][-1]
    assert list(store.scan(after=last)) == []


def test_deleting_takes_what_was_meant(open_: Open) -> None:
    ids: list[RecordId] = [7, "7", "007", UUID(int=7), str(UUID(int=7)), -7]
    store = fill(open_(), [VectorRecord(id=i, vector=np.ones(DIM)) for i in ids])
    assert store.delete(["7", str(UUID(int=7)), 8]) == 2
    left = {encode_id(r.id) for r in read(store)}
    assert left == {encode_id(i) for i in (7, "007", UUID(int=7), -7)}


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_rejected_by_id(open_: Open, bad: float) -> None:
    store = open_()
    store.prepare(schema(), WriteMode.CREATE)
    rows = records(5)
    rows[3] = VectorRecord(id="broken", vector=[bad] + [1.0] * (DIM - 1))
    with pytest.raises(RejectedRecord) as caught:
        store.write(RecordBatch.from_records(rows))
    assert caught.value.ids == ("broken",)
    assert store.count() == 0


def test_metadata_that_cannot_be_kept_is_rejected_by_id(open_: Open) -> None:
    store = open_()
    store.prepare(schema(), WriteMode.CREATE)
    rows = records(5)
    rows[2] = rows[2].replace(metadata={"what": object()})
    with pytest.raises(RejectedRecord, match="/what") as caught:
        store.write(RecordBatch.from_records(rows))
    assert caught.value.ids == (2,)
    assert store.count() == 0


def test_half_a_character_is_rejected(wire: Open) -> None:
    store = wire()
    store.prepare(schema(), WriteMode.CREATE)
    with pytest.raises(RejectedRecord) as caught:
        store.write(RecordBatch.from_records([VectorRecord(id=1, text="\ud800", vector=np.ones(DIM))]))
    assert caught.value.ids == (1,)


def test_a_batch_of_another_shape_is_refused(open_: Open) -> None:
    store = fill(open_(), records(2))
    with pytest.raises(SchemaMismatchError, match="8 dimensions"):
        store.write(RecordBatch.from_records([VectorRecord(id=9, vector=[1.0])]))
    with pytest.raises(SchemaMismatchError, match="'other'"):
        store.write(RecordBatch.from_records([VectorRecord(id=9, vectors={"other": np.ones(DIM)})]))
    assert store.count() == 2


# -- spaces -------------------------------------------------------------------------------------


def test_the_space_is_with_the_collection_itself(folder: Open) -> None:
    space = EmbeddingSpace(model="m", dim=DIM, prompt="passage: ")
    like = CollectionSchema(fields=(VectorField(dim=DIM, space=space),))
    store = folder()
    store.prepare(like, WriteMode.CREATE)  # before the first record
    path = store._address.path
    store.close()
    client = QdrantClient(path=path)
    noted = some(client.get_collection("c").config.metadata)["vecferry"]
    client.close()
    assert EmbeddingSpace(**noted["spaces"][""]) == space
    assert folder().describe().fields[0].space == space


def test_a_collection_of_the_app_learns_the_space_and_keeps_its_own_metadata(folder: Open) -> None:
    path = folder()._address.path
    client = QdrantClient(path=path)
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("c", params, metadata={"owner": "team a"})
    client.close()
    space = EmbeddingSpace(model="m", dim=DIM)
    store = folder()
    store.prepare(CollectionSchema(fields=(VectorField(dim=DIM, space=space),)), WriteMode.UPSERT)
    assert store.describe().fields[0].space == space
    store.close()
    client = QdrantClient(path=path)
    assert some(client.get_collection("c").config.metadata)["owner"] == "team a"
    client.close()
