"""Bad input, lost connections, missing rights: a clear error, nothing half-written, no lock left."""

from __future__ import annotations

import threading
import time
import traceback
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

import vecferry as vf
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    NotFoundError,
    RejectedRecord,
    RetryableError,
    SchemaMismatchError,
    TargetExistsError,
    TimedOutError,
    VecferryError,
)
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    DType,
    EmbeddingSpace,
    RecordBatch,
    VectorField,
    VectorRecord,
)
from vecferry.ports import Fields, StoreURL, WriteMode

SCHEMA = CollectionSchema(fields=(VectorField(dim=2),), id_type="int")


def prepared(db: Any, name: str = "items", schema: CollectionSchema = SCHEMA, **options: Any) -> Any:
    store = db.store(name, **options)
    store.prepare(schema, WriteMode.CREATE)
    return store


def good(*ids: int) -> list[VectorRecord]:
    return [VectorRecord(id=i, text="fine", vector=[1.0, i]) for i in ids]


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (VectorRecord(id=5, text="a\0b", vector=[1, 2]), "NUL"),
        (VectorRecord(id=5, text="\ud800", vector=[1, 2]), "surrogate"),
        (VectorRecord(id=5, vector=[1, 2], metadata={"k": "\ud800"}), "surrogate"),
        (VectorRecord(id=5, vector=[1, 2], metadata={"k": ["\0"]}), "NUL"),
        (VectorRecord(id=5, vector=[1, np.nan]), "NaN"),
        (VectorRecord(id=5, vector=[np.inf, 1]), "NaN or an infinity"),
        (VectorRecord(id=5, vector=[1, 2], metadata={"k": object()}), "object"),
        (VectorRecord(id="five", vector=[1, 2]), "do not fit the key"),
        (VectorRecord(id=2**70, vector=[1, 2]), "do not fit the key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_records_are_named_and_nothing_is_written(
    db: Any, straight: bool, bad: VectorRecord, reason: str
) -> None:
    store = prepared(db)
    if not straight:
        store.write(RecordBatch.from_records(good(1)))
        store.close()
        store.prepare(SCHEMA, WriteMode.UPSERT)
    before = db.sql("select count(*) from items")
    with pytest.raises(RejectedRecord, match=reason) as caught:
        store.write(RecordBatch.from_records([*good(10), bad, *good(11)]))
    assert caught.value.ids == (bad.id,)
    assert db.sql("select count(*) from items") == before
    store.write(RecordBatch.from_records(good(10, 11)))
    assert db.sql("select count(*) from items where id > 9") == [(2,)]


def test_a_wrong_dimension_is_rejected(db: Any) -> None:
    store = prepared(db)
    with pytest.raises(RejectedRecord, match="2 dimensions, not 3") as caught:
        store.write(RecordBatch.from_records([VectorRecord(id=1, vector=[1, 2, 3]), VectorRecord(id=2)]))
    assert caught.value.ids == (1,)


def test_numbers_beyond_float16_are_rejected(db: Any) -> None:
    store = prepared(db, dtype="float16")
    with pytest.raises(RejectedRecord, match="float16") as caught:
        store.write(RecordBatch.from_records([*good(1), VectorRecord(id=2, vector=[70_000, 0])]))
    assert caught.value.ids == (2,)
    assert db.sql(
        "select format_type(atttypid, atttypmod) from pg_attribute where attname = 'embedding'"
    ) == [("halfvec(2)",)]


def test_a_constraint_of_the_application_rejects(db: Any) -> None:
    db.sql(
        "create table items (id int primary key, text text not null, "
        "n int check (n < 5), embedding vector(2))"
    )
    store = db.store()
    store.prepare(SCHEMA, WriteMode.UPSERT)
    with pytest.raises(RejectedRecord, match=r"null value|23502"):
        store.write(RecordBatch.from_records([VectorRecord(id=1, vector=[1, 2])]))
    with pytest.raises(RejectedRecord, match="check constraint"):
        store.write(
            RecordBatch.from_records([VectorRecord(id=1, text="x", vector=[1, 2], metadata={"n": 7})])
        )
    with pytest.raises(RejectedRecord, match=r"no column.*'other'") as caught:
        store.write(
            RecordBatch.from_records([VectorRecord(id=1, text="x", vector=[1, 2], metadata={"other": 7})])
        )
    assert caught.value.ids == (1,)
    assert db.sql("select count(*) from items") == [(0,)]


def test_two_records_of_one_id_in_a_batch(db: Any) -> None:
    store = prepared(db)
    twice = [VectorRecord(id=1, text=t, vector=[1, 2]) for t in ("first", "last")]
    store.write(RecordBatch.from_records(twice))
    assert db.sql("select text from items") == [("last",)]


# -- keys -------------------------------------------------------------------------------------------


def test_a_key_that_is_not_unique_is_named(db: Any) -> None:
    db.sql("create table items (k int, n int, embedding vector(1))")
    db.sql("create view seen as select * from items")
    with pytest.raises(SchemaMismatchError, match="no primary key"):
        db.connect("seen").describe()
    db.sql("insert into items values (1, 1, '[1]'), (1, 2, '[1]'), (2, 3, '[1]')")
    with pytest.raises(SchemaMismatchError, match=r"not unique.*\(1,\).*key="):
        list(db.connect("items", id="k").scan())
    assert [r.id for r in db.connect("items", id="n").records()] == [1, 2, 3]
    with pytest.raises(SchemaMismatchError, match="no unique index"):
        db.store("items", id="n").write(RecordBatch.from_records([VectorRecord(id=1, vector=[1])]))
    by_other = db.connect("items", id="k", key="n")
    assert [r.id for r in by_other.records()] == [1, 1, 2] and not by_other.describe().ids_unique
    db.sql("insert into items values (5, null, '[1]')")
    with pytest.raises(SchemaMismatchError, match="not unique or NULL"):
        list(db.connect("items", id="n").scan())


def test_views_and_selects_are_read(db: Any) -> None:
    db.sql("create table users (id int primary key, name text)")
    db.sql("create table notes (id int primary key, user_id int, content text, embedding vector(1))")
    db.sql("insert into users values (1, 'ann'), (2, 'bob')")
    db.sql(
        "insert into notes select i, i % 2 + 1, 'note ' || i, "
        "array[i]::vector from generate_series(1, 30) i"
    )
    db.sql(
        "create view seen as select n.*, u.name from notes n join "
        "users u on u.id = n.user_id where n.id > 10"
    )
    view = db.connect("seen", id="id")
    assert view.count() == 20
    parts = view.store.partitions(4)
    assert len(parts) == 4
    assert sorted(
        i for p in parts for b in view.scan(partition=p, batch_size=3) for i in b.id_list
    ) == list(range(11, 31))
    assert next(view.records()).metadata == {"user_id": 2, "name": "bob"}
    query = (
        "select n.id, n.content, n.embedding, u.name as author from notes n "
        "join users u on u.id = n.user_id where n.id < :top"
    )
    chosen = db.connect("unused", select=query, params={"top": 6}, id="id").store
    selected = vf.connect(type(chosen)(chosen._server, None, select=query, params={"top": 6}, id="id"))
    assert [(r.id, r.text, r.metadata) for r in selected.records()][:2] == [
        (1, "note 1", {"author": "bob"}),
        (2, "note 2", {"author": "ann"}),
    ]
    assert selected.count() == 5 and selected.search([1.0], 1)[0].score is not None
    notes = sa.table("notes", sa.column("id"), sa.column("embedding"), sa.column("user_id"))
    built = sa.select(notes.c.id, notes.c.embedding).where(notes.c.user_id == 1)
    assert vf.connect(type(chosen)(chosen._server, None, select=built, id="id")).count() == 15
    with pytest.raises(ConfigurationError, match="only be read"):
        selected.write([{"id": 1, "vector": [1]}])
    with pytest.raises(SchemaMismatchError, match="view"):
        db.store("seen", id="id").write(RecordBatch.from_records([VectorRecord(id=1, vector=[1])]))


# -- servers that fail ------------------------------------------------------------------------------


def fill(db: Any, rows: int = 3000) -> None:
    db.sql("create table items (id int primary key, content text, embedding vector(64))")
    db.sql(
        f"insert into items select i, repeat('x', 200), array_fill(i, "
        f"array[64])::vector from generate_series(1, {rows}) i"
    )


def nobody_left(db: Any, condition: str) -> None:
    """A closed connection's process ends a moment later."""
    for _ in range(100):
        if db.sql(f"select 1 from pg_stat_activity where {condition}") == []:
            return
        time.sleep(0.05)
    pytest.fail(f"still there: {condition}")


def terminate_others(db: Any) -> int:
    return len(
        db.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name = 'vecferry'"
        )
    )


def test_a_killed_connection_is_passing_and_the_scan_goes_on(both: Any) -> None:
    fill(both, 20_000)
    store = both.store()
    seen: list[int] = []
    cursor = None
    with pytest.raises(RetryableError):
        for batch in store.scan(batch_size=100):
            seen += batch.id_list
            cursor = batch.cursor
            if len(seen) == 300:
                assert terminate_others(both)
    for batch in store.scan(after=cursor, batch_size=5000):
        seen += batch.id_list
    assert seen == list(range(1, 20_001))


def test_a_killed_writer_leaves_nothing_half_written(both: Any) -> None:
    store = prepared(both)
    store.write(RecordBatch.from_records(good(1)))
    terminate_others(both)
    with pytest.raises(RetryableError):
        store.write(RecordBatch.from_records(good(2, 3)))
    assert both.sql("select count(*) from items") == [(1,)]
    store.write(RecordBatch.from_records(good(2, 3)))
    store.finish()
    assert store.count() == 3


def test_the_partitions_of_a_read_share_one_snapshot(both: Any) -> None:
    fill(both)
    store = both.store()
    parts = store.partitions(4)
    ids: list[int] = []
    for step, part in enumerate(parts, 1):
        both.sql(
            f"update items set id = id + {step * 10000} where id in "
            f"(select id from items order by id limit 5)"
        )
        both.sql(f"delete from items where id = {3000 - step}")
        both.sql(f"insert into items values ({-step})")
        ids += [i for batch in store.scan(partition=part, fields=Fields.IDS) for i in batch.id_list]
    assert sorted(ids) == list(range(1, 3001))
    terminate_others(both)  # the snapshot dies with its connection: the next scan takes a new one
    assert len([i for b in store.scan(partition=parts[0], fields=Fields.IDS) for i in b.id_list]) > 0
    store.close()
    nobody_left(both, "state like 'idle in%' and datname = current_database()")


def test_partitions_are_read_from_threads(db: Any) -> None:
    fill(db)
    store = db.store()
    found: list[Any] = []

    def read(part: Any) -> None:
        found.extend(i for b in store.scan(partition=part, batch_size=100) for i in b.id_list)

    threads = [threading.Thread(target=read, args=(part,)) for part in store.partitions(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 3001))


def test_a_scan_left_early_leaves_no_transaction(db: Any) -> None:
    fill(db)
    store = db.store()
    scan = store.scan(batch_size=10)
    next(scan)
    scan.close()
    nobody_left(db, "state <> 'idle' and application_name = 'vecferry' and datname = current_database()")


def test_statement_timeout_asks_for_less(db: Any) -> None:
    fill(db)
    db.sql(f"alter database {db.database} set statement_timeout = '20ms'")
    store = db.store("items", where="pg_sleep(0.001) is not null")
    with pytest.raises(TimedOutError, match="statement_timeout"):
        list(store.scan())


def test_a_locked_table_is_waited_for_and_left(db: Any) -> None:
    prepared(db).close()
    db.sql(f"alter database {db.database} set lock_timeout = '100ms'")
    store = db.store()
    with db.server.connect(db.database) as holder:
        holder.autocommit = False
        holder.execute("lock table items in access exclusive mode")
        with pytest.raises(RetryableError, match="lock"):
            store.write(RecordBatch.from_records(good(1)))
    store.write(RecordBatch.from_records(good(1)))
    assert db.sql(
        "select count(*) from pg_locks l join pg_class c on c.oid = relation where relname = 'items'"
    ) == [(0,)]


def test_a_table_that_changes_while_it_is_read(db: Any) -> None:
    fill(db)
    store = db.store()
    store.describe()
    db.sql("alter table items rename column content to body")
    with pytest.raises(SchemaMismatchError, match="changed"):
        list(store.scan())
    db.sql("drop table items")
    with pytest.raises(NotFoundError):
        list(db.store().scan())


# -- rights and passwords -----------------------------------------------------------------------------


def test_no_privilege_and_no_extension(both: Any) -> None:
    fill(both, 3)
    bare = both.server.database(extension=False)
    role = f"reader_{both.database}"
    both.sql(f"create role {role} login")
    url = both.server.url("items", both.database).replace("postgres@", f"{role}@")
    with pytest.raises(FatalStoreError, match=r"permission denied.*GRANT"):
        list(vf.connect(url).scan())
    with pytest.raises(FatalStoreError, match=r"CREATE EXTENSION vector"):
        vf.connect(both.server.url("t", bare).replace("postgres@", f"{role}@")).write(good(1))
    assert vf.connect(both.server.url("t", bare)).write(good(1)) == 1, "made where that is allowed"
    both.sql(f"grant select on items to {role}")
    reader = vf.connect(url)
    assert reader.count() == 3
    with pytest.raises(FatalStoreError, match="permission denied"):
        reader.store.write(RecordBatch.from_records([VectorRecord(id=1, text="x", vector=[0.0] * 64)]))
    reader.close()


def test_unknown_places_are_named(db: Any) -> None:
    with pytest.raises(NotFoundError, match="no table nothing"):
        db.connect("nothing").describe()
    with pytest.raises(NotFoundError, match="does not exist"):
        vf.connect(db.server.url("t", "no_such_database")).describe()
    with pytest.raises(NotFoundError, match="prepare"):
        db.store("nothing").write(RecordBatch.from_records(good(1)))
    with pytest.raises(RetryableError, match="reachable"):
        vf.connect("pgvector://postgres@127.0.0.1:9/db#t").describe()
    with pytest.raises(ConfigurationError, match="names no table"):
        vf.connect("pgvector://localhost/db")
    with pytest.raises(ConfigurationError, match="no option 'colour'"):
        vf.connect("pgvector://localhost/db?colour=red#t")
    with pytest.raises(ConfigurationError, match="choose one of"):
        vf.connect("pgvector://localhost/db?index=btree#t")


@pytest.fixture
def guarded(postgres: Any) -> Any:
    """A server that asks for passwords over TCP; the role ``guest`` has one."""
    name = postgres.database()
    hba = postgres.folder / "data" / "pg_hba.conf"
    before = hba.read_text()
    with postgres.connect(name) as connection:
        connection.execute("drop role if exists guest")
        connection.execute("create role guest login superuser password 's3cret/%'")
        hba.write_text("host all guest 127.0.0.1/32 scram-sha-256\n" + before)
        connection.execute("select pg_reload_conf()")
        yield f"127.0.0.1:{postgres.port}/{name}"
        hba.write_text(before)
        connection.execute("select pg_reload_conf()")


def test_passwords_come_from_everywhere_and_show_nowhere(
    guarded: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    plain = f"pgvector://guest@{guarded}#items"
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "absent"))
    with pytest.raises(FatalStoreError, match="PGPASSWORD"):
        vf.connect(plain).store.exists()
    collection = vf.connect(f"pgvector://guest:s3cret%2F%25@{guarded}#items")
    assert not collection.store.exists()
    shown = " ".join(
        [repr(collection), str(collection.url), repr(collection.store), repr(collection.store._server)]
    )
    assert "s3cret" not in shown and "guest" in shown
    monkeypatch.setenv("PGPASSWORD", "s3cret/%")
    assert not vf.connect(plain).store.exists()
    monkeypatch.setenv("PGPASSWORD", "wr0ng-one")
    with pytest.raises(FatalStoreError) as caught:
        vf.connect(plain).store.exists()
    assert "wr0ng" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.delenv("PGPASSWORD")
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:guest:s3cret/%\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    assert not vf.connect(plain).store.exists()
    wrong = vf.connect(f"pgvector://guest:s3cret-typo@{guarded}#items").store
    with pytest.raises(FatalStoreError) as caught:
        wrong.exists()
    assert "s3cret-typo" not in "".join(traceback.format_exception(caught.value))


def test_an_engine_of_another_driver_lends_its_address(guarded: str) -> None:
    address, database = guarded.split("/")
    url = sa.URL.create(
        "postgresql+psycopg2", "guest", "s3cret/%", "127.0.0.1", int(address.split(":")[1]), database
    )
    engine = sa.create_engine(url)
    from vecferry.stores.pgvector import PgVectorStore

    store = PgVectorStore(engine, "items")
    assert not store.exists()
    assert "s3cret" not in repr(store) + store.url
    store.close()


# -- what is there already ----------------------------------------------------------------------------


def test_the_space_is_recorded_with_the_words_of_people(both: Any) -> None:
    both.sql("create table items (id int primary key, embedding vector(2))")
    both.sql("comment on table items is 'Owned by search. vecferry: no'")
    space = EmbeddingSpace(model="m-1", dim=2)
    schema = CollectionSchema(fields=(VectorField(dim=2, space=space, metric="l2"),), id_type="int")
    store = both.store()
    store.prepare(schema, WriteMode.UPSERT)
    store.write(RecordBatch.from_records([VectorRecord(id=1, vector=[1, 2])]))
    store.finish()
    both.sql("alter table items rename to moved")
    field = both.connect("moved").describe().fields[0]
    assert (field.space, field.metric) == (space, "l2")
    assert both.sql("select obj_description('moved'::regclass)")[0][0].startswith(
        "Owned by search. vecferry: no\n"
    )
    assert both.sql("select count(*) from pg_indexes where tablename = 'moved'") == [(1,)], (
        "no index unasked"
    )


def test_create_takes_an_empty_table_and_refuses_a_full_one(db: Any) -> None:
    db.sql("create table items (id bigint primary key, embedding vector(2), text text)")
    store = db.store()
    store.prepare(SCHEMA, WriteMode.CREATE)
    store.write(RecordBatch(np.arange(3), {"": DenseColumn(np.ones((3, 2), np.float32))}))
    with pytest.raises(TargetExistsError, match="mode="):
        db.store().prepare(SCHEMA, WriteMode.CREATE)
    store.prepare(SCHEMA, WriteMode.RESUME)
    store.write(RecordBatch(np.arange(5), {"": DenseColumn(np.ones((5, 2), np.float32))}))
    assert store.count() == 5


def test_every_error_is_ours(db: Any) -> None:
    store = prepared(db)
    with pytest.raises(VecferryError):
        list(store.scan(where="no such syntax"))
    with pytest.raises(VecferryError):
        store.search([1.0, 2.0], where="nope = 1")
    with pytest.raises(SchemaMismatchError):
        store.search([float("nan"), 1.0])
    with pytest.raises(SchemaMismatchError, match="no vector field"):
        store.search([1.0, 2.0], field="other")


def test_str_of_a_url_round_trips_the_table() -> None:
    url = StoreURL.parse('pgvector://u@h/db#"A b"."c.d"')
    from vecferry.stores.pgvector.server import TableName

    assert str(TableName.parse(url.fragment)) == 'A b."c.d"'
    for text in ("", "a.b.c", 'a"b', "x" * 64):
        with pytest.raises(ConfigurationError):
            TableName.parse(text)


def test_raw_psycopg_sees_no_leftovers(db: Any) -> None:
    store = prepared(db)
    store.write(RecordBatch.from_records(good(1)))
    store.prepare(SCHEMA, WriteMode.UPSERT)
    store.write(RecordBatch.from_records(good(1)))
    store.close()
    with psycopg.connect(db.server.dsn(db.database)) as connection:
        query = "select relname from pg_class where relname like 'vecferry%' and relkind = 'r'"
        assert connection.execute(query).fetchall() == []


def test_the_application_goes_on_inserting_behind_what_was_written(db: Any) -> None:
    db.sql("create table items (id serial primary key, text text, embedding vector(2))")
    role = f"app_{db.database}"
    db.sql(f"create role {role} login")
    db.sql(f"grant select, insert, update on items to {role}")
    db.sql(f"grant usage, update, select on sequence items_id_seq to {role}")
    url = db.server.url("items", db.database).replace("postgres@", f"{role}@")
    with vf.connect(url) as collection:
        collection.write(good(1, 2, 41), schema=SCHEMA)
    assert db.sql("insert into items (text) values ('own') returning id") == [(42,)]
    spaced = (VectorField(dim=2, space=EmbeddingSpace(model="m", dim=2)),)
    with vf.connect(url) as collection, pytest.raises(FatalStoreError, match="owner"):
        collection.store.prepare(SCHEMA.model_copy(update={"fields": spaced}), WriteMode.UPSERT)


def test_capabilities_announce_what_a_target_would_round_or_refuse(db: Any) -> None:
    assert DType.FLOAT32 in db.store().capabilities().dtypes
    assert DType.FLOAT32 not in db.store("items", dtype="float16").capabilities().dtypes
    db.sql("create table halves (id int primary key, embedding halfvec(2))")
    assert DType.FLOAT32 not in db.store("halves").capabilities().dtypes
    assert not db.store("kb", layout="llamaindex").capabilities().several_fields
    assert not db.store("kb", layout="langchain-v2").capabilities().missing_vectors
