"""What a server allows: strict mode, rate limits, scoped keys, shard keys; pages sized by what arrives."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from qdrant_client import models

import vecferry as vf
from servers.qdrant import QdrantServer, Refusal
from vecferry.errors import CorruptDataError, FatalStoreError, PlanError, RetryableError
from vecferry.model import CollectionSchema, EmbeddingSpace, VectorField, VectorRecord
from vecferry.ports import WriteMode

from .conftest import fill, read

REAL_TOO = True
SCHEMA = CollectionSchema(fields=(VectorField(dim=2, metric="ip"),))


def rows(n: int) -> list[VectorRecord]:
    return [VectorRecord(id=i, vector=[1.0, i], metadata={"page": i, "half": i / 2}) for i in range(n)]


@pytest.fixture
def filled(server: QdrantServer) -> Any:
    with vf.connect(server.url("c")) as there:
        yield fill(there.store, rows(20), SCHEMA)


def strict(server: QdrantServer, **limits: Any) -> None:
    server.update("c", {"strict_mode_config": {"enabled": True, **limits}})


WHERES: list[dict[str, Any]] = [
    {"page": {"$gte": 10}},
    {"half": {"$gte": 4}},
    {"half": 2.5},
    {"$not": {"page": {"$lt": 15}}},
    {"page": {"$exists": True}},
    {"half": {"$ne": 2.5}},
]


def picked(where: dict[str, Any]) -> list[int]:
    from vecferry.model import matches

    return [r.id for r in rows(20) if matches(where, r.metadata)]


@pytest.mark.parametrize("index", ["integer", "float", "keyword", "datetime"])
@pytest.mark.parametrize("where", WHERES, ids=str)
def test_an_index_decides_nothing_about_a_filter(
    server: QdrantServer, filled: Any, where: dict[str, Any], index: str
) -> None:
    """An integer index does not hold 2.5, a datetime index compares numbers as moments."""
    server.index("c", "half", index)
    server.index("c", "page", index)
    assert [r.id for r in read(filled, where=where)] == picked(where)


@pytest.mark.parametrize("where", WHERES, ids=str)
@pytest.mark.parametrize("indexed", [False, True])
def test_filters_without_an_index_are_decided_here(
    server: QdrantServer, filled: Any, where: dict[str, Any], indexed: bool
) -> None:
    if indexed:
        server.index("c", "page", "integer")
        server.index("c", "half", "float")
    strict(server, unindexed_filtering_retrieve=False)
    assert [r.id for r in read(filled, where=where)] == picked(where)
    hits = filled.search([0.0, 1.0], 3, where=where)
    assert [hit.id for hit in hits] == picked(where)[::-1][:3]


def test_more_conditions_than_are_allowed_are_decided_here(server: QdrantServer, filled: Any) -> None:
    strict(server, filter_max_conditions=1)
    where = {"half": {"$gte": 4}, "page": {"$lt": 15}}
    assert [r.id for r in read(filled, where=where)] == picked(where)
    assert [r.id for r in filled.search([0.0, 1.0], 1, where=where)] == [14]


@pytest.mark.wire_only  # any refusal at all
def test_any_refusal_of_a_filter_falls_back(server: QdrantServer, filled: Any) -> None:
    """Strict mode bounds how many conditions a filter may have, how large they are, and more."""

    def refuse(name: str, condition: Any) -> None:
        raise Refusal(400, "Bad request: Filter condition limit reached (9 > 1)")

    server.check_filter = refuse  # type: ignore[method-assign]
    assert [r.id for r in read(filled, where={"half": {"$gte": 4}})] == picked({"half": {"$gte": 4}})
    assert [r.id for r in filled.search([0.0, 1.0], 1, where={"half": {"$gte": 4}})] == [19]


def test_counting_where_no_exact_count_is_allowed(server: QdrantServer, filled: Any) -> None:
    strict(server, search_allow_exact=False)
    assert filled.count() == 20
    assert filled.describe().count == 20


@pytest.mark.wire_only  # counts what was accepted, in a minute of its own
@pytest.mark.parametrize(
    ("sent", "requests"),
    [({"batch_points": 10, "parallel": 2}, 4), ({"batch_points": 10, "parallel": 1}, 4), ({}, 2)],
    ids=["side by side", "one by one", "halved"],
)
def test_a_rate_limit_makes_progress(
    server: QdrantServer, monkeypatch: pytest.MonkeyPatch, sent: dict[str, int], requests: int
) -> None:
    """A refused part waits as long as the server says, and the acknowledged parts are not sent again."""
    waits: list[float] = []
    server.minute = 0.4

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        server.minute = 0.0  # a minute has passed

    with vf.connect(server.url("c", **sent)) as there:
        there.store.prepare(SCHEMA, WriteMode.CREATE)
        server.minute = 60.0
        strict(server, write_rate_limit=25)
        monkeypatch.setattr(time, "sleep", sleep)
        from vecferry.model import RecordBatch

        there.store.write(RecordBatch.from_records(rows(40)))
        assert there.count() == 40
    assert waits and set(waits) == {1.0}
    accepted = server.extra("c").history.count("upsert")
    assert accepted == requests, "each part once"


@pytest.mark.wire_only  # a moment that cannot be held
def test_points_that_wait_for_the_optimizer_are_not_overlooked(server: QdrantServer, filled: Any) -> None:
    server.extra("c").hidden = 5
    assert filled.describe().count == 20, "segments under work are counted twice for a moment"
    server.extra("c").config["optimizer_config"] = {"prevent_unoptimized": True}
    with pytest.raises(FatalStoreError, match="25 points and gives 20"):
        filled.describe()


@pytest.mark.wire_only  # a server that loses a point
def test_what_is_counted_is_what_is_read(server: QdrantServer, filled: Any) -> None:
    original = server.scroll

    def scroll(name: str, body: dict[str, Any]) -> Any:
        points, following = original(name, body)
        return [point for point in points if point.id != 7], following

    server.scroll = scroll  # type: ignore[method-assign]
    with pytest.raises(CorruptDataError, match="counts 20 points and gave 19"):
        list(filled.scan())
    filled.delete([3])
    with pytest.raises(CorruptDataError, match="counts 19 points and gave 18"):
        list(filled.scan())


def test_points_that_are_deleted_while_they_are_read_are_not_missed(filled: Any) -> None:
    pages = filled.scan(batch_size=5)
    next(pages)
    filled.delete([17, 18])
    assert sum(map(len, pages)) == 13


@pytest.mark.wire_only  # shard keys need a cluster
def test_shard_keys_are_refused_by_name_or_chosen(server: QdrantServer, filled: Any) -> None:
    server.extra("c").params["sharding_method"] = "custom"
    server.shards = [{"shard_id": i, "shard_key": key} for i, key in enumerate(["eu", "us"])]
    with pytest.raises(PlanError, match=r"\(eu, us\).*shard_key="):
        filled.describe()
    seen: list[Any] = []
    original = server.scroll

    def scroll(name: str, body: dict[str, Any]) -> Any:
        seen.append(body.get("shard_key"))
        return original(name, body)

    server.scroll = scroll  # type: ignore[method-assign]
    with vf.connect(server.url("c", shard_key="eu")) as chosen:
        assert len(list(chosen.records())) == 20
    assert set(seen) == {"eu"}


@pytest.mark.wire_only  # such a key needs a server with JWT
def test_a_key_that_may_only_write_points_says_so(server: QdrantServer) -> None:
    params = models.VectorParams(size=2, distance=models.Distance.DOT)
    server.client.create_collection("c", params)
    claims = base64.urlsafe_b64encode(
        json.dumps({"access": [{"collection": "c", "access": "rw"}]}).encode()
    )
    key = f"e30.{claims.decode().rstrip('=')}.c2ln"

    def refuse(*_: Any) -> Any:
        raise Refusal(403, "Forbidden: Global access is required")

    server.update = server.index = refuse  # type: ignore[method-assign, assignment]
    space = EmbeddingSpace(model="m", dim=2)
    like = CollectionSchema(
        fields=(VectorField(dim=2, metric="ip", space=space),), payload_indexes={"a": "integer"}
    )
    with vf.connect(server.url("c"), api_key=key) as there:
        (loss,) = there.store.capabilities().losses
        assert "cannot be noted" in str(loss) and loss.example == "c"
        there.store.prepare(like, WriteMode.UPSERT)
        from vecferry.model import RecordBatch

        there.store.write(RecordBatch.from_records(rows(3)))
        there.store.finish()
        assert there.count() == 3
    with vf.connect(server.url("c"), api_key="plain-key") as there:
        assert there.store.capabilities().losses == ()


def test_pages_are_sized_by_what_arrives(server: QdrantServer) -> None:
    text = "x" * 2_000_000
    with vf.connect(server.url("c")) as there:
        small = [VectorRecord(id=i, vector=[1.0, 0.0]) for i in range(600)]
        large = [VectorRecord(id=1000 + i, vector=[1.0, 0.0], text=text) for i in range(40)]
        store = fill(there.store, [*small, *large], SCHEMA)
        seen = [len(batch) for batch in store.scan(batch_size=4096)]
    assert sum(seen) == 640
    assert max(seen) >= 128, "small ones come in large pages"
    assert seen[-1] <= 16, "large ones a few at a time"


@pytest.mark.wire_only  # faults on demand
def test_single_reads_are_retried_and_not_for_ever(server: QdrantServer) -> None:
    import grpc

    with vf.connect(server.url("c")) as there:
        fill(there.store, rows(3), SCHEMA)
        for method in ("GetCollection", "Count", "Scroll"):
            server.fail(method, grpc.StatusCode.UNAVAILABLE, times=2)
        assert there.describe().count == 3
        server.fail("Count", grpc.StatusCode.UNAVAILABLE, times=50)
        with pytest.raises(RetryableError):
            there.count()
