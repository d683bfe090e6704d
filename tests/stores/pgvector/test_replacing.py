"""A table that is replaced keeps its shape: what the application gave it is there again, or is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vecferry as vf
from vecferry.errors import (
    NotFoundError,
    RejectedRecord,
    SchemaMismatchError,
    TargetExistsError,
    UnsupportedError,
)
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord
from vecferry.ports import WriteMode

FIELD = VectorField(dim=2, metric="l2")


def schema(**changes: Any) -> CollectionSchema:
    return CollectionSchema(fields=(FIELD,), id_type="int").model_copy(update=changes)


def replace(store: Any, tag: str, *records: VectorRecord, **changes: Any) -> None:
    shadow = store.shadow(tag)
    shadow.prepare(schema(**changes), WriteMode.REPLACE)
    if records:
        shadow.write(RecordBatch.from_records(records))
    shadow.finish()
    shadow.close()
    store.publish(tag)


SHAPE = """
    select 'column', attname::text, format_type(atttypid, atttypmod) || ' ' || attnotnull::text || ' '
           || coalesce(pg_get_expr(adbin, adrelid), '') || ' ' || attidentity::text || attgenerated::text
    from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where attrelid = 'prod'::regclass and attnum > 0 and not attisdropped
    union all select 'constraint', conname, pg_get_constraintdef(oid) from pg_constraint
    where conrelid = 'prod'::regclass
    union all select 'index', indexname, indexdef from pg_indexes where tablename = 'prod'
    union all select 'trigger', tgname, pg_get_triggerdef(oid) from pg_trigger
    where tgrelid = 'prod'::regclass and not tgisinternal
    union all select 'grant', grantee, privilege_type from information_schema.role_table_grants
    where table_name = 'prod'
    union all select 'grant of a column', grantee || ' ' || column_name, privilege_type
    from information_schema.column_privileges where table_name = 'prod' and column_name = 'price'
    union all select 'option', 'fillfactor', array_to_string(reloptions, ',') from pg_class
    where oid = 'prod'::regclass
    order by 1, 2, 3
"""


def make(db: Any) -> str:
    role = f"app_{db.database}"
    db.sql(f"create role {role}")
    db.sql("create table brands (name text primary key)")
    db.sql("insert into brands values ('a')")
    db.sql(
        """
        create table prod (
            id bigserial primary key, sku text unique, content text, price numeric(9,2) default 1
            check (price > 0),
            brand text references brands, twice numeric generated always as (price * 2) stored,
            at timestamptz not null default now(), embedding vector(2) not null
        ) with (fillfactor = 70)
        """
    )
    db.sql("create index by_price on prod (price) where price > 1")
    db.sql("create unique index lower_sku on prod (lower(sku))")
    db.sql("create index near on prod using hnsw (embedding vector_l2_ops) with (m = 8)")
    db.sql(
        "create function touch() returns trigger language plpgsql"
        " as 'begin new.at = now(); return new; end'"
    )
    db.sql("create trigger touched before update on prod for each row execute function touch()")
    db.sql(f"grant select, insert on prod to {role}")
    db.sql(f"grant update (price) on prod to {role}")
    db.sql("create view cheap as select id, sku, price from prod where price < 5")
    db.sql("comment on table prod is 'The products.'")
    db.sql("insert into prod (sku, content, price, brand, embedding) values ('x', 'd', 1.5, 'a', '[1,2]')")
    return role


def test_a_table_of_the_application_keeps_its_shape(both: Any) -> None:
    make(both)
    before = both.sql(SHAPE)
    assert {kind for kind, *_ in before} == {
        *("column", "constraint", "index", "trigger", "grant", "grant of a column", "option")
    }
    store = both.store("prod")
    record = VectorRecord(id=7, text="new", vector=[3, 4], metadata={"sku": "y", "price": 2, "brand": "a"})
    replace(store, "next", record)
    assert both.sql(SHAPE) == before
    assert both.sql("select id, sku, content, price::text, twice::text, embedding::text from prod") == [
        (7, "y", "new", "2.00", "4.00", "[3,4]")
    ]
    assert both.sql("select sku from cheap") == [("y",)], "a view reads what is live"
    assert both.sql("select obj_description('prod'::regclass)")[0][0].startswith("The products.\nvecferry:")
    both.sql("insert into prod (sku, embedding) values ('z', '[5,6]')")
    assert both.sql("select id, price::text from prod where sku = 'z'") == [(8, "1.00")]
    with pytest.raises(Exception, match="lower_sku"):
        both.sql("insert into prod (sku, embedding) values ('Z', '[5,6]')")
    with pytest.raises(RejectedRecord, match="foreign key"):
        replace(store, "bad", record.replace(metadata={"sku": "y", "brand": "nobody"}))

    replace(store, "third")
    assert both.sql(SHAPE) == before and store.count() == 0
    store.rollback()
    store.rollback()
    assert both.sql(SHAPE) == before
    assert both.sql("select sku from cheap") == [("x",)]
    both.sql("insert into prod (sku, embedding) values ('w', '[5,6]')")
    assert [(v.tag, v.published) for v in store.versions()] == [
        *(("third", True), ("next", True), ("original", True), ("bad", False))
    ]
    assert store.roll_to("third").tag == "third" and store.count() == 0
    assert store.roll_to("original").live and store.count() == 2
    assert both.sql(SHAPE) == before
    with pytest.raises(NotFoundError, match="there are next, original, third"):
        store.roll_to("bad")
    store.discard("bad")
    assert store.prune() == ["next", "third"]
    assert both.sql(SHAPE) == before
    both.sql("insert into prod (sku, embedding) values ('v', '[5,6]')")
    assert both.sql("select count(*) from prod") == [(3,)]


def test_another_dimension_and_metric_change_their_column_and_index_alone(db: Any) -> None:
    make(db)
    store = db.store("prod")
    wide = (VectorField(dim=3, metric="cosine"),)
    replace(store, "next", VectorRecord(id=1, vector=[1, 2, 3]), fields=wide)
    types = "select format_type(atttypid, atttypmod) from pg_attribute where attname = 'embedding'"
    (column,) = db.sql(f"{types} and attrelid = 'prod'::regclass")
    assert column == ("vector(3)",)
    definitions = [row[0] for row in db.sql("select indexdef from pg_indexes where tablename = 'prod'")]
    assert [d for d in definitions if "vector_cosine_ops" in d and "hnsw" in d]
    assert not [d for d in definitions if "vector_l2_ops" in d] and len(definitions) == 5
    assert store.search(np.array([1.0, 2.0, 3.0]), 1)[0].id == 1


def test_texts_and_metadata_get_a_place_where_there_was_none(db: Any) -> None:
    db.sql("create table prod (id int primary key, price int, embedding vector(2))")
    record = VectorRecord(id=1, text="a", vector=[1, 2], metadata={"price": 3, "more": [1]})
    replace(db.store("prod"), "next", record)
    assert db.sql("select id, price, text, metadata from prod") == [(1, 3, "a", {"more": [1]})]
    replace(db.store("prod"), "again", VectorRecord(id=2, vector=[1, 2]))
    assert db.sql("select price, text, metadata from prod") == [(None, None, {})]


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("create publication feed for table prod", "publication (feed)"),
        ("create rule noted as on insert to prod do also nothing", "rule (noted)"),
        ("create materialized view old as select * from prod", "materialized view (old)"),
        ("create table child () inherits (prod)", "partitions (child)"),
    ],
)
def test_what_would_go_is_named_before_anything_is_written(db: Any, what: str, named: str) -> None:
    db.sql("create table prod (id int primary key, embedding vector(2))")
    db.sql(what)
    with pytest.raises(UnsupportedError) as caught:
        db.store("prod").shadow("next").prepare(schema(), WriteMode.REPLACE)
    assert named in str(caught.value) and "upsert" in str(caught.value)
    assert db.sql("select relname from pg_class where relname like 'prod!_!_vf%' escape '!'") == []


def test_a_partitioned_table_is_refused(db: Any) -> None:
    db.sql("create table prod (id int, embedding vector(2), primary key (id)) partition by range (id)")
    db.sql("create table low partition of prod for values from (0) to (10)")
    with pytest.raises(UnsupportedError, match="partitions"):
        db.store("prod").shadow("next").prepare(schema(), WriteMode.REPLACE)


def test_another_layout_is_refused_where_columns_would_go(db: Any) -> None:
    db.sql("create table prod (id int primary key, price int, embedding vector(2))")
    with pytest.raises(SchemaMismatchError, match="leave layout="):
        db.store("prod", layout="langchain-v2").shadow("next").prepare(schema(), WriteMode.REPLACE)
    with pytest.raises(SchemaMismatchError, match="no vector field 'other'"):
        other = (VectorField(name="other", dim=2),)
        db.store("prod").shadow("next").prepare(schema(fields=other), WriteMode.REPLACE)


def test_a_table_of_ours_is_made_anew_unless_it_was_given_more(db: Any) -> None:
    collection = db.connect("items")
    collection.write([{"id": 1, "text": "a", "vector": [1.0, 2.0]}])
    store = collection.store
    replace(store, "next", VectorRecord(id="seven", vector=[1, 2]), id_type="str")
    assert db.sql("select id from items") == [("seven",)]
    db.sql("alter table items add likes int default 3")
    replace(store, "third", VectorRecord(id="eight", vector=[1, 2], metadata={"k": 1}), id_type="str")
    assert db.sql("select id, likes, metadata from items") == [("eight", 3, {"k": 1})]


def test_frameworks_go_on_with_what_was_replaced(db: Any) -> None:
    from langchain_postgres import Column, PGEngine, PGVectorStore
    from llama_index.core.vector_stores import VectorStoreQuery

    from .test_frameworks import TEXTS, Model, llama, records

    fields = (VectorField(dim=4, metric="cosine"),)
    llama(db, "notes").add([])
    llama(db, "notes")._initialize()
    db.sql("alter table data_notes add stars int default 1")
    db.sql("create index by_stars on data_notes (stars)")
    replace(db.store("notes"), "next", *records(), fields=fields, id_type="str")
    app = llama(db, "notes")
    query = VectorStoreQuery(query_embedding=Model().embed_query(TEXTS[1]), similarity_top_k=1)
    assert app.query(query).ids == ["doc-1"]
    assert db.sql("select count(*), min(stars) from data_notes") == [(5, 1)]
    assert db.sql("select 1 from pg_indexes where indexname = 'by_stars' and tablename = 'data_notes'")

    engine = PGEngine.from_connection_string(db.server.sqlalchemy_url(db.database))
    try:
        engine.init_vectorstore_table("made", 4, metadata_columns=[Column("stars", "INTEGER")])
        with_uuids = [
            r.replace(id=f"00000000-0000-0000-0000-00000000000{i}") for i, r in enumerate(records())
        ]
        replace(db.store("made"), "next", *with_uuids, fields=fields, id_type="str")
        app = PGVectorStore.create_sync(
            engine, embedding_service=Model(), table_name="made", metadata_columns=["stars"]
        )
        assert app.similarity_search(TEXTS[1], k=1)[0].metadata["n"] == 1
        app.add_texts([TEXTS[0]], metadatas=[{"stars": 2}])
        assert db.sql("select count(*), max(stars) from made") == [(6, 2)]
    finally:
        engine._run_as_sync(engine.close())


# -- a new table ----------------------------------------------------------------------------------


def test_of_two_jobs_for_one_new_table_the_second_is_told_and_its_work_kept(db: Any) -> None:
    one, two = db.store(), db.store()
    for store, tag in ((one, "one"), (two, "two")):
        assert store.stages(WriteMode.CREATE)
        shadow = store.shadow(tag)
        shadow.prepare(schema(), WriteMode.CREATE)
        shadow.write(RecordBatch.from_records([VectorRecord(id=1, text=tag, vector=[1, 2])]))
        shadow.finish()
        shadow.close()
    assert two.stages(WriteMode.CREATE) and not two.exists()
    one.publish("one")
    with pytest.raises(TargetExistsError, match="another job"):
        two.publish("two")
    assert db.sql("select text from items") == [("one",)]
    assert two.stages(WriteMode.CREATE), "as long as its work is there"
    two.discard("two")
    assert not two.stages(WriteMode.CREATE)
    assert db.sql("select indexname from pg_indexes where tablename = 'items' order by 1") == [
        ("items_embedding_idx",),
        ("items_pkey",),
    ]


def test_an_empty_table_of_the_application_is_filled_in_place(db: Any, tmp_path: Any) -> None:
    """Others may point at it, and it has what it has."""
    db.sql("create table items (id int primary key, text text, embedding vector(2))")
    db.sql("create table pins (item int references items)")
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "a", "vector": [1, 2]}\n')
    assert vf.migrate(f"jsonl:{tmp_path}/a.jsonl", db.server.url("items", db.database)).ok
    db.sql("insert into pins values (1)")
