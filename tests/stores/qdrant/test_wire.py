"""Over gRPC: what a server can do to a writer and a reader, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

import vecferry as vf
from known import some
from servers.qdrant import QdrantServer
from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    FatalStoreError,
    NotFoundError,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TargetExistsError,
    TimedOutError,
    UnsupportedError,
    VecferryError,
)
from vecferry.model import CollectionSchema, DenseColumn, EmbeddingSpace, RecordBatch, VectorField
from vecferry.ports import WriteMode
from vecferry.stores.qdrant import QdrantStore

from .conftest import DIM, address_of, fill, read, records, schema, vectors

Code = grpc.StatusCode
Open = Callable[..., QdrantStore]
QUICK = RetryPolicy(attempts=5, base=0.01, cap=0.02)


def batch(n: int = 100, dim: int = DIM) -> RecordBatch:
    return RecordBatch(
        np.arange(n), {"": DenseColumn(vectors(n, dim=dim))}, texts=[f"t{i}" for i in range(n)]
    )


# -- requests -----------------------------------------------------------------------------------


def test_requests_are_bounded_by_count(wire: Open, server: QdrantServer) -> None:
    store = wire(batch_points=30)
    store.prepare(schema(), WriteMode.CREATE)
    assert store.write(batch(100)).written == 100
    assert sorted(points for points, _ in server.upserts) == [10, 30, 30, 30]


def test_requests_are_bounded_by_bytes(wire: Open, server: QdrantServer) -> None:
    store = wire(max_bytes=20_000, batch_points=10_000)
    store.prepare(CollectionSchema(fields=(VectorField(dim=512),)), WriteMode.CREATE)
    store.write(batch(64, dim=512))
    assert len(server.upserts) > 5
    assert all(size <= 20_000 for _, size in server.upserts)
    sizes = sorted(size for _, size in server.upserts)
    assert sizes[1] > 15_000, "all but the last as full as they may be"


def test_requests_travel_side_by_side(wire: Open, server: QdrantServer) -> None:
    store = wire(batch_points=10, parallel=4)
    store.prepare(schema(), WriteMode.CREATE)
    server.fail("Upsert", Code.OK, times=8, seconds=0.1)
    store.write(batch(80))
    assert 2 <= server.most_at_once <= 4
    assert store.count() == 80


def test_float32_vectors_cross_bit_for_bit(wire: Open, server: QdrantServer) -> None:
    store = wire()
    store.prepare(CollectionSchema(fields=(VectorField(dim=DIM, metric="ip"),)), WriteMode.CREATE)
    odd = vectors(50) * np.float32(1e-30)
    odd[0] = np.float32(3.4028235e38)
    store.write(RecordBatch(np.arange(50), {"": DenseColumn(odd)}))
    came = np.stack([some(record.vector) for record in read(store)])
    np.testing.assert_array_equal(came, odd)


# -- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["before the work", "after the work"])
@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.ABORTED])
def test_a_passing_fault_is_passing(wire: Open, server: QdrantServer, code: Any, late: bool) -> None:
    store = wire(batch_points=25)
    store.prepare(schema(), WriteMode.CREATE)
    server.fail("Upsert", code, times=2, late=late)
    kind = TimedOutError if code is Code.DEADLINE_EXCEEDED else RetryableError
    with pytest.raises(kind, match=code.name):
        store.write(batch())
    assert QUICK.call(lambda: store.write(batch())).written == 100
    store.finish()
    assert sorted(r.id for r in read(store)) == list(range(100))


def test_the_servers_own_wish_is_told(wire: Open, server: QdrantServer) -> None:
    store = wire()
    store.prepare(schema(), WriteMode.CREATE)
    server.fail("Upsert", Code.RESOURCE_EXHAUSTED, "too many requests", retry_after=7)
    with pytest.raises(RetryableError) as caught:
        store.write(batch(5))
    assert caught.value.retry_after == 7
    assert not isinstance(caught.value, RequestTooLargeError)


def test_what_is_too_large_is_split(server: QdrantServer) -> None:
    with QdrantServer(max_message=40_000) as small:
        store = QdrantStore(address_of(small), "c", batch_points=10_000)
        store.prepare(CollectionSchema(fields=(VectorField(dim=512),)), WriteMode.CREATE)
        assert store.write(batch(64, dim=512)).written == 64
        assert store.count() == 64
        assert max(size for _, size in small.upserts) <= 40_000
        store.close()


def test_a_point_beyond_the_limit_is_rejected_by_its_id_when_alone() -> None:
    with QdrantServer(max_message=40_000) as small:
        store = QdrantStore(address_of(small), "c")
        store.prepare(schema(), WriteMode.CREATE)
        huge = RecordBatch([1], {"": DenseColumn(vectors(1))}, texts=["x" * 100_000])
        with pytest.raises(RejectedRecord, match="beyond the server's limit") as caught:
            store.write(huge)
        assert caught.value.ids == (1,)
        store.close()


def test_a_refused_batch_says_so(wire: Open, server: QdrantServer) -> None:
    store = wire()
    store.prepare(schema(), WriteMode.CREATE)
    server.fail("Upsert", Code.INVALID_ARGUMENT, "Wrong input: something about a point")
    with pytest.raises(RejectedRecord, match="Wrong input"):
        store.write(batch(5))


def test_a_server_that_dies_and_comes_back(server: QdrantServer, wire: Open) -> None:
    store = wire(batch_points=10)
    store.prepare(schema(), WriteMode.CREATE)
    store.write(batch(40))
    server.stop()
    with pytest.raises(RetryableError):
        store.write(batch(100))
    server.start()
    patient = RetryPolicy(attempts=50, base=0.1, cap=0.3)  # gRPC itself waits before it reconnects
    patient.call(lambda: store.write(batch(100)))
    store.finish()
    assert store.count() == 100


def test_a_scan_goes_on_at_its_cursor(wire: Open, server: QdrantServer) -> None:
    store = fill(wire(), records(60))
    seen, cursor = [], None
    server.fail("Scroll", Code.OK, times=4)
    server.fail("Scroll", Code.UNAVAILABLE, times=9)
    with pytest.raises(RetryableError):
        for part in store.scan(batch_size=10):
            seen += part.id_list
            cursor = part.cursor
    assert 0 < len(seen) < 60
    server.faults.clear()
    seen += [i for part in store.scan(batch_size=10, after=cursor) for i in part.id_list]
    assert seen == list(range(60))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.PERMISSION_DENIED, FatalStoreError),
        (Code.UNAUTHENTICATED, FatalStoreError),
        (Code.NOT_FOUND, NotFoundError),
        (Code.ALREADY_EXISTS, TargetExistsError),
        (Code.UNIMPLEMENTED, UnsupportedError),
        (Code.UNAVAILABLE, RetryableError),
    ],
)
def test_every_code_has_its_error(
    wire: Open, server: QdrantServer, code: Any, kind: type[VecferryError]
) -> None:
    server.fail("Count", code, times=9)
    with pytest.raises(kind):
        wire().count()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_key_is_sent_and_never_shown() -> None:
    with QdrantServer(api_key="s3cr3t-key") as guarded:
        store = QdrantStore(address_of(guarded, api_key="s3cr3t-key"), "c")
        fill(store, records(3))
        assert store.count() == 3
        guarded.fail("Count", Code.INTERNAL, "what is s3cr3t-key doing here", times=9)
        with pytest.raises(RetryableError) as caught:
            store.count()
        assert "s3cr3t-key" not in str(caught.value) + repr(store._address) + store.url
        store.close()
        stranger = QdrantStore(address_of(guarded, api_key="wrong"), "c")
        with pytest.raises(FatalStoreError, match="QDRANT_API_KEY"):
            stranger.count()
        stranger.close()


# -- finding the way ----------------------------------------------------------------------------


def test_grpc_is_used_where_it_answers(server: QdrantServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with vf.connect(server.url("c")) as there:
        there.write([{"id": 1, "vector": [1.0, 2.0]}])
        assert there.store._engine.grpc("c")
    assert server.client.count("c").count == 1


def test_rest_is_used_where_no_grpc_answers() -> None:
    store = vf.connect("qdrant://127.0.0.1:1/c?grpc_port=2&timeout=1").store
    assert not store._engine.grpc("c")
    with pytest.raises(RetryableError, match=r"127\.0\.0\.1:1"):
        store.count()
    store.close()


# -- building -----------------------------------------------------------------------------------


def test_the_graph_waits_for_the_load(wire: Open, server: QdrantServer) -> None:
    store = wire(batch_points=50, defer_index=True)
    store.prepare(schema(payload_indexes={"n": "integer"}), WriteMode.CREATE)
    store.write(batch(100))
    assert server.extras["c"].hnsw["m"] == 0
    store.finish()
    assert server.extras["c"].history == ["m=0", "upsert", "upsert", "index n", "m=16"]
    assert store.describe().payload_indexes == {"n": "integer"}


def test_a_load_that_died_is_finished_by_the_next(wire: Open, server: QdrantServer) -> None:
    like = schema(settings={"qdrant": {"hnsw_config": {"m": 24}}})
    first = wire(defer_index=True)
    first.prepare(like, WriteMode.CREATE)
    first.write(batch(10))
    assert not first.exists(), "begun is not published"
    first.close()
    second = wire(defer_index=True)
    second.prepare(like, WriteMode.RESUME)
    second.write(batch(20))
    assert server.extras["c"].hnsw["m"] == 0
    second.finish()
    assert server.extras["c"].hnsw["m"] == 24
    assert second.exists()
    assert second.describe().settings["qdrant"]["hnsw_config"]["m"] == 24


@pytest.mark.parametrize(
    ("call", "late"),
    [("Create", False), ("Create", True), ("GetCollection", False), ("Update", False), ("Update", True)],
)
def test_a_death_anywhere_in_prepare_is_healed(
    wire: Open, server: QdrantServer, call: str, late: bool
) -> None:
    server.fail(call, Code.UNAVAILABLE, late=late, times=9 if call == "GetCollection" else 1)
    with pytest.raises(RetryableError):
        wire(defer_index=True).prepare(schema(), WriteMode.CREATE)
    server.faults.clear()
    store = wire(defer_index=True)
    store.prepare(schema(), WriteMode.RESUME)
    assert server.extras["c"].hnsw["m"] == 0
    store.write(batch(10))
    store.finish()
    assert server.extras["c"].hnsw["m"] == 16
    assert store.count() == 10


def test_a_live_collection_keeps_its_index_during_an_upsert(wire: Open, server: QdrantServer) -> None:
    store = fill(wire(), records(5))
    del server.extras["c"].history[:]
    store.prepare(schema(), WriteMode.UPSERT)
    store.write(batch(10))
    store.finish()
    assert server.extras["c"].history == ["upsert"]


def test_a_server_that_keeps_no_metadata_is_read_and_not_written(wire: Open, server: QdrantServer) -> None:
    server.keeps_metadata = False
    with pytest.raises(UnsupportedError, match=r"1\.16"):
        wire().prepare(schema(), WriteMode.CREATE)
    assert not server.client.collection_exists("c"), "the target is as it was"
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    server.client.create_collection("app", params)
    server.client.upsert("app", [models.PointStruct(id=1, vector=[1.0] * DIM, payload={"text": "hi"})])
    assert [r.text for r in read(wire("app"))] == ["hi"]
    space = EmbeddingSpace(model="m", dim=DIM)
    with pytest.raises(UnsupportedError):
        like = CollectionSchema(fields=(VectorField(dim=DIM, space=space),))
        wire("app").prepare(like, WriteMode.UPSERT)


def test_settings_cross_from_server_to_server(server: QdrantServer, wire: Open) -> None:
    settings: dict[str, Any] = {
        "shard_number": 3,
        "replication_factor": 2,
        "on_disk_payload": True,
        "hnsw_config": {"m": 8, "ef_construct": 50},
        "quantization_config": {"scalar": {"type": "int8", "quantile": 0.5, "always_ram": True}},
    }
    own = {"on_disk": True, "hnsw_config": {"m": 5}}
    idf = {"modifier": "idf", "index": {"on_disk": True, "datatype": "float16"}}
    fields = (
        VectorField(name="a", dim=DIM, index={"qdrant.params": own}),
        VectorField(name="b", dim=3, metric="l2"),
        VectorField(name="s", kind="sparse", metric="ip", index={"qdrant.params": idf}),
    )
    like = CollectionSchema(
        fields=fields, settings={"qdrant": settings}, payload_indexes={"lang": "keyword"}
    )
    first = fill(wire("first"), [], like)
    second = fill(wire("second"), [], first.describe())
    before, after = first.describe(), second.describe()
    assert after.model_dump(exclude={"name"}) == before.model_dump(exclude={"name"})
    found = after.settings["qdrant"]
    for name, value in settings.items():
        if name == "hnsw_config":
            continue
        assert found[name] == value, name
    assert found["hnsw_config"].items() >= settings["hnsw_config"].items()
    assert after.field("a").index["qdrant.params"] == own
    assert after.field("s").index["qdrant.params"] == idf
    assert after.fields[0].index["hnsw_m"] == 5
    assert after.payload_indexes == {"lang": "keyword"}


@pytest.mark.parametrize("how", ["folder", "wire"])
def test_index_settings_of_another_store_are_taken_over(
    request: pytest.FixtureRequest, server: QdrantServer, how: str
) -> None:
    """As a pgvector table describes them."""
    index = {"hnsw_m": 24, "hnsw_ef_construct": 99}
    store = request.getfixturevalue(how)(defer_index=True)
    store.prepare(CollectionSchema(fields=(VectorField(dim=DIM, index=index),)), WriteMode.CREATE)
    assert store.describe().fields[0].index == index, "also while it is put off"
    if how == "wire":
        assert server.extras["c"].hnsw == {"m": 0, "ef_construct": 99}
    store.finish()
    assert store.describe().fields[0].index == index
    if how == "wire":
        assert server.extras["c"].hnsw == {"m": 24, "ef_construct": 99}


def test_a_field_with_a_graph_of_its_own_waits_too(wire: Open, server: QdrantServer) -> None:
    index = {"qdrant.params": {"hnsw_config": {"m": 5}}}
    like = CollectionSchema(fields=(VectorField(name="a", dim=DIM, index=index),))
    store = wire(defer_index=True)
    store.prepare(like, WriteMode.CREATE)
    assert graph(server) == 0
    store.finish()
    assert graph(server) == 5


def graph(server: QdrantServer) -> int:
    return int(server.info("c")["config"]["params"]["vectors"]["a"]["hnsw_config"]["m"])


def test_the_vendors_client_sees_plain_points(wire: Open, server: QdrantServer) -> None:
    fill(wire(), records(3))
    client = QdrantClient(
        host="127.0.0.1", grpc_port=server.port, prefer_grpc=True, check_compatibility=False
    )
    (point,) = client.retrieve("c", [2], with_payload=True)
    assert some(point.payload)["text"] == "text 2"
    assert some(point.payload)["n"] == 2
    client.close()
