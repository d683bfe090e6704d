"""The swap of names beside running readers; grants, versions and what cannot be swapped."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from vecferry.errors import NotFoundError, RetryableError, UnsupportedError
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.ports import WriteMode

SCHEMA = CollectionSchema(fields=(VectorField(dim=2),), id_type="int")


def build(store: Any, tag: str, rows: int) -> None:
    shadow = store.shadow(tag)
    shadow.prepare(SCHEMA, WriteMode.REPLACE)
    shadow.write(
        RecordBatch.from_records([VectorRecord(id=i, vector=[1, i], text=tag) for i in range(rows)])
    )
    shadow.finish()
    shadow.close()


def test_readers_see_the_old_or_the_new_and_never_nothing(both: Any) -> None:
    store = both.store()
    build(store, "first", 10)
    store.publish("first")
    seen: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        with both.server.connect(both.database) as connection:
            while not stop.is_set():
                seen.add(connection.execute("select count(*) from items").fetchone()[0])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(5):
        build(store, f"tag-{number}", 20 + number)
        store.publish(f"tag-{number}")
    stop.set()
    reader.join()
    assert seen <= {10, 20, 21, 22, 23, 24}
    assert [v.tag for v in store.versions()] == ["tag-4", "tag-3", "tag-2", "tag-1", "tag-0", "first"]
    assert store.rollback().tag == "tag-3" and store.rollback().tag == "tag-2"
    assert store.prune(keep=1) == ["first", "tag-0", "tag-3", "tag-4"]
    assert [(v.tag, v.live) for v in store.versions()] == [("tag-2", True), ("tag-1", False)]


def test_an_applications_table_is_replaced_with_its_grants(db: Any) -> None:
    db.sql("create table items (id int primary key, embedding vector(2))")
    role = f"app_{db.database}"
    db.sql(f"create role {role}")
    db.sql(f"grant select, insert on items to {role} with grant option")
    db.sql("grant select on items to public")
    store = db.store()
    with pytest.raises(NotFoundError, match="no shadow"):
        store.publish("nothing")
    build(store, "new", 3)
    store.publish("new")
    grants = db.sql(
        "select grantee, privilege_type from "
        "information_schema.role_table_grants where table_name = 'items'"
    )
    assert {(role, "SELECT"), (role, "INSERT"), ("PUBLIC", "SELECT")} <= set(grants)
    assert [v.tag for v in store.versions()] == ["new", "original"]
    store.rollback()
    assert store.count() == 0
    with pytest.raises(NotFoundError, match="earlier"):
        store.rollback()


def test_a_table_others_point_at_is_not_swapped(db: Any) -> None:
    db.sql("create table items (id int primary key, embedding vector(2))")
    db.sql("create table notes (item int references items)")
    store = db.store()
    build(store, "new", 3)
    with pytest.raises(UnsupportedError, match="notes has a foreign key"):
        store.publish("new")
    assert store.count() == 0
    store.discard("new")
    store.discard("new")
    assert db.sql("select relname from pg_class where relname like 'items!_!_vf%' escape '!'") == []


def test_replace_without_a_shadow_swaps_at_the_end(db: Any) -> None:
    store = db.store()
    build(store, "first", 5)
    store.publish("first")
    store.prepare(SCHEMA, WriteMode.REPLACE)
    store.write(RecordBatch.from_records([VectorRecord(id=9, vector=[1, 1])]))
    assert store.count() == 5
    store.finish()
    assert store.count() == 1 and len(store.versions()) == 2


def test_a_busy_table_is_not_waited_for_for_ever(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vecferry.stores.pgvector import publish

    monkeypatch.setattr(publish, "_LOCK_TIMEOUT", "SET LOCAL lock_timeout = '100ms'")
    store = db.store()
    build(store, "first", 5)
    store.publish("first")
    build(store, "second", 6)
    with db.server.connect(db.database) as reader:
        reader.autocommit = False
        reader.execute("select * from items")
        with pytest.raises(RetryableError, match="lock"):
            store.publish("second")
    assert store.count() == 5
    assert store.publish("second").live and store.count() == 6


def test_long_names_and_odd_tags(db: Any) -> None:
    name = "a" * 60
    store = db.store(name)
    for tag in ("2026-01-01T00:00:00", "größe/1", "x" * 80):
        build(store, tag, 2)
        store.publish(tag)
    assert [v.tag for v in store.versions()] == ["x" * 80, "größe/1", "2026-01-01T00:00:00"]
    assert store.rollback().tag == "größe/1"
