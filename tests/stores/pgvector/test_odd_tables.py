"""Tables and engines as applications have them: nothing lost, doubled or changed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from known import some
from vecferry.connecting import Collection
from vecferry.contrib.fill_postgres import fill_column
from vecferry.contrib.sqlalchemy_models import PgVectorCollection
from vecferry.errors import (
    ConfigurationError,
    RejectedRecord,
    SchemaMismatchError,
    TimedOutError,
    UnsupportedError,
)
from vecferry.model import EmbeddingSpace, RecordBatch, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.pgvector import PgVectorStore


class Counting:
    space = EmbeddingSpace(model="counting", dim=2, normalized=False)

    def embed(self, texts: Sequence[str]) -> Any:
        return np.array([[len(text), 1] for text in texts], np.float32)

    async def aembed(self, texts: Sequence[str]) -> Any:
        return self.embed(texts)


def filled(db: Any, key: str = "g", type_: str = "int", rows: int = 50) -> None:
    db.sql(f"create table t (id {type_} primary key, u int, content text, embedding vector(2))")
    db.sql(
        f"insert into t select {key}, g % 3, 'text', array[g, 1]::vector from generate_series(1, {rows}) g"
    )


def in_shares(store: Any, want: int = 3, batch: int = 7) -> list[Any]:
    """All ids by partitions, each scan taken up anew after every batch."""
    found: list[Any] = []
    for share in store.partitions(want):
        after = None
        while got := next(store.scan(partition=share, after=after, batch_size=batch), None):
            found += got.id_list
            after = got.cursor
    return found


# -- keys -----------------------------------------------------------------------------------------


def test_padded_keys_are_paged_fetched_and_deleted(db: Any) -> None:
    filled(db, "'k' || lpad(g::text, 5, '0')", "char(8)")
    store = db.store("t")
    ids = in_shares(store)
    assert len(ids) == len(set(ids)) == 50
    assert store.fetch(ids[:3]).id_list == ids[:3]
    assert store.delete(ids[:3]) == 3


@pytest.mark.parametrize(
    ("type_", "ids"),
    [
        ("date", ["0044-03-15 BC", "2020-01-01"]),
        ("timestamptz", ["2020-01-01 00:00:00+00"]),
        ("numeric", ["1.50", "NaN"]),
        ("float8", ["0.1", "1.234567"]),
        ("time", ["12:00:00"]),
        ("bytea", ["\\x00ff"]),
        ("inet", ["10.0.0.1/32"]),
        ("mood", ["sad"]),
    ],
)
def test_keys_of_any_type_are_written(db: Any, type_: str, ids: list[str]) -> None:
    db.sql("create type mood as enum ('happy', 'sad')")
    db.sql(f"create table t (id {type_} primary key, embedding vector(2))")
    collection = db.connect("t")
    for _ in range(2):
        collection.write([VectorRecord(id=id_, vector=[1, 2]) for id_ in ids])
    assert [row[0] for row in db.sql("select id::text from t order by id")] == ids
    assert [r.id for r in collection.fetch(ids)] == ids


def test_ids_that_no_key_can_have_are_left_out(db: Any) -> None:
    filled(db)
    store = db.store("t")
    assert store.fetch([2**40, True, "1", "\ud800", 1]).id_list == [1]
    assert store.delete([2**40, True, -(2**70)]) == 0


def test_a_key_with_nulls_loses_no_rows(db: Any) -> None:
    filled(db)
    db.sql("alter table t add email text unique")
    db.sql("update t set email = 'e' || id where id > 5")
    with pytest.raises(SchemaMismatchError, match="NULL"):
        in_shares(db.store("t", key="email"))
    assert len(in_shares(db.store("t"))) == 50


def test_a_key_repeated_by_an_inheriting_table_is_named(db: Any) -> None:
    filled(db)
    db.sql("create table child () inherits (t)")
    assert len(in_shares(db.store("t"))) == 50
    db.sql("insert into child values (5, 1, 'twice', '[1,2]')")
    with pytest.raises(SchemaMismatchError, match="not unique"):
        in_shares(db.store("t"))


# -- columns that the server fills ----------------------------------------------------------------


def test_generated_columns_are_read_and_left_to_the_server(db: Any) -> None:
    db.sql(
        "create table t (id int primary key, content text, n int,"
        " twice int generated always as (n * 2) stored,"
        " number int generated always as identity, metadata jsonb, embedding vector(2),"
        " half halfvec(2) generated always as (embedding::halfvec) stored)"
    )
    db.sql("insert into t (id, content, n, metadata, embedding) values (1, 'a', 3, '{\"k\": 1}', '[1,2]')")
    collection = db.connect("t")
    (record,) = collection.records()
    assert record.metadata == {"k": 1, "n": 3, "twice": 6, "number": 1}
    collection.write([record.model_copy(update={"text": "b", "id": i}) for i in (1, 2)])
    assert db.sql("select id, content, twice, number, half::text, metadata from t order by id") == [
        (1, "b", 6, 1, "[1,2]", {"k": 1}),
        (2, "b", 6, 3, "[1,2]", {"k": 1}),
    ]


def test_a_missing_value_is_left_to_the_default_of_a_column_without_nulls(db: Any) -> None:
    db.sql(
        "create table t (id int primary key, content text, seq bigserial,"
        " created timestamptz not null default '2020-01-01Z', embedding vector(2))"
    )
    collection, when = db.connect("t"), datetime(2026, 1, 2, tzinfo=UTC)
    records = [VectorRecord(id=i, text="x", vector=[1, 2]) for i in (1, 2)]
    dated = VectorRecord(id=3, text="x", vector=[1, 2], metadata={"created": when, "seq": 99})
    for _ in range(2):  # the second time changes nothing
        collection.write([records[0], dated, records[1]])
    found = {r.id: r.metadata for r in collection.records()}
    assert found[3] == {"created": when, "seq": 99}
    assert found[1]["created"] == found[2]["created"] == datetime(2020, 1, 1, tzinfo=UTC)
    collection.write([dated.model_copy(update={"metadata": {}})])
    assert collection.fetch([3])[0].metadata == {"created": when, "seq": 99}


def test_json_columns_keep_every_digit(db: Any) -> None:
    numbers = '{"d": 0.12345678901234567890123, "big": 123456789012345678901234567890, "e": 1e400}'
    db.sql("create table t (id int primary key, metadata jsonb, extra jsonb, embedding vector(2))")
    db.sql("insert into t values (1, '{}', %s, '[1,2]')", numbers)
    before = db.sql("select extra::text from t")
    collection = db.connect("t")
    (record,) = collection.records()
    assert record.metadata["extra"]["d"] == Decimal("0.12345678901234567890123")
    collection.write([record])
    assert db.sql("select extra::text from t") == before
    moment = {"extra": {"at": datetime(2026, 1, 1)}}  # no JSON: kept with its type in the json column
    collection.write([record.model_copy(update={"metadata": moment})])
    assert collection.fetch([1])[0].metadata == moment


def test_dates_that_python_lacks_are_written_as_they_were(db: Any) -> None:
    db.sql("create table t (id int primary key, o oid, d date, at timestamptz, embedding vector(2))")
    db.sql("insert into t values (1, 5, '0044-03-15 BC', '4713-01-01 12:00:00+00 BC', '[1,2]')")
    db.sql("insert into t values (2, 4294967295, 'infinity', '294276-01-01Z', '[1,2]')")
    before = db.sql("select t::text from t order by id")
    collection = db.connect("t")
    collection.write(list(collection.records()))
    assert db.sql("select t::text from t order by id") == before
    with pytest.raises(RejectedRecord):
        late = {"d": f"2000-01-01 + {2**40} days"}
        collection.write([VectorRecord(id=3, vector=[1, 2], metadata=late)])


# -- where ----------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    active: Mapped[bool]


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "note"}  # noqa: RUF012


class Mail(Document):
    __mapper_args__ = {"polymorphic_identity": "mail"}  # noqa: RUF012


class Report(Base):
    __tablename__ = "t"
    id: Mapped[int] = mapped_column(primary_key=True)
    u: Mapped[int]
    urgent: Mapped[bool]

    @hybrid_property
    def early(self) -> bool:
        return self.id < 10


def test_text_stands_in_parentheses(db: Any) -> None:
    filled(db)
    where = sa.text("u = :a OR u = 1").bindparams(a=0)
    store = db.store("t", where=where)
    ids = in_shares(store)
    assert len(ids) == len(set(ids)) == store.count() == 33
    assert store.fetch([2, 3]).id_list == [3]


def test_named_parameters_hold_for_every_call(db: Any) -> None:
    filled(db)
    store = db.store("t", params={"wanted": 1})
    assert {r.id % 3 for r in store.search([1, 1], 50, where="u = :wanted")} == {1}
    with pytest.raises(ConfigurationError, match="params"):
        store.search([1, 1], 3, where="u = :other")
    assert db.store("t", where="u = :wanted", params={"wanted": 1, "unused": 2}).count() == 17


def test_subqueries_keep_their_own_tables(db: Any) -> None:
    filled(db)
    db.sql("alter table t add urgent bool default true; update t set urgent = false where id > 20")
    db.sql("create table users (id int primary key, active bool)")
    db.sql("insert into users values (0, true), (1, false), (50, true)")
    reports = PgVectorCollection.from_model(Report, engine=engine_of(db))
    other = sa.orm.aliased(Report)
    latest = sa.select(sa.func.max(other.id)).where(other.u == Report.u).scalar_subquery()
    by_user = sa.select(User.id).where(User.id == Report.u, User.active).exists()
    conditions: list[Any] = [
        Report.u.in_(sa.select(User.id).where(User.active)),
        by_user,
        sa.and_(by_user, Report.id > 10),
        Report.id == latest,
        Report.id.in_(sa.select(Report.id).where(Report.u == 1)),
        Report.urgent,
        Report.early,
    ]
    for where in conditions:
        with sa.orm.Session(engine_of(db)) as session:
            wanted = set(session.scalars(sa.select(Report.id).where(where)))
        assert {r.id for r in reports.records(where=where)} == wanted
        assert wanted
    db.sql("create view recent as select * from t")
    assert db.store("recent", id="id", where=Report.u == 1).count() == 17


def test_a_class_that_shares_its_table_reads_its_own_rows(db: Any) -> None:
    filled(db)
    db.sql("create table documents as select id, content, embedding, 'note' as kind from t")
    db.sql("alter table documents add primary key (id); update documents set kind = 'mail' where id > 20")
    mails = PgVectorCollection.from_model(Mail, engine=engine_of(db), where="id > 30")
    assert [r.id for r in mails.records()] == list(range(31, 51))
    assert PgVectorCollection.from_model(Document, engine=engine_of(db)).count() == 50


def test_a_column_with_nan_is_filtered_as_python_does(db: Any) -> None:
    db.sql("create table t (id int primary key, f float8, n numeric, embedding vector(2))")
    db.sql(
        "insert into t values (1, 'NaN', 'NaN', '[1,2]'), (2, 4, 4, '[1,2]'), (3, 'inf', 'inf', '[1,2]')"
    )
    store = db.store("t")
    for where, ids in (
        ({"$gt": 3}, {2, 3}),
        ({"$lte": 4}, {2}),
        ({"$ne": 4}, {1, 3}),
        (float("nan"), set()),
    ):
        assert {r.id for r in store.search([1, 2], 5, where={"f": where})} == ids
        assert {r.id for r in store.search([1, 2], 5, where={"n": where})} == ids


# -- engines and servers --------------------------------------------------------------------------


def engine_of(db: Any, **options: Any) -> sa.Engine:
    return sa.create_engine(db.server.sqlalchemy_url(db.database), **options)


def test_an_engine_in_autocommit_is_read_in_transactions(db: Any) -> None:
    filled(db, "now() + g * interval '1 hour'", "timestamptz")
    engine = engine_of(db, isolation_level="AUTOCOMMIT")
    store = PgVectorStore(engine, "t")
    assert len(in_shares(store)) == 50
    assert fill_column(store, "second", Counting()).rows == 50
    store.close()
    with some(engine.raw_connection().driver_connection) as connection:
        assert connection.autocommit


def test_an_engine_lends_all_that_it_connects_with(db: Any) -> None:
    filled(db)
    arguments = {"host": "127.0.0.1", "port": db.server.port, "user": "postgres", "dbname": db.database}
    store = PgVectorStore(sa.create_engine("postgresql+psycopg://", connect_args=arguments), "t")
    assert len(in_shares(store)) == 50
    assert Collection(store).write([VectorRecord(id=100, vector=[1, 2])]) == 1
    for driver in ("asyncpg", "psycopg"):
        engine = create_async_engine(db.server.sqlalchemy_url(db.database, driver))
        assert PgVectorStore(engine, "t").count() == 51


def test_an_index_build_leaves_the_sessions_of_the_application_alone(db: Any) -> None:
    filled(db)
    engine = engine_of(db, pool_size=1)

    @sa.event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.execute("SET search_path TO public, pg_catalog")
        connection.commit()

    PgVectorStore(engine, "t", index="hnsw").finish()
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW search_path")) == "public, pg_catalog"
    assert db.sql("select count(*) from pg_indexes where tablename = 't'") == [(2,)]


def test_a_database_in_another_encoding(db: Any) -> None:
    name = f"{db.database}_latin"
    db.sql(f"create database {name} encoding 'LATIN1' template template0 lc_collate 'C' lc_ctype 'C'")
    with db.server.connect(name) as behind:
        behind.execute("set client_encoding to 'UTF8'")
        behind.execute("create extension vector")
        behind.execute("create table t (id text primary key, content text, embedding vector(2))")
        behind.execute("insert into t values ('ä', 'größe', '[1,2]')")
        for driver in ("psycopg", "psycopg2"):
            store = PgVectorStore(sa.create_engine(db.server.sqlalchemy_url(name, driver)), "t")
            collection = Collection(store)
            assert [r.text for r in collection.fetch(["ä"])] == ["größe"]
            collection.write([VectorRecord(id="ü", text="straße", vector=[1, 2])])
            assert behind.execute("select content from t where id = 'ü'").fetchall() == [("straße",)]
            with pytest.raises(RejectedRecord, match="LATIN1"):
                collection.write([VectorRecord(id="x", text="日本", vector=[1, 2])])
            collection.close()


def test_names_with_every_sign(db: Any) -> None:
    table = '"My.S 100%s"."a""b.c %(x)s {}"'
    db._connection.execute('create schema "My.S 100%s"')
    db._connection.execute(
        f'create table {table} ("i d.%s" int primary key, "te""xt :x %" text, "v%(a)s(b)" vector(2))'
    )
    store = PgVectorStore(engine_of(db), table, text='te"xt :x %')
    cursor = store.track()
    collection = Collection(store)
    collection.write([VectorRecord(id=1, text="z", vector=[0, 1])])
    assert [c.upserted.id_list for c in store.changes(cursor) if c.upserted] == [[1]]
    store.forget_changes([2**62, 0])
    store.untrack()
    assert fill_column(store, "new %s {}", Counting()).rows == 1
    assert [r.id for r in collection.search([0, 1], 1, field="v%(a)s(b)")] == [1]


def test_writers_of_the_same_rows_wait_for_each_other(db: Any) -> None:
    db.connect("t").write([VectorRecord(id=i, vector=[i, 1]) for i in range(300)])
    store = db.store("t")
    stores = [db.store("t") for _ in range(3)]
    for one in stores:
        one.prepare(store.describe(), WriteMode.UPSERT)

    def write(number: int) -> int:
        ids = np.random.default_rng(number).permutation(300).tolist()
        batch = RecordBatch.from_records([VectorRecord(id=i, vector=[i, number]) for i in ids])
        return sum(stores[number].write(batch).written for _ in range(8))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(write, range(3))) == [2400] * 3


# -- errors and replacing -------------------------------------------------------------------------


def test_a_failure_before_the_first_row_is_told_as_it_is(db: Any) -> None:
    filled(db)
    db.sql("create view slow as select id, embedding, pg_sleep(2)::text as z from t")
    db.sql("create view wrong as select id, embedding, 1 / (id - 1) as z from t")
    with pytest.raises(TimedOutError):
        list(db.connect("slow", id="id", options="-c statement_timeout=200").records())
    with pytest.raises(RejectedRecord, match="division by zero"):
        list(db.connect("wrong", id="id").records())


def test_row_level_security_is_not_lost_by_replacing(db: Any) -> None:
    filled(db)
    db.sql("alter table t enable row level security")
    store = db.store("t")
    store.prepare(store.describe(), WriteMode.REPLACE)
    store.write(RecordBatch.from_records([VectorRecord(id=7, text="z", vector=[0, 1])]))
    with pytest.raises(UnsupportedError, match="row level security"):
        store.finish()
    assert store.count() == 50


def test_filling_keeps_to_the_rows_of_the_store_and_to_unique_keys(db: Any) -> None:
    filled(db)
    assert fill_column(db.store("t", where="u = 1", vector="embedding"), "second", Counting()).rows == 17
    db.sql("alter table t drop constraint t_pkey; update t set id = 7 where id < 30")
    with pytest.raises(SchemaMismatchError, match="not unique"):
        fill_column(db.store("t", key="id", vector="embedding"), "second", Counting())


def test_vectors_of_several_dimensions_in_one_column(db: Any) -> None:
    db.sql("create table t (id int primary key, embedding vector)")
    db.sql("insert into t values (1, '[1,2]'), (2, '[1,2,3]'), (3, null)")
    collection = db.connect("t")
    assert [r.id for r in collection.search([1, 2], 5)] == [1]
    assert [r.id for r in collection.search([1, 2, 3], 5)] == [2]
    with pytest.raises(SchemaMismatchError, match="several dimensions"):
        collection.fetch([1, 2])


def test_a_select_refuses_deletion(db: Any) -> None:
    filled(db)
    store = PgVectorStore(engine_of(db), None, select="select id, embedding from t", id="id")
    with pytest.raises(ConfigurationError, match="only be read"):
        store.delete([1])
