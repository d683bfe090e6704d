"""The target belongs to the application: what an upsert brings is there, and everything else as it was."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vecferry as vf
from vecferry.errors import (
    LossRefusedError,
    PlanError,
    RejectedRecord,
    SchemaMismatchError,
    UnsupportedError,
)
from vecferry.model import CollectionSchema, Kind, RecordBatch, VectorField, VectorRecord
from vecferry.ports import ChecksFilters, KeepsOwn, WriteMode

TENANT = "00000000-0000-0000-0000-00000000000a"


def lines(tmp_path: Any, *rows: str) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return f"jsonl:{path}"


def url(db: Any, table: str) -> str:
    return str(db.server.url(table, db.database))


def source_schema(*columns: str, **more: Any) -> CollectionSchema:
    """As a table with these columns describes itself."""
    return CollectionSchema(settings={"pgvector": {"of": "elsewhere", "columns": list(columns)}}, **more)


def upsert(store: Any, *records: VectorRecord, known: tuple[str, ...] = ()) -> None:
    schema = store.describe().model_copy(update={"settings": source_schema(*known).settings})
    store.prepare(schema, WriteMode.UPSERT)
    store.write(RecordBatch.from_records(records))
    store.finish()


# -- upsert in place ------------------------------------------------------------------------------


def test_columns_that_the_records_do_not_speak_of_stay(db: Any, tmp_path: Any) -> None:
    db.sql(
        "create table own (id int primary key, content text, embedding vector(2), likes int,"
        " by text default 'nobody', second vector(3))"
    )
    db.sql("create table pins (own int references own on delete cascade)")
    db.sql(
        "insert into own values (1, 'old', '[1,2]', 5, 'ann', '[7,8,9]'),"
        " (2, 'other', '[3,4]', 6, 'bob', null)"
    )
    db.sql("insert into pins values (1), (2)")
    source = lines(
        tmp_path,
        '{"id": 1, "content": "new", "vectors": {"embedding": [1, 3]}}',
        '{"id": 3, "content": "third", "vectors": {"embedding": [5, 6]}, "likes": 1}',
    )
    vf.migrate(source, url(db, "own"), mode="upsert", verify=False)
    assert db.sql("select id, content, embedding::text, likes, by, second::text from own order by id") == [
        (1, "new", "[1,3]", 5, "ann", "[7,8,9]"),
        (2, "other", "[3,4]", 6, "bob", None),
        (3, "third", "[5,6]", 1, "nobody", None),
    ]
    assert db.sql("select count(*) from pins") == [(2,)]


def test_what_the_source_knows_and_lacks_is_emptied(db: Any) -> None:
    """A table as source: its NULL is a value; a key that it never heard of is not."""
    db.sql("create table own (id int primary key, embedding vector(1), likes int, shares int)")
    db.sql("insert into own values (1, '[1]', 5, 6)")
    upsert(db.store("own"), VectorRecord(id=1, vector=[2]), known=("likes",))
    assert db.sql("select likes, shares from own") == [(None, 6)]
    upsert(db.store("own"), VectorRecord(id=1, vector=[2], metadata={"shares": None}))
    assert db.sql("select likes, shares from own") == [(None, None)]


def test_a_text_or_a_vector_that_a_record_lacks_is_not_taken_away(db: Any) -> None:
    db.sql("create table own (id int primary key, content text, embedding vector(1), b vector(1))")
    db.sql("insert into own values (1, 'kept', '[1]', '[9]'), (2, 'gone', '[1]', '[9]')")
    records = [
        VectorRecord(id=1, vectors={"embedding": [2]}),
        VectorRecord(id=2, text="new", vectors={"b": [3]}),
    ]
    upsert(db.store("own"), *records)
    assert db.sql("select content, embedding::text, b::text from own order by id") == [
        ("kept", "[2]", "[9]"),
        ("new", "[1]", "[3]"),
    ]


def test_a_row_that_is_there_is_updated_though_it_could_not_be_inserted(db: Any) -> None:
    """ON CONFLICT comes too late for a NOT NULL that the records do not bring."""
    db.sql("create table own (id int primary key, title text not null, embedding vector(1))")
    db.sql("insert into own values (1, 'kept', '[1]'), (2, 'kept', '[1]')")
    store = db.store("own")
    upsert(store, VectorRecord(id=2, vector=[5]), VectorRecord(id=1, vector=[4]))
    assert db.sql("select id, title, embedding::text from own order by id") == [
        (1, "kept", "[4]"),
        (2, "kept", "[5]"),
    ]
    with pytest.raises(RejectedRecord, match="title"):
        upsert(store, VectorRecord(id=3, vector=[5]))


@pytest.mark.usefixtures("postgres")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),
            st.dictionaries(st.sampled_from("abc"), st.integers(0, 9) | st.none(), max_size=3),
        ),
        max_size=8,
    ),
    st.sets(st.sampled_from("abc")),
)
def test_an_upsert_is_an_update_row_by_row(library: Any, writes: list[Any], known: set[str]) -> None:
    """Whatever combination of columns each record of a batch brings: the model is a dict a row."""
    library.sql("truncate t")
    library.sql("insert into t select g, '[1]', g, g, g from generate_series(1, 3) g")
    rows: dict[int, dict[str, Any]] = {g: {"a": g, "b": g, "c": g} for g in (1, 2, 3)}
    for id_, data in dict(writes).items():
        row = rows.setdefault(id_, {"a": 7, "b": None, "c": None})
        # a is NOT NULL with a default, b belongs to the application, c may be known to the source
        row |= {k: v for k, v in data.items() if v is not None or k != "a"}
        row |= {k: None for k in known & {"b", "c"} if k not in data}
    last = {id_: VectorRecord(id=id_, vector=[1], metadata=data) for id_, data in writes}
    if last:
        with vf.connect(library.server.url("t", library.database)) as opened:
            upsert(opened.store, *last.values(), known=tuple(known))
    assert {
        r[0]: dict(zip("abc", r[1:], strict=True)) for r in library.sql("select id, a, b, c from t")
    } == rows


@pytest.fixture(scope="module")
def library(postgres: Any) -> Any:
    from .conftest import Sandbox

    box = Sandbox(postgres)
    box.sql(
        "create table t (id int primary key, embedding vector(1), a int not null default 7, b int, c int)"
    )
    yield box
    box.close()


def test_the_store_says_what_it_keeps(db: Any) -> None:
    db.sql(
        "create table own (id int primary key, content text, embedding vector(1), likes int,"
        " status text not null default 'new', double int generated always as (likes * 2) stored)"
    )
    store = db.store("own")
    assert isinstance(store, KeepsOwn) and isinstance(store, ChecksFilters)
    kept = store.kept(source_schema("likes"))
    assert kept.text and [k for k in ("likes", "status", "double", "x") if kept.metadata(k)] == [
        "status",
        "double",
    ]
    assert store.kept(CollectionSchema()).metadata("likes")
    made = db.store("made")
    made.prepare(CollectionSchema(fields=(VectorField(dim=1),), id_type="int"), WriteMode.CREATE)
    assert not made.kept(CollectionSchema()).text and not made.kept(CollectionSchema()).metadata("x")


def test_columns_added_to_a_table_of_ours_belong_to_the_application(db: Any) -> None:
    collection = db.connect("made")
    collection.write([{"id": 1, "text": "a", "vector": [1.0], "metadata": {"k": 1}}])
    db.sql("alter table made add likes int default 3")
    (record,) = collection.records()
    assert record.metadata == {"k": 1, "likes": 3}
    collection.write([{"id": 1, "text": None, "vector": [1.0], "metadata": {"j": 2}}])
    assert db.sql("select text, metadata, likes from made") == [(None, {"j": 2}, 3)], "ours is exact"


def test_uuids_as_text_fit_a_uuid_key(db: Any, tmp_path: Any) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    db.sql("create table own (id uuid primary key, content text, embedding vector(1))")
    db.sql("insert into own values (%s, 'old', '[1]')", one)
    source = lines(
        tmp_path,
        f'{{"id": "{one}", "text": "new", "vector": [2]}}',
        f'{{"id": "{two}", "text": "more", "vector": [3]}}',
    )
    assert vf.migrate(source, url(db, "own"), mode="upsert").ok
    assert db.sql("select id::text, content from own order by content") == [(two, "more"), (one, "new")]
    store = db.store("own")
    assert store.fetch([two, uuid.UUID(one)]).id_list == [two, uuid.UUID(one)]
    with pytest.raises(RejectedRecord, match="do not fit the key"):
        store.write(RecordBatch.from_records([VectorRecord(id=one.upper(), text="x", vector=[1])]))
    assert store.delete([two]) == 1


# -- what lies beside -----------------------------------------------------------------------------


def test_parts_of_a_key_are_metadata_too(db: Any) -> None:
    db.sql(
        "create table docs (tenant uuid, n int, content text, embedding vector(1), primary key (tenant, n))"
    )
    db.sql(f"insert into docs select '{TENANT}', g, 'c', '[1]' from generate_series(1, 3) g")
    collection = db.connect("docs")
    records = list(collection.records(where={"tenant": uuid.UUID(TENANT), "n": {"$lte": 2}}))
    assert [r.metadata for r in records] == [{"tenant": uuid.UUID(TENANT), "n": n} for n in (1, 2)]
    collection.write([r.replace(text="new") for r in records])
    assert db.sql("select n, content from docs order by n") == [(1, "new"), (2, "new"), (3, "c")]
    with pytest.raises(RejectedRecord, match="a part of the key"):
        collection.write([records[0].replace(metadata={"n": 9})])


def test_an_array_of_vectors_is_a_multi_field(db: Any) -> None:
    db.sql(
        "create table docs (id int primary key, pooled vector(2), tokens vector(2)[], halves halfvec(2)[])"
    )
    db.sql(
        "insert into docs values (1, '[1,2]', array['[1,2]','[3,4]']::vector[], array['[5,6]']::halfvec[]),"
        " (2, '[1,2]', '{}', null)"
    )
    collection = db.connect("docs")
    kinds = {f.name: (f.kind, f.dim) for f in collection.describe().fields}
    assert kinds == {"pooled": (Kind.DENSE, 2), "tokens": (Kind.MULTI, 2), "halves": (Kind.MULTI, 2)}
    one, two = collection.records()
    assert one.vectors["tokens"].tolist() == [[1, 2], [3, 4]] and one.vectors["halves"].tolist() == [[5, 6]]
    assert two.vectors["tokens"].shape == (0, 2) and "halves" not in two.vectors
    before = db.sql("select tokens::text, halves::text from docs order by id")
    db.sql("update docs set tokens = null, halves = null")
    collection.write([one, two])
    assert db.sql("select tokens::text, halves::text from docs order by id") == before
    with pytest.raises(SchemaMismatchError, match="array of vectors"):
        collection.search(np.array([1.0, 2.0]), 1, field="tokens")


@pytest.mark.parametrize(
    ("type_", "literal"),
    [
        ("real[]", "'{1,2.5,-3}'"),
        ("double precision[]", "'{1,2.5,-3}'"),
        ("integer[]", "'{1,2,-3}'"),
        ("text", "'[1, 2.5, -3]'"),
        ("text", "'1,2.5,-3'"),
        ("text", "'{1,2.5,-3}'"),
        ("json", "'[1, 2.5, -3]'"),
        ("jsonb", "'[1, 2.5, -3]'"),
    ],
)
def test_vectors_that_are_no_vectors_are_read(db: Any, type_: str, literal: str) -> None:
    db.sql(f"create table docs (id int primary key, content text, v {type_})")
    db.sql(f"insert into docs values (1, 'a', {literal}), (2, 'b', null)")
    collection = db.connect("docs", vector="v")
    (field,) = collection.describe().fields
    assert (field.name, field.dim) == ("", 3) and not collection.describe().losses
    one, two = collection.records()
    assert one.vector.tolist() == pytest.approx([1, 2 if type_ == "integer[]" else 2.5, -3])
    assert not two.vectors and one.metadata == {}
    assert [r.id for r in collection.search([1, 2, -3], 3)] == [1]
    with pytest.raises(SchemaMismatchError, match="read and not written"):
        collection.write([one])


def test_numbers_that_float32_rounds_are_counted(db: Any) -> None:
    db.sql("create table docs (id int primary key, v double precision[], t text)")
    db.sql("insert into docs values (1, '{0.1,2}', '[0.1,2]'), (2, '{0.5,2}', '[0.5,2]')")
    for column in ("v", "t"):
        (loss,) = db.connect("docs", vector=column).describe().losses
        assert (loss.kind, loss.count) == ("vector", 1)


def test_a_table_without_a_key_is_read_by_its_places(db: Any, tmp_path: Any) -> None:
    db.sql("create table docs (content text, embedding vector(1))")
    db.sql("insert into docs select 'c' || g, array[g]::vector from generate_series(1, 500) g")
    plan = vf.plan(url(db, "docs"), f"jsonl:{tmp_path}/out.jsonl")
    assert any("no key" in str(loss) for loss in plan.losses) and plan.count == 500
    assert plan.run().ok
    store = db.store("docs")
    found = [
        i for p in store.partitions(4) for b in store.scan(partition=p, batch_size=7) for i in b.id_list
    ]
    assert len(found) == len(set(found)) == 500 and found[0] == "(0,1)"
    assert store.fetch(["(0,2)"]).text_list == ["c2"]
    with pytest.raises(UnsupportedError, match="no key"):
        store.delete(["(0,2)"])
    with pytest.raises(SchemaMismatchError, match="no unique index"):
        upsert(store, VectorRecord(id="(0,1)", vector=[1]))


def test_one_vector_of_another_dimension_is_said_and_set_aside(db: Any, tmp_path: Any) -> None:
    db.sql("create table docs (id int primary key, content text, embedding vector)")
    db.sql(
        "insert into docs select g, 'c', case when g = 7 then '[1]'::vector else '[1,2,3]'::vector end"
        " from generate_series(1, 20) g"
    )
    target = f"jsonl:{tmp_path}/out.jsonl"
    plan = vf.plan(url(db, "docs"), target, on_error="quarantine")
    assert plan.target_schema.fields[0].dim == 3
    assert [(loss.kind, loss.count) for loss in plan.losses] == [("vector", 1)]
    report = plan.run()
    assert (report.written, report.rejected) == (19, 1)
    assert 7 not in {r.id for r in vf.connect(target).records()}


def test_the_rows_of_other_collections_are_said(db: Any) -> None:
    for name, n in (("one", 2), ("two", 3)):
        store = db.store(name, layout="langchain")
        store.prepare(CollectionSchema(fields=(VectorField(dim=1),), id_type="str"), WriteMode.CREATE)
        store.write(RecordBatch.from_records([VectorRecord(id=f"{name}{i}", vector=[1]) for i in range(n)]))
    (loss,) = db.connect("one").describe().losses
    assert (loss.kind, loss.count, loss.reversible) == ("rows", 3, True)


def test_tables_of_the_community_era_are_read_and_updated(db: Any) -> None:
    db.sql("create table langchain_pg_collection (uuid uuid primary key, name varchar, cmetadata json)")
    db.sql(
        "create table langchain_pg_embedding (uuid uuid primary key, collection_id uuid references"
        " langchain_pg_collection, embedding vector, document varchar, cmetadata json, custom_id varchar)"
    )
    one, two = uuid.uuid4(), uuid.uuid4()
    db.sql("insert into langchain_pg_collection values (%s, 'kb', null), (%s, 'bare', null)", one, two)
    rows = "insert into langchain_pg_embedding values (gen_random_uuid(), %s, '[1,2]', %s, %s, %s)"
    for i in range(3):
        db.sql(rows, one, f"text {i}", f'{{"n": {i}}}', f"id-{i}")
        db.sql(rows, two, f"bare {i}", "{}", None)
    collection = db.connect("kb")
    assert (collection.describe().layout, collection.count()) == ("langchain", 3)
    found = {r.id: r for r in collection.records()}
    assert set(found) == {"id-0", "id-1", "id-2"} and found["id-1"].metadata == {"n": 1}
    keys = db.sql(
        "select uuid from langchain_pg_embedding where collection_id = %s order by custom_id", one
    )
    for _ in range(2):
        collection.write([found["id-1"].replace(text="new"), found["id-2"].replace(id="more")])
    after = db.sql(
        "select custom_id, document from langchain_pg_embedding where collection_id = %s order by 1",
        one,
    )
    assert after == [("id-0", "text 0"), ("id-1", "new"), ("id-2", "text 2"), ("more", "text 2")]
    again = "select uuid from langchain_pg_embedding where collection_id = %s and custom_id like 'id%%'"
    assert set(db.sql(again, one)) == set(keys), "the keys of the rows survive"
    bare = list(db.connect("bare").records())
    assert len(bare) == 3 and all(isinstance(r.id, uuid.UUID) for r in bare)


@pytest.mark.parametrize("layout", ["langchain", "langchain-v2", "llamaindex"])
def test_columns_beside_a_framework_are_carried_or_said(db: Any, layout: str, tmp_path: Any) -> None:
    store = db.store("kb", layout=layout)
    store.prepare(CollectionSchema(fields=(VectorField(dim=2),), id_type="str"), WriteMode.CREATE)
    store.write(
        RecordBatch.from_records([VectorRecord(id="a", text="x", vector=[1, 2], metadata={"n": 1})])
    )
    store.finish()
    name = {"langchain": "langchain_pg_embedding", "langchain-v2": "kb", "llamaindex": "data_kb"}[layout]
    db.sql(f"alter table {name} add project_id int default 7, add at date default '2026-05-05'")
    collection = db.connect("kb")
    (record,) = collection.records()
    assert record.metadata == {"n": 1, "project_id": 7, "at": date(2026, 5, 5)}
    collection.write([record.replace(text="new", metadata={"n": 2, "project_id": 8})])
    assert db.sql(f"select project_id, at from {name}") == [(8, date(2026, 5, 5))]
    assert next(iter(collection.records())).metadata == {"n": 2, "project_id": 8, "at": date(2026, 5, 5)}
    assert [r.id for r in collection.records(where={"at": date(2026, 5, 5)})] == ["a"]
    db.sql(f"alter table {name} add second vector(3)")
    with pytest.raises(LossRefusedError, match="second"):
        vf.plan(url(db, "kb"), f"jsonl:{tmp_path}/out.jsonl", lossy="refuse")


# -- frameworks open what was updated -------------------------------------------------------------


def test_llamaindex_goes_on_with_what_was_updated(db: Any) -> None:
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
    from llama_index.core.vector_stores import VectorStoreQuery

    from .test_frameworks import TEXTS, Model, llama

    nodes = [
        TextNode(
            id_=f"n{i}",
            text=text,
            metadata={"n": i},
            embedding=Model().embed_query(text),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{i % 2}")},
        )
        for i, text in enumerate(TEXTS)
    ]
    llama(db, "notes").add(nodes)
    db.sql("alter table data_notes add stars int default 1")
    db.sql("update data_notes set stars = 5 where node_id = 'n1'")
    keys = db.sql("select node_id, id from data_notes order by node_id")
    fresh = {r.id: r for r in db.connect("notes").records()}
    changed = {k: v for k, v in fresh["n1"].metadata.items() if k != "stars"} | {"n": 11}
    upsert(
        db.store("notes"),
        fresh["n1"].replace(text=TEXTS[1] + "!", metadata=changed),
        VectorRecord(id="new", text="new", vector=[0, 0, 0, 1], metadata={"n": 12}),
    )
    assert db.sql("select node_id, id from data_notes where node_id <> 'new' order by node_id") == keys
    assert db.sql("select stars from data_notes where node_id = 'n1'") == [(5,)]
    app = llama(db, "notes")
    query = VectorStoreQuery(query_embedding=Model().embed_query(TEXTS[1]), similarity_top_k=1)
    result = app.query(query)
    assert (result.ids, result.nodes[0].text, result.nodes[0].metadata["n"]) == (["n1"], TEXTS[1] + "!", 11)
    app.delete("doc1")
    assert {r.id for r in db.connect("notes").records()} == {"n0", "n2", "n4", "new"}


def test_langchain_goes_on_with_what_was_updated(db: Any) -> None:
    from langchain_postgres import Column, PGEngine, PGVectorStore

    from .test_frameworks import TEXTS, Model

    engine = PGEngine.from_connection_string(db.server.sqlalchemy_url(db.database))
    try:
        engine.init_vectorstore_table("made", 4, metadata_columns=[Column("stars", "INTEGER")])
        app = PGVectorStore.create_sync(
            engine, embedding_service=Model(), table_name="made", metadata_columns=["stars"]
        )
        ids = app.add_texts(TEXTS[:3], metadatas=[{"n": i, "stars": i} for i in range(3)])
        more = str(uuid.uuid4())
        records = [
            VectorRecord(id=ids[1], text=TEXTS[3], vector=Model.vectors[TEXTS[3]], metadata={"n": 9}),
            VectorRecord(id=more, text=TEXTS[4], vector=Model.vectors[TEXTS[4]], metadata={"stars": 4}),
        ]
        upsert(db.store("made"), *records)
        assert app.similarity_search(TEXTS[3], k=1)[0].metadata == {"n": 9, "stars": 1}
        assert app.similarity_search(TEXTS[4], k=1)[0].metadata == {"stars": 4}
        assert len(db.sql("select 1 from made")) == 4
    finally:
        engine._run_as_sync(engine.close())


# -- filters --------------------------------------------------------------------------------------


def test_filters_compare_uuids_and_dates(db: Any) -> None:
    db.sql(
        "create table t (tenant uuid, id uuid, content text, embedding vector(1), day date, at timestamptz,"
        " naive timestamp, hour time, owner text, primary key (tenant, id))"
    )
    db.sql(
        f"insert into t select '{TENANT}', gen_random_uuid(), 'c', '[1]', '2026-05-05', '2026-05-05 12:00Z'"
        f", '2026-05-05 12:00', '12:00', '{TENANT}' from generate_series(1, 9) g"
    )
    collection = db.connect("t")
    noon = datetime(2026, 5, 5, 12, tzinfo=UTC)
    tenant, day = uuid.UUID(TENANT), date(2026, 5, 5)
    for where in (
        {"tenant": tenant},
        {"owner": tenant},
        {"owner": TENANT},
        {"day": {"$gte": date(2026, 1, 1)}},
        {"day": day},
        {"at": noon},
        {"at": {"$gte": day}},
        {"naive": {"$lt": date(2026, 5, 6)}},
        {"hour": time(12)},
        {"tenant": {"$in": ["no uuid", tenant]}},
        {"$or": [{"content": 1}, {"content": "c"}]},
    ):
        assert len(list(collection.records(where=where))) == 9, where
        collection.store.check_filter(where)


def test_a_filter_that_cannot_match_is_an_error_of_the_plan(db: Any, tmp_path: Any) -> None:
    db.sql("create table t (id int primary key, content text, embedding vector(1), at date, owner uuid)")
    db.sql("insert into t values (1, 'c', '[1]', '2026-05-05', gen_random_uuid())")
    docs = db.connect("docs")
    docs.write([{"id": 1, "vector": [1.0], "metadata": {"lang": "en", "a": {"b": 1}, "tags": ["x"]}}])
    target = f"jsonl:{tmp_path}/out.jsonl"
    filters: tuple[tuple[str, dict[str, Any]], ...] = (
        ("t", {"no_such_key": 1}),
        ("t", {"at": 5}),
        ("t", {"at": "2026-05-05"}),
        ("t", {"owner": TENANT}),
        ("t", {"owner": "nobody"}),
        ("t", {"$and": [{"id": 1}, {"owner": {"$in": []}}]}),
        ("t", {"$or": [{"at": 5}, {"no_such_key": 1}]}),
        ("docs", {"no_such_key": 1}),
        ("docs", {"a.c": 1}),
        ("docs", {"lang": 5}),
    )
    for table, where in filters:
        with pytest.raises(PlanError, match="filter"):
            vf.plan(url(db, table), target, where=where)
    with pytest.raises(PlanError, match=r"write date\('2026-05-05'\) in an expression"):
        vf.plan(url(db, "t"), target, where={"at": {"$gte": "2026-05-05"}})
    vf.plan(url(db, "t"), target, where="at >= date('2026-05-05')")
    filters = (
        ("t", {"id": 1}),
        ("t", {"no_such_key": {"$exists": False}}),
        ("t", {"owner": {"$ne": "nobody"}}),
        ("docs", {"lang": "de"}),
        ("docs", {"a.b": 1}),
        ("docs", {"tags": "x"}),
    )
    for table, where in filters:
        vf.plan(url(db, table), target, where=where)
