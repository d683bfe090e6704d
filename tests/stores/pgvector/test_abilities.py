"""Several writers at once, stamps, exact search, and indexes that are built while others read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from vecferry.errors import RetryableError
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.ports import (
    ConcurrentSink,
    ExactSearchable,
    ForeseesChanges,
    RollsTo,
    Settling,
    Stamped,
    WriteMode,
)

RNG = np.random.default_rng(5)


def records(first: int, last: int) -> list[VectorRecord]:
    return [
        VectorRecord(id=i, text=f"t{i}", vector=RNG.standard_normal(8), metadata={"n": i})
        for i in range(first, last)
    ]


def schema() -> CollectionSchema:
    return CollectionSchema(fields=(VectorField(dim=8, metric="l2"),), id_type="int")


def test_the_store_has_them_all(db: Any) -> None:
    store = db.store()
    for ability in (ConcurrentSink, ExactSearchable, ForeseesChanges, RollsTo, Settling, Stamped):
        assert isinstance(store, ability)


def test_writers_overlap_and_write_each_record_once(db: Any) -> None:
    shadow = db.store().shadow("load")
    shadow.prepare(schema(), WriteMode.CREATE)
    rows = records(0, 4000)
    batches = [RecordBatch.from_records(rows[a : a + 100]) for a in range(0, 4000, 100)]
    writers = [shadow, *shadow.writers(3)]
    assert len(writers) == 4

    def write(number: int) -> None:
        for batch in [*batches[number::4], batches[(number + 1) % 4]]:  # the last one is another's, too
            for _ in range(5):  # two that write one row wait for each other, or one gives way
                try:
                    writers[number].write(batch)
                    break
                except RetryableError:
                    continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for writer in writers[1:]:
        writer.close()
    shadow.finish()
    shadow.close()
    db.store().publish("load")
    assert db.sql("select count(*), count(distinct id), sum(id) from items") == [(4000, 4000, 7998000)]


def test_a_job_with_workers_is_the_same_as_without(db: Any, tmp_path: Any) -> None:
    db.connect("a").write(records(0, 9000))
    source = db.server.url("a", db.database)
    for name, workers in (("one", 1), ("two", 2)):
        assert vf.migrate(source, db.server.url(name, db.database), workers=workers, batch_size=500).ok
    assert db.sql("select * from one except select * from two") == []
    assert db.sql("select count(*) from two") == [(9000,)]
    assert db.sql("select count(*) from pg_indexes where indexdef like '%hnsw%' and tablename = 'two'") == [
        (1,)
    ]


def test_a_stamp_tells_every_change(db: Any) -> None:
    assert db.store().stamp() == {"kind": "store", "absent": True}
    collection = db.connect()
    collection.write(records(0, 10))
    store, seen = collection.store, []
    for change in (
        "select 1",
        "update items set text = 'x' where id = 'i:3'",
        "delete from items where id = 'i:3'",
        "insert into items select 'i:3', embedding, text, metadata from items where id = 'i:4'",
    ):
        db.sql(change)
        seen.append(store.stamp())
    assert seen[0]["count"] == 10 and len({str(stamp) for stamp in seen}) == 4
    assert store.stamp() == seen[-1]
    db.sql("create view seen as select * from items")
    assert db.store("seen", id="id").stamp() == {"kind": "store", "count": 10}


def test_an_exact_search_looks_at_every_row(db: Any) -> None:
    collection = db.connect(m=2, ef_construction=4)
    collection.write(records(0, 3000))
    vectors = {r.id: r.vector for r in collection.records()}
    queries = RNG.standard_normal((3, 8)).astype(np.float32)
    table = np.stack([vectors[i] for i in range(3000)])
    for query, hits in zip(queries, collection.store.search_exact(queries, 20), strict=True):
        want = np.argsort(-(table @ query) / np.linalg.norm(table, axis=1), kind="stable")[:20]
        assert [hit.id for hit in hits] == want.tolist()


def test_an_index_that_a_killed_run_left_unbuilt_is_built_before_the_swap(db: Any) -> None:
    shadow = db.store().shadow("load")
    shadow.prepare(schema(), WriteMode.CREATE)
    shadow.write(RecordBatch.from_records(records(0, 50)))
    shadow.close()  # killed before finish had built anything
    indexes = "select count(*) from pg_indexes where indexdef like '%hnsw%'"
    assert db.sql(indexes) == [(0,)]
    again = db.store().shadow("load")
    assert isinstance(again.settle(), float)
    assert db.sql(indexes) == [(1,)]
    db.sql("drop index " + db.sql("select indexname from pg_indexes where indexdef like '%hnsw%'")[0][0])
    db.store("items").publish("load")
    assert db.sql("select count(*) from items") == [(50,)]


def test_a_shadow_is_read_in_the_order_of_writing(db: Any) -> None:
    shadow = db.store().shadow("load")
    shadow.prepare(schema(), WriteMode.CREATE)
    rows = records(0, 600)[::-1]
    shadow.write(RecordBatch.from_records(rows))
    found = [i for batch in shadow.scan(batch_size=70) for i in batch.id_list]
    assert found == [r.id for r in rows]
    batch = next(shadow.scan(batch_size=70))
    rest = [i for b in shadow.scan(after=batch.cursor, batch_size=70) for i in b.id_list]
    assert batch.id_list + rest == found
    parts = [i for p in shadow.partitions(3) for b in shadow.scan(partition=p) for i in b.id_list]
    assert sorted(parts) == sorted(found) and len(shadow.partitions(3)) == 3


def test_a_shadow_that_is_written_is_not_discarded_by_others(db: Any) -> None:
    shadow = db.store().shadow("load")
    shadow.prepare(schema(), WriteMode.CREATE)
    shadow.write(RecordBatch.from_records(records(0, 5)))
    with pytest.raises(RetryableError, match="another session"):
        db.store().discard("load")
    shadow.close()
    db.store().discard("load")
    assert db.store().versions() == []


def test_what_columns_hold_in_another_form_is_foreseen(db: Any, tmp_path: Any) -> None:
    db.sql(
        "create table own (id int primary key, embedding vector(1), price numeric(9,2), at date, f real)"
    )
    rows = [
        VectorRecord(id=1, vector=[1], metadata={"price": 1.5, "f": 0.1}),
        VectorRecord(id=2, vector=[1], metadata={"price": None, "at": datetime(2026, 1, 1, tzinfo=UTC)}),
    ]
    batch = RecordBatch.from_records(rows)
    found = [(loss.detail.split("'")[1], loss.count) for loss in db.store("own").foresee(batch)]
    assert found == [("price", 1), ("price", 1), ("f", 1)], "a float, a null, a float"
    assert list(db.store("nowhere").foresee(batch)) == []
