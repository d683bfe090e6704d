"""No committed change is lost, whatever the order of commits, and nothing is left behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from vecferry.errors import SchemaMismatchError
from vecferry.ports import ChangeTracking


@pytest.fixture
def items(db: Any) -> Any:
    db.sql("create table items (id int primary key, content text, embedding vector(1))")
    db.sql("insert into items select i, 'old', array[i]::vector from generate_series(1, 10) i")
    return db


def told(store: Any, cursor: Any, **options: Any) -> tuple[Any, dict[Any, str], set[Any]]:
    upserted: dict[Any, str] = {}
    deleted: set[Any] = set()
    for change in store.changes(cursor, **options):
        cursor = change.cursor
        for record in change.upserted.records() if change.upserted else ():
            upserted[record.id] = record.text
            deleted.discard(record.id)
        for id_ in change.deleted:
            deleted.add(id_)
            upserted.pop(id_, None)
    return cursor, upserted, deleted


def test_what_was_added_changed_and_deleted(items: Any) -> None:
    store: Any = items.store()
    able: bool = isinstance(store, ChangeTracking)
    assert able
    start = store.track()
    assert store.track() is not None
    assert told(store, start)[1:] == ({}, set())
    items.sql("insert into items values (11, 'new', '[1]')")
    items.sql("update items set content = 'changed' where id in (2, 3)")
    items.sql("update items set id = 40 where id = 4")
    items.sql("delete from items where id = 5")
    cursor, upserted, deleted = told(store, start, batch_size=2)
    assert upserted == {11: "new", 2: "changed", 3: "changed", 40: "old"} and deleted == {4, 5}
    assert told(store, cursor)[1:] == ({}, set())
    store.close()
    items.sql(
        "insert into items values (11, 'upserted', '[1]') on conflict "
        "(id) do update set content = excluded.content"
    )
    later = items.store()
    cursor, upserted, deleted = told(later, cursor)
    assert (upserted, deleted) == ({11: "upserted"}, set())
    assert later.forget_changes(cursor) >= 7
    items.sql("truncate items")
    assert told(later, cursor)[2] == {1, 2, 3, 6, 7, 8, 9, 10, 11, 40}
    later.untrack()
    later.untrack()
    assert items.sql("select tgname from pg_trigger where not tgisinternal") == []
    assert items.sql("select relname from pg_class where relname like 'vecferry%'") == []
    assert items.sql("select proname from pg_proc where proname like 'vecferry%'") == []


def test_a_transaction_that_commits_late_is_not_lost(items: Any) -> None:
    store = items.store()
    cursor = store.track()
    with items.server.connect(items.database) as slow:
        slow.autocommit = False
        slow.execute("update items set content = 'slow' where id = 1")
        items.sql("update items set content = 'fast' where id = 2")
        cursor, early, _ = told(store, cursor)
        slow.commit()
    cursor, late, _ = told(store, cursor)
    assert {**early, **late} == {1: "slow", 2: "fast"}
    with items.server.connect(items.database) as undone:
        undone.autocommit = False
        undone.execute("update items set content = 'undone' where id = 3")
        undone.rollback()
    assert told(store, cursor)[1:] == ({}, set())


def test_a_reader_beside_many_writers_ends_with_the_same_table(items: Any) -> None:
    store = items.store()
    cursor = store.track()
    copy = {record.id: record.text for batch in store.scan() for record in batch.records()}

    def write(number: int) -> None:
        with items.server.connect(items.database) as connection:
            connection.autocommit = False
            for step in range(40):
                id_ = (number * 7 + step * 3) % 25
                connection.execute("delete from items where id = %s", [id_])
                if (number + step) % 3:
                    connection.execute(
                        "insert into items values (%s, %s, '[1]') on conflict do nothing",
                        [id_, f"{number}.{step}"],
                    )
                connection.commit() if step % 5 else connection.rollback()
            connection.commit()

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        cursor, upserted, deleted = told(store, cursor, batch_size=5)
        copy = {k: v for k, v in {**copy, **upserted}.items() if k not in deleted}
    for writer in writers:
        writer.join()
    cursor, upserted, deleted = told(store, cursor)
    copy = {k: v for k, v in {**copy, **upserted}.items() if k not in deleted}
    assert copy == dict(items.sql("select id, content from items"))


def test_a_listener_is_woken(items: Any) -> None:
    store = items.store()
    store.track()
    timer = threading.Timer(
        0.3, lambda: items.server.connect(items.database).execute("delete from items where id = 1")
    )
    timer.start()
    assert store.wait_for_changes(5)
    timer.join()
    assert not store.wait_for_changes(0.1)


def test_writers_without_rights_on_the_journal_are_tracked(items: Any) -> None:
    store = items.store()
    cursor = store.track()
    role = f"writer_{items.database}"
    items.sql(f"create role {role}")
    items.sql(f"grant select, insert, update on items to {role}")
    with items.server.connect(items.database) as connection:
        connection.execute(f"set role {role}")
        connection.execute("update items set content = 'by role' where id = 1")
    assert told(store, cursor)[1] == {1: "by role"}


def test_views_cannot_be_tracked(items: Any) -> None:
    items.sql("create view seen as select * from items")
    with pytest.raises(SchemaMismatchError, match="ordinary table"):
        items.store("seen", id="id").track()


def test_collections_of_langchain_are_tracked_apart(db: Any) -> None:
    for name in ("one", "two"):
        db.connect(name, layout="langchain").write([{"id": f"{name}-a", "text": "a", "vector": [1.0]}])
    store = db.store("one")
    cursor = store.track()
    db.connect("two", layout="langchain").write([{"id": "two-b", "text": "b", "vector": [1.0]}])
    db.connect("one").write([{"id": "one-b", "text": "b", "vector": [1.0]}])
    assert told(store, cursor)[1:] == ({"one-b": "b"}, set())
