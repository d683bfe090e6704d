"""Shadow, switch, roll back, prune; and the first switch of a name that was a collection of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from known import some
from servers.qdrant import QdrantServer
from vecferry.errors import NotFoundError, PlanError, RetryableError
from vecferry.model import RecordBatch, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.qdrant import QdrantStore

from .conftest import DIM, fill, read, records, schema

Open = Callable[..., QdrantStore]


@pytest.fixture(params=["folder", "wire"])
def open_(request: pytest.FixtureRequest) -> Open:
    found: Open = request.getfixturevalue(request.param)
    return found


def build(store: QdrantStore, tag: str, rows: list[VectorRecord]) -> None:
    shadow = store.shadow(tag)
    shadow.prepare(schema(), WriteMode.REPLACE)
    shadow.write(RecordBatch.from_records(rows))
    shadow.finish()
    shadow.close()


def tags(store: QdrantStore) -> list[tuple[str, bool, int | None]]:
    return [(v.tag, v.live, v.count) for v in store.versions() if v.published]


def test_only_replace_is_staged(folder: Open) -> None:
    assert [mode for mode in WriteMode if folder().stages(mode)] == [WriteMode.REPLACE]


def test_a_life_of_versions(open_: Open) -> None:
    store = open_()
    assert store.versions() == []
    for tag, n in [("one", 3), ("two", 4), ("three", 5)]:
        build(store, tag, records(n))
        assert store.publish(tag).live
        assert store.count() == n
    assert tags(store) == [("three", True, 5), ("two", False, 4), ("one", False, 3)]
    assert store.rollback().tag == "two"
    assert (store.count(), store.rollback().tag, store.count()) == (4, "one", 3)
    with pytest.raises(NotFoundError, match="no earlier version"):
        store.rollback()
    store.publish("three")
    assert store.count() == 5
    assert store.prune(keep=1) == ["one"]
    assert [v.tag for v in store.versions()] == ["three", "two"]
    assert store.prune() == ["two"]
    assert tags(store) == [("three", True, 5)]


def test_a_shadow_is_unseen_and_can_be_discarded(open_: Open) -> None:
    store = open_()
    build(store, "one", records(3))
    assert not store.exists()
    assert [(v.tag, v.published) for v in store.versions()] == [("one", False)]
    store.discard("one")
    store.discard("one")
    with pytest.raises(NotFoundError, match="'one'"):
        store.publish("one")
    build(store, "two", records(3))
    store.publish("two")
    store.discard("two")
    assert store.count() == 3, "what is live is not discarded"


def test_the_first_switch_keeps_what_the_name_held(open_: Open) -> None:
    store = fill(open_(), records(40), schema(payload_indexes={"n": "integer"}))
    before = store.describe()
    build(store, "new", records(5, seed=1))
    assert tags(store) == [("plain", True, 40)]
    store.publish("new")
    assert tags(store) == [("new", True, 5), ("plain", False, 40)]
    store.rollback()
    assert store.describe().model_dump(exclude={"settings"}) == before.model_dump(exclude={"settings"})
    for came, went in zip(read(store), records(40), strict=True):
        assert (came.id, came.text, came.metadata) == (went.id, went.text, went.metadata)
        np.testing.assert_allclose(some(came.vector), some(went.vector), rtol=1e-6)


def test_an_alias_of_the_app_is_switched_and_its_collection_left_alone(open_: Open) -> None:
    fill(open_("real"), records(9))
    store = open_("alias")
    point = models.CreateAlias(collection_name="real", alias_name="alias")
    store._engine.change_aliases([{"create_alias": point.model_dump()}])
    for tag, n in [("one", 3), ("two", 4)]:
        build(store, tag, records(n))
        store.publish(tag)
    assert tags(store) == [("two", True, 4), ("one", False, 3), ("real", False, 9)]
    assert (store.rollback().tag, store.rollback().tag, store.count()) == ("one", "real", 9)
    store.publish("two")
    assert store.prune() == ["one"]
    assert tags(store) == [("two", True, 4)]
    assert open_("real").count() == 9, "it is the app's: forgotten, not deleted"


def test_a_copy_that_died_begins_anew(wire: Open, server: QdrantServer) -> None:
    store = fill(wire(), records(600))
    build(store, "new", records(5))
    server.fail("Scroll", grpc.StatusCode.OK, times=2)
    server.fail("Scroll", grpc.StatusCode.UNAVAILABLE, times=9)
    with pytest.raises(RetryableError):
        store.publish("new")
    server.faults.clear()
    assert 0 < server.client.count("c__vf_plain").count < 600
    store.delete([0, 1, 2])  # the app goes on meanwhile
    store.publish("new")
    assert tags(store) == [("new", True, 5), ("plain", False, 597)]


def test_an_app_reads_the_name_all_along(folder: Open) -> None:
    store = fill(folder("questions"), records(3))
    build(store, "new", records(7))
    store.publish("new")
    path = store._address.path
    store.close()
    client = QdrantClient(path=path)
    assert client.count("questions").count == 7
    assert [a.alias_name for a in client.get_aliases().aliases] == ["questions"]
    client.close()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("call", ["Upsert", "DeleteCollection", "UpdateAliases", "Update", "Create"])
def test_a_death_anywhere_in_the_first_switch_loses_nothing(
    wire: Open, server: QdrantServer, call: str, late: bool
) -> None:
    store = fill(wire(), records(40))
    build(store, "new", records(5))
    server.fail(call, grpc.StatusCode.UNAVAILABLE, late=late)
    with pytest.raises(RetryableError):
        store.publish("new")
    names = {c.name: server.client.count(c.name).count for c in server.client.get_collections().collections}
    assert 40 in names.values(), "the old points are always somewhere"
    again = wire()
    again.publish("new")
    assert tags(again) == [("new", True, 5), ("plain", False, 40)]
    assert again.rollback().count == 40


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("call", ["UpdateAliases", "Update"])
def test_a_death_in_a_later_switch_leaves_the_old_or_the_new(
    wire: Open, server: QdrantServer, call: str, late: bool
) -> None:
    store = wire()
    for tag, n in [("one", 3), ("two", 4)]:
        build(store, tag, records(n))
        if tag == "one":
            store.publish(tag)
    server.fail(call, grpc.StatusCode.UNAVAILABLE, late=late)
    with pytest.raises(RetryableError):
        store.publish("two")
    assert store.count() in (3, 4)
    store.publish("two")
    assert tags(store) == [("two", True, 4), ("one", False, 3)]


def test_a_change_during_the_copy_is_noticed(wire: Open, server: QdrantServer) -> None:
    store = fill(wire(), records(10))
    build(store, "new", records(5))
    original = server.scroll
    done: list[int] = []

    def scroll(name: str, body: dict[str, Any]) -> Any:
        answer = original(name, body)
        if not done:
            done.append(1)
            server.client.upsert("c", [models.PointStruct(id=999, vector=[1.0] * DIM)])
        return answer

    server.scroll = scroll  # type: ignore[method-assign]
    with pytest.raises(RetryableError, match="pause its writers"):
        store.publish("new")
    assert store.count() == 11
    store.publish("new")
    assert tags(store) == [("new", True, 5), ("plain", False, 11)]


def test_replacing_in_place_is_for_collections_only(folder: Open) -> None:
    store = fill(folder(), records(5))
    store.prepare(schema(), WriteMode.REPLACE)
    store.write(RecordBatch.from_records(records(2)))
    store.finish()
    assert store.count() == 2
    build(store, "new", records(3))
    store.publish("new")
    with pytest.raises(PlanError, match="alias"):
        store.prepare(schema(), WriteMode.REPLACE)
    assert store.count() == 3


@pytest.mark.parametrize("tag", ["", "a/b", "x" * 65, "plain"])
def test_a_tag_must_fit_into_a_name(folder: Open, tag: str) -> None:
    with pytest.raises(PlanError, match="name"):
        folder().shadow(tag)
