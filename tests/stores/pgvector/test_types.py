"""Every column type comes and goes as it is."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from vecferry.errors import SchemaMismatchError
from vecferry.model import (
    CollectionSchema,
    DType,
    Kind,
    Metric,
    RecordBatch,
    SparseVector,
    VectorField,
    VectorRecord,
)
from vecferry.ports import WriteMode

MANY_TYPES = """
    create type mood as enum ('calm', 'wild');
    create domain code as text;
    create schema "My Schema";
    create table "My Schema"."odd.Table" (
        "the id" bigint generated always as identity primary key,
        content text, metadata jsonb, embedding vector(3),
        s2 smallint, i4 integer, f4 real, f8 double precision, num numeric, ok boolean,
        u uuid, raw bytea, at timestamptz, local timestamp, day date, clock time,
        feeling mood, label code, padded char(5), tags text[], grid int[], moods mood[],
        span int4range, ip inet, took interval, extra jsonb, plain json,
        tsv tsvector generated always as (to_tsvector('simple', coalesce(content, ''))) stored
    );
    insert into "My Schema"."odd.Table" values (
        default, 'hello', '{"a": 1, "big": 12345678901234567890123, "exact": 0.12345678901234567891}',
        '[1,2,3]',
        -7, 8, 0.5, 1e300, 123456789012345678901234.5000, true,
        '9f0b5e0e-7a3c-4d8e-8b1a-2f5f6c7d8e9f', '\\x00ff',
        '2026-02-03 04:05:06.789012+09', '2026-02-03 04:05:06',
        '2026-02-03', '04:05:06.000001', 'wild', 'c-1', 'ab',
        '{a,NULL,"b c"}', '{{1,2},{3,4}}', '{calm,wild}',
        '[1,5)', '10.0.0.1/8', '1 day 02:00', '{"deep": [1, {"x": null}]}', '[1, 2]'
    ), (default, null, null, null, null, null, null, null, 'NaN', false, null, null,
        'infinity', '-infinity',
        'infinity', null, null, null, null, '{}', null, null, 'empty', null, null, 'null', null);
"""


def test_a_table_of_every_type(both: Any) -> None:
    for statement in MANY_TYPES.split(";\n"):
        both.sql(statement)
    collection = both.connect('"My Schema"."odd.Table"')
    first, second = collection.records()
    assert first.id == 1 and first.text == "hello" and first.vector.tolist() == [1, 2, 3]
    assert first.metadata == {
        "a": 1,
        "big": 12345678901234567890123,
        "exact": Decimal("0.12345678901234567891"),
        "s2": -7,
        "i4": 8,
        "f4": 0.5,
        "f8": 1e300,
        "num": Decimal("123456789012345678901234.5000"),
        "ok": True,
        "u": UUID("9f0b5e0e-7a3c-4d8e-8b1a-2f5f6c7d8e9f"),
        "raw": b"\x00\xff",
        "at": datetime(2026, 2, 2, 19, 5, 6, 789012, tzinfo=UTC),
        "local": datetime(2026, 2, 3, 4, 5, 6),
        "day": date(2026, 2, 3),
        "clock": time(4, 5, 6, 1),
        "feeling": "wild",
        "label": "c-1",
        "padded": "ab   ",
        "tags": ["a", None, "b c"],
        "grid": [[1, 2], [3, 4]],
        "moods": "{calm,wild}",
        "span": "[1,5)",
        "ip": "10.0.0.1/8",
        "took": "P1DT2H",
        "plain": [1, 2],
        "extra": {"deep": [1, {"x": None}]},
    }
    assert second.vector is None and second.text is None
    assert second.metadata["num"].is_nan()
    assert {k: second.metadata[k] for k in ("at", "local", "day", "span", "tags")} == {
        "at": "infinity",
        "local": "-infinity",
        "day": "infinity",
        "span": "empty",
        "tags": [],
    }
    types = collection.describe().metadata_types
    assert (types["num"], types["at"], types["tags"]) == ("decimal", "datetime", "list")


def test_writing_into_a_table_of_every_type(both: Any) -> None:
    for statement in MANY_TYPES.split(";\n"):
        both.sql(statement)
    collection = both.connect('"My Schema"."odd.Table"')
    first = next(iter(collection.records()))
    both.sql('create table copied (like "My Schema"."odd.Table" including indexes)')
    target = both.connect("copied")
    target.write([first, first.replace(id=9, text="again")])
    both.sql('delete from copied where "the id" = 9')
    target.write([first])  # a second time, through the upsert
    back = list(target.records())
    assert len(back) == 1
    assert back[0].metadata == first.metadata
    columns = "content, embedding, num, at, local, feeling, tags, grid, moods, span, ip, took, extra::text"
    assert both.sql(f"select {columns} from copied") == both.sql(
        f'select {columns} from "My Schema"."odd.Table" where "the id" = 1'
    )


@pytest.mark.parametrize(
    ("column", "literal", "expected"),
    [
        ("vector(3)", "[1,2,3]", np.array([1, 2, 3], np.float32)),
        ("halfvec(3)", "[1,2.5,3]", np.array([1, 2.5, 3], np.float16)),
        ("vector", "[1,2]", np.array([1, 2], np.float32)),
        ("bit(12)", "101010101111", np.packbits([1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1])),
    ],
)
def test_every_kind_of_dense_vector(both: Any, column: str, literal: str, expected: Any) -> None:
    both.sql(f"create table items (id int primary key, embedding {column})")
    both.sql(f"insert into items values (1, '{literal}'), (2, null), (3, '{literal}')")
    one, two, three = both.connect().records()
    assert two.vector is None
    for record in (one, three):
        assert record.vector.dtype == expected.dtype
        np.testing.assert_array_equal(record.vector, expected)


def test_sparse_vectors_come_and_go(both: Any) -> None:
    both.sql("create table items (id int primary key, embedding sparsevec(10))")
    both.sql("insert into items values (1, '{1:1.5,10:-2}/10'), (2, null), (3, '{}/10')")
    records = {record.id: record for record in both.connect().records()}
    assert records[1].sparse_vectors[""] == SparseVector([0, 9], [1.5, -2])
    assert records[2].sparse_vectors == {}
    assert len(records[3].sparse_vectors[""]) == 0
    fields = (VectorField(name="words", kind=Kind.SPARSE, metric=Metric.IP),)
    store = both.store("made")
    store.prepare(CollectionSchema(fields=fields, id_type="int"), WriteMode.CREATE)
    rows = [VectorRecord(id=i, sparse_vectors={"words": {3: 0.5, 70_000: i + 1.0}}) for i in range(3)]
    store.write(RecordBatch.from_records(rows))
    store.finish()
    assert list(both.connect("made").records()) == [row.replace(text=None) for row in rows]
    assert both.sql("select words::text from made where id = 2") == [("{4:0.5,70001:3}/1000000000",)]
    hits = both.connect("made").search(SparseVector([70_000], [1.0]), 2, field="words")
    assert [(hit.id, hit.score) for hit in hits] == [(2, 3.0), (1, 2.0)]


def test_undimensioned_vectors_of_several_widths(both: Any) -> None:
    both.sql("create table items (id int primary key, embedding vector)")
    both.sql("insert into items values (1, '[1,2]'), (2, '[1,2]'), (3, '[1,2,3]'), (4, null), (5, '[9]')")
    batches = list(both.store().scan())
    assert [batch.id_list for batch in batches] == [[1, 2], [3, 4], [5]]
    after_first = [i for b in both.store().scan(after=batches[0].cursor) for i in b.id_list]
    assert after_first == [3, 4, 5]
    assert both.connect().describe().fields[0].dim is None


def test_one_vector_column_is_unnamed_and_several_are_named(db: Any) -> None:
    db.sql("create table one (id int primary key, analysis vector(2))")
    db.sql("create table two (id int primary key, embedding_1536 vector(3), embedding_1024 halfvec(2))")
    assert [f.name for f in db.connect("one").describe().fields] == [""]
    fields = {f.name: (f.dim, f.dtype) for f in db.connect("two").describe().fields}
    assert fields == {"embedding_1536": (3, DType.FLOAT32), "embedding_1024": (2, DType.FLOAT16)}
    db.sql("insert into two values (1, '[1,2,3]', '[4,5]')")
    (record,) = db.connect("two").records()
    assert {k: v.tolist() for k, v in record.vectors.items()} == {
        "embedding_1536": [1, 2, 3],
        "embedding_1024": [4, 5],
    }
    (record,) = db.connect("two", vector="embedding_1024").records()
    assert record.vector.tolist() == [4, 5] and list(record.vectors) == [""]
    (record,) = db.connect("two", vector="small:embedding_1024,large:embedding_1536").records()
    assert set(record.vectors) == {"small", "large"}


def test_a_column_that_is_no_vector_is_named(db: Any) -> None:
    db.sql("create table items (id int primary key, body text, embedding vector(2))")
    with pytest.raises(SchemaMismatchError, match=r"'body' is text, not a vector.*embedding"):
        db.connect("items", vector="body").describe()
    with pytest.raises(SchemaMismatchError, match="no column 'nope'"):
        db.connect("items", vector="nope").describe()
    db.sql("create table plain (id int primary key, body text)")
    with pytest.raises(SchemaMismatchError, match="no vector column"):
        db.connect("plain").describe()


@pytest.mark.parametrize(
    ("key", "values", "ids"),
    [
        ("k text primary key", "('b'),('B'),('a''%s'),('ä')", ["b", "B", "a'%s", "ä"]),
        (
            "k uuid primary key",
            "('9f0b5e0e-7a3c-4d8e-8b1a-2f5f6c7d8e9f')",
            [UUID("9f0b5e0e-7a3c-4d8e-8b1a-2f5f6c7d8e9f")],
        ),
        ("k smallint primary key", "(-3),(4)", [-3, 4]),
        ("k timestamptz primary key", "('2026-01-01+00'),('2026-01-01 00:00:00.000001+00')", None),
        ("k numeric primary key", "(1.50),(10),(2)", ["1.50", "10", "2"]),
    ],
)
def test_every_kind_of_key_pages_and_resumes(
    both: Any, key: str, values: str, ids: list[Any] | None
) -> None:
    both.sql(f"create table items ({key}, embedding vector(1) default '[1]')")
    both.sql(f"insert into items (k) values {values}")
    store = both.store()
    everything = [i for b in store.scan(batch_size=1) for i in b.id_list]
    if ids is not None:
        assert sorted(map(str, everything)) == sorted(map(str, ids))
        assert {type(i) for i in everything} == {type(i) for i in ids}
    for at, batch in enumerate(store.scan(batch_size=1)):
        rest = [i for b in store.scan(after=batch.cursor) for i in b.id_list]
        assert rest == everything[at + 1 :]
    parts = store.partitions(3)
    assert sorted(map(str, everything)) == sorted(
        str(i) for p in parts for b in store.scan(partition=p) for i in b.id_list
    )
    fetched = store.fetch(everything)
    assert fetched.id_list == everything


def test_composite_keys_are_tuples_both_ways(both: Any) -> None:
    both.sql(
        "create table items (tenant uuid, doc text, n int, embedding "
        "vector(1), primary key (tenant, doc, n))"
    )
    tenant = UUID(int=5)
    records = [VectorRecord(id=(tenant, f"d{i % 2}", i), vector=[i]) for i in range(6)]
    collection = both.connect()
    collection.write(records)
    collection.write(records)
    assert sorted(r.id[2] for r in collection.records()) == list(range(6))
    assert both.sql("select count(*), min(doc) from items") == [(6, "d0")]
    store = collection.store
    seen = [
        i for p in store.partitions(3) for b in store.scan(partition=p, batch_size=1) for i in b.id_list
    ]
    assert sorted(seen) == sorted(r.id for r in records)
    assert [r.id for r in collection.fetch([records[3].id, (tenant, "d9", 9), records[1].id])] == [
        records[3].id,
        records[1].id,
    ]
    assert store.delete([records[0].id, 7]) == 1


def test_typed_metadata_columns_are_made_and_kept_exact(both: Any) -> None:
    types = {
        "n": "int",
        "price": "decimal",
        "at": "datetime",
        "who": "str",
        "u": "uuid",
        "raw": "bytes",
        "f": "float",
        "ok": "bool",
    }
    store = both.store("items", metadata="columns")
    schema = CollectionSchema(fields=(VectorField(dim=2),), id_type="int", metadata_types=types)
    store.prepare(schema, WriteMode.CREATE)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    fits = {
        "n": 1,
        "price": Decimal("1.50"),
        "at": at,
        "who": "x",
        "u": UUID(int=1),
        "raw": b"\0",
        "f": 1.0,
        "ok": True,
    }
    odd = {"n": "one", "price": 2, "at": datetime(2026, 1, 1), "who": None, "f": 1, "ok": 1, "other": [1]}
    records = [
        VectorRecord(id=1, vector=[1, 2], metadata=fits),
        VectorRecord(id=2, vector=[1, 2], metadata=odd),
    ]
    store.write(RecordBatch.from_records(records))
    store.write(RecordBatch.from_records(records))
    store.finish()
    back = list(both.connect().records())
    for record, want in zip(back, (fits, odd), strict=True):
        assert record.metadata == want
        assert {k: type(v) for k, v in record.metadata.items()} == {k: type(v) for k, v in want.items()}
    assert both.sql("select n, price, at, who, ok from items where id = 1") == [
        (1, Decimal("1.50"), at, "x", True)
    ]
    assert both.sql("select n, at, metadata->>'n' from items where id = 2") == [(None, None, "one")]
