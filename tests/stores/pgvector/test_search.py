"""Scores, filters and indexes; the portable filter means the same here as in Python."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vecferry.model import (
    CollectionSchema,
    DType,
    Metric,
    RecordBatch,
    VectorField,
    VectorRecord,
    matches,
)
from vecferry.model.metrics import scores
from vecferry.ports import Progress, WriteMode

RNG = np.random.default_rng(3)


def load(store: Any, field: VectorField, vectors: Any, **schema: Any) -> Any:
    store.prepare(CollectionSchema(fields=(field,), id_type="int", **schema), WriteMode.CREATE)
    rows = [VectorRecord(id=i, vector=v, metadata={"even": i % 2 == 0}) for i, v in enumerate(vectors)]
    store.write(RecordBatch.from_records(rows))
    store.finish()
    return store


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2, Metric.IP, Metric.L1])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16])
def test_scores_are_those_of_the_metric(db: Any, metric: Metric, dtype: DType) -> None:
    vectors = RNG.standard_normal((40, 8)).astype(dtype.numpy)
    store = load(db.store(), VectorField(dim=8, metric=metric, dtype=dtype), vectors)
    query = RNG.standard_normal(8).astype(np.float32)
    hits = store.search(query, 40, ef_search=200)
    want = scores(metric, query.astype(dtype.numpy), vectors)
    assert [hit.id for hit in hits] == np.argsort(-want, kind="stable").tolist()
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(want)[::-1], atol=2e-3 if dtype is DType.FLOAT16 else 1e-5
    )
    (definition,) = db.sql("select indexdef from pg_indexes where indexdef like '%hnsw%'")[0]
    ops = {"cosine": "cosine_ops", "l2": "l2_ops", "ip": "ip_ops", "l1": "l1_ops"}[metric]
    assert ("halfvec_" if dtype is DType.FLOAT16 else "vector_") + ops in definition


@pytest.mark.parametrize("metric", [Metric.HAMMING, Metric.JACCARD])
def test_bits(db: Any, metric: Metric) -> None:
    vectors = RNG.integers(0, 256, (30, 3)).astype(np.uint8)
    vectors[:, 2] &= 0b11110000
    store = load(db.store(), VectorField(dim=20, dtype=DType.BIT, metric=metric), vectors)
    hits = store.search(vectors[3], 30, ef_search=200)
    np.testing.assert_allclose(
        [h.score for h in hits], np.sort(scores(metric, vectors[3], vectors))[::-1], atol=1e-6
    )
    back = {r.id: r.vector.tolist() for b in store.scan() for r in b.records()}
    assert back == {i: v.tolist() for i, v in enumerate(vectors)}


def test_a_zero_vector_scores_zero(db: Any) -> None:
    store = load(db.store(index="none"), VectorField(dim=2), [[0, 0], [1, 0]])
    assert [(h.id, h.score) for h in store.search([1.0, 0.0], 2)] == [(1, 1.0), (0, 0.0)]


def test_more_than_2000_dimensions_are_indexed_as_halfvec_and_ranked_exactly(both: Any) -> None:
    vectors = RNG.standard_normal((60, 2100)).astype(np.float32)
    store = load(both.store(), VectorField(dim=2100), vectors)
    (definition,) = both.sql("select indexdef from pg_indexes where indexdef like '%hnsw%'")[0]
    assert "(((embedding)::halfvec(2100)) halfvec_cosine_ops)" in definition
    assert store.describe().fields[0].index["hnsw_m"] == 16
    hits = store.search(vectors[7], 5)
    assert hits[0].id == 7 and hits[0].score == pytest.approx(1, abs=1e-6)
    assert next(store.scan()).vectors[""].values.dtype == np.float32


def test_filters_keep_looking_with_an_iterative_scan(both: Any) -> None:
    vectors = RNG.standard_normal((3000, 4)).astype(np.float32)
    store = load(both.store(m=4, ef_construction=16), VectorField(dim=4), vectors)
    both.sql("set enable_seqscan = off")
    rare = {"$or": [{"even": False}, {"even": True}]}
    hits = store.search(vectors[0], 100, where=rare, ef_search=20, iterative_scan="strict_order")
    assert len(hits) == 100
    options = both.sql(
        "select reloptions from pg_class where relname = (select "
        "indexname from pg_indexes where indexdef like '%hnsw%')"
    )
    assert options == [(["m=4", "ef_construction=16"],)]


def test_ivfflat_and_progress(both: Any) -> None:
    vectors = RNG.standard_normal((20_000, 32)).astype(np.float32)
    told: list[Progress] = []
    store = both.store(index="ivfflat", lists=50, on_progress=told.append)
    load(store, VectorField(dim=32, metric="l2"), vectors)
    store.finish()
    assert both.sql("select count(*) from pg_indexes where indexdef like '%%ivfflat%%lists=''50''%%'") == [
        (1,)
    ]
    assert store.describe().fields[0].index["ivf_lists"] == 50
    assert store.search(vectors[9], 1, probes=50)[0].id == 9
    assert all(p.stage == "finish" and "embedding" in p.message for p in told)


def test_an_index_is_added_to_a_living_table_only_when_asked_and_after_a_failure(db: Any) -> None:
    db.sql("create table items (id int primary key, embedding vector(2))")
    db.sql("insert into items select i, array[i, 1]::vector from generate_series(1, 50) i")
    db.store().finish()
    assert db.sql("select count(*) from pg_indexes where tablename = 'items'") == [(1,)]
    db.sql("create index broken on items using hnsw (embedding vector_l2_ops)")
    db.sql("update pg_index set indisvalid = false where indexrelid = 'broken'::regclass")
    store = db.store("items", index="hnsw")
    store.finish()
    store.finish()
    rows = db.sql(
        "select indexrelid::regclass::text, indisvalid from pg_index where "
        "indrelid = 'items'::regclass and not indisprimary"
    )
    assert len(rows) == 1 and rows[0][0] != "broken" and rows[0][1]


# -- filters ------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 3, 3.0, 2.5, -1, "", "a", "b", "3", "Ä", 'quo"te', "back\\slash"),
    *(
        [1, "a"],
        [],
        [3],
        {"x": 1},
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1),
        date(2026, 1, 1),
    ),
    *(Decimal("2.50"), UUID(int=7), {"deep": {"er": 3}}, 2**70, 1e16, float("inf"), float("nan")),
]
DATA = [{"k": value} for value in VALUES] + [{}, {"a.b": 1}, {"a": {"b": 2}}, {"a": [{"b": 1}]}, {"K": 1}]

operands = st.sampled_from([v for v in VALUES if not isinstance(v, dict)])
scalars = st.sampled_from([v for v in VALUES if not isinstance(v, dict | list)])
comparisons = st.one_of(
    operands,
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$eq", "$ne"]), operands),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), scalars),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$in", "$nin"]), st.lists(operands, max_size=3)),
    st.builds(lambda v: {"$exists": v}, st.booleans()),
)
simple = st.builds(
    lambda key, c: {key: c}, st.sampled_from(["k", "a.b", "k.x", "k.deep.er", "none"]), comparisons
)
wheres = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, max_size=2)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, max_size=2)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def library(postgres: Any) -> Any:
    import vecferry as vf

    store = vf.connect(postgres.url("library")).store
    store.prepare(CollectionSchema(fields=(VectorField(dim=1),), id_type="int"), WriteMode.CREATE)
    store.write(
        RecordBatch.from_records([VectorRecord(id=i, vector=[1.0], metadata=d) for i, d in enumerate(DATA)])
    )
    yield store
    store.close()


@example({"k": {"$gt": Decimal("2.50")}})
@example({"k": {"$gte": 3}})
@example({"k": 2**70})
@example({"k": {"$lt": float("inf")}})
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=wheres)
def test_a_filter_means_what_it_means_in_python(library: Any, where: Any) -> None:
    got = {i for batch in library.scan(where=where) for i in batch.id_list}
    assert got == {i for i, data in enumerate(DATA) if matches(where, data)}


def test_filters_on_typed_columns(both: Any) -> None:
    both.sql(
        "create table items (id int primary key, embedding vector(1) default '[1]', n int, price numeric, "
        "at timestamptz, tags text[], ok bool, who text, meta jsonb)"
    )
    both.sql(
        "insert into items values (1, default, 5, 1.5, '2026-01-01', "
        "'{a,b}', true, 'ann', '{\"lang\": \"en\"}'), "
        "(2, default, null, null, null, null, null, null, null)"
    )
    collection = both.connect()

    def found(where: Any) -> list[int]:
        return [record.id for record in collection.records(where=where)]

    yes = [
        *(
            {"n": 5},
            {"n": {"$gte": 4.5}},
            {"price": Decimal("1.50")},
            {"tags": "a"},
            {"ok": True},
            {"who": "ann"},
        ),
        *(
            {"at": {"$gt": datetime(2025, 1, 1, tzinfo=UTC)}},
            {"lang": "en"},
            {"n": {"$in": [5, 6]}},
            {"tags": ["a", "b"]},
        ),
        *({"who": {"$gt": "Z"}}, {"n": {"$exists": True}}),
    ]
    for where in yes:
        assert found(where) == [1], where
        assert found({"$not": where}) == [2], where
    for where in (
        {"n": "5"},
        {"n": True},
        {"ok": 1},
        {"who": 5},
        {"at": datetime(2026, 1, 1)},
        {"tags": "c"},
        {"nope": 1},
    ):
        assert found(where) == [], where


def test_carried_payload_indexes_become_one_gin_index_that_serves_equality(db: Any) -> None:
    store = load(
        db.store(), VectorField(dim=2), RNG.standard_normal((500, 2)), payload_indexes={"even": "bool"}
    )
    db.sql("set enable_seqscan = off")
    plan = "\n".join(
        r[0] for r in db.sql("explain select id from items where metadata @? '$.\"even\" ? (@ == true)'")
    )
    assert "Bitmap Index Scan" in plan
    assert store.describe().payload_indexes == {"even": "bool"}
