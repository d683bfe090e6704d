"""Records, batches, ids and typed metadata, over many inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecferry.errors import ConfigurationError
from vecferry.model import (
    DType,
    IdColumn,
    Kind,
    RecordBatch,
    VectorRecord,
    check_where,
    decode_id,
    encode_id,
    from_json,
    id_key,
    matches,
    parse_where,
    schema_of,
    to_json,
    uuid_of,
)
from vecferry.ports import StoreURL

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalar_ids = st.integers() | texts | st.uuids()
ids = scalar_ids | st.lists(scalar_ids, min_size=1, max_size=3).map(tuple)
zones = st.none() | st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=8)
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.times()
    | st.datetimes(timezones=zones)
)
hashable = st.integers() | texts | st.uuids()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(texts, inner, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
    ),
    max_leaves=8,
)
documents = st.dictionaries(texts, values, max_size=4)


def typed(value: Any) -> Any:
    """A value with the types of all its parts, so that equality is strict."""
    if isinstance(value, Mapping):
        return ("dict", sorted(((typed(k), typed(v)) for k, v in value.items()), key=repr))
    if isinstance(value, set | frozenset):
        return ("set", sorted((typed(item) for item in value), key=repr))
    if isinstance(value, list | tuple):
        return (type(value).__name__, [typed(item) for item in value])
    shown = value.utcoffset() if isinstance(value, datetime) else None
    return (type(value).__name__, repr(value) if isinstance(value, float) else value, shown)


# -- ids --------------------------------------------------------------------------------------


@given(ids)
def test_an_encoded_id_comes_back(id_: Any) -> None:
    back = decode_id(encode_id(id_))
    assert typed(back) == typed(id_)


@given(ids, ids)
def test_different_ids_never_meet(a: Any, b: Any) -> None:
    same = typed(a) == typed(b)
    assert (encode_id(a) == encode_id(b)) is same
    assert (id_key(a) == id_key(b)) is same
    if not (isinstance(a, UUID) or isinstance(b, UUID)):
        assert (uuid_of(a) == uuid_of(b)) is same


def test_the_fixed_points_of_ids() -> None:
    """Changing one of these would change the ids of every migrated collection."""
    assert str(uuid_of(7)) != str(uuid_of("7")) != str(uuid_of("007"))
    assert encode_id(7) == "i:7" and encode_id("7") == "s:7" and encode_id((7, "a")) == 't:["i:7", "s:a"]'
    assert uuid_of(UUID(int=5)) == UUID(int=5)
    assert len({uuid_of(i) for i in (7, "7", "007", (7,), ("7",))}) == 5


@given(st.lists(ids, max_size=20))
def test_an_id_column_keeps_types(column: list[Any]) -> None:
    back = IdColumn(column).tolist()
    assert [typed(i) for i in back] == [typed(i) for i in column]


@pytest.mark.parametrize("bad", [None, True, 1.5, b"x", [], {}])
def test_what_is_no_id(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        VectorRecord(id=bad)


# -- metadata ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(documents)
def test_metadata_comes_back_with_its_types(document: dict[str, Any]) -> None:
    plain, types = to_json(document)
    over_the_wire = orjson.loads(orjson.dumps(plain))
    assert typed(from_json(over_the_wire, types)) == typed(document)
    assert json.loads(json.dumps(plain)) == plain, "pure JSON"


@given(documents)
def test_from_json_leaves_its_input_alone(document: dict[str, Any]) -> None:
    plain, types = to_json(document)
    before = json.dumps(plain)
    from_json(plain, types)
    assert json.dumps(plain) == before


def test_special_floats_come_back() -> None:
    plain, types = to_json({"a": float("nan"), "b": float("-inf"), "c": -0.0})
    back = from_json(orjson.loads(orjson.dumps(plain)), types)
    assert back["a"] != back["a"] and back["b"] == float("-inf") and str(back["c"]) == "-0.0"


def test_pointers_that_lead_nowhere_are_passed_over() -> None:
    assert from_json({"a": 1}, {"/b/c": "uuid", "/a/0": "date", "/a": "nonsense"}) == {"a": 1}


# -- batches ----------------------------------------------------------------------------------


@st.composite
def records(draw: st.DrawFn) -> list[VectorRecord]:
    """Records with every kind of field, each of them missing here and there."""
    count = draw(st.integers(1, 8))
    chosen = draw(st.lists(ids, min_size=count, max_size=count, unique_by=encode_id))
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    made = []
    for id_ in chosen:
        vectors: dict[str, Any] = {}
        if draw(st.booleans()):
            vectors[""] = draw(hnp.arrays(np.float32, 3, elements=floats))
        if draw(st.booleans()):
            vectors["half"] = draw(hnp.arrays(np.float16, 2, elements=st.floats(-9, 9, width=16)))
        if draw(st.booleans()):
            vectors["byte"] = draw(hnp.arrays(np.int8, 2))
        if draw(st.booleans()):
            vectors["late"] = draw(hnp.arrays(np.float32, (draw(st.integers(1, 3)), 2), elements=floats))
        sparse = {}
        if draw(st.booleans()):
            sparse["words"] = draw(st.dictionaries(st.integers(0, 2**32 - 1), floats, max_size=3))
        text = draw(st.none() | texts)
        record = VectorRecord(
            id=id_, text=text, vectors=vectors, sparse_vectors=sparse, metadata=draw(documents)
        )
        made.append(record)
    return made


def strict(record: VectorRecord) -> Any:
    return (
        typed(record.id),
        record.text,
        typed(record.metadata),
        {n: (v.dtype.str, v.shape, v.tobytes()) for n, v in record.vectors.items()},
        {n: (v.indices.tolist(), v.values.tobytes()) for n, v in record.sparse_vectors.items()},
    )


def all_of(batch: RecordBatch) -> list[Any]:
    return [strict(record) for record in batch.records()]


@settings(max_examples=40, deadline=None)
@given(records())
def test_records_pass_through_a_batch(rows: list[VectorRecord]) -> None:
    assert all_of(RecordBatch.from_records(rows)) == [strict(row) for row in rows]


@settings(max_examples=60, deadline=None)
@given(records(), st.integers(0, 3))
def test_records_pass_through_arrow(rows: list[VectorRecord], start: int) -> None:
    batch = RecordBatch.from_records(rows)
    arrow = batch.to_arrow()
    assert all_of(RecordBatch.from_arrow(arrow)) == [strict(row) for row in rows]
    sliced = RecordBatch.from_arrow(arrow.slice(start))
    assert all_of(sliced) == [strict(row) for row in rows[start:]], "offsets count"
    table = pa.Table.from_batches([arrow, arrow.slice(start)])
    assert all_of(RecordBatch.from_arrow(table)) == [strict(row) for row in [*rows, *rows[start:]]]


@settings(max_examples=40, deadline=None)
@given(records(), st.data())
def test_taking_rows_is_taking_records(rows: list[VectorRecord], data: st.DataObject) -> None:
    batch = RecordBatch.from_records(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    assert all_of(batch.take(chosen)) == [strict(rows[i]) for i in chosen]
    size = data.draw(st.integers(1, 9))
    pieces = list(batch.split(size))
    assert all(len(piece) <= size for piece in pieces)
    assert all_of(RecordBatch.concat(pieces)) == [strict(row) for row in rows]


@settings(max_examples=30, deadline=None)
@given(records(), records())
def test_joined_batches_hold_both(a: list[VectorRecord], b: list[VectorRecord]) -> None:
    joined = RecordBatch.concat([RecordBatch.from_records(a), RecordBatch.from_records(b)])
    assert all_of(joined) == [strict(row) for row in [*a, *b]]


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="texts"):
        RecordBatch(ids=[1, 2], texts=["a"])
    with pytest.raises(ValueError, match=r"row 1 has 3 components where 2 are due"):
        RecordBatch.from_records([VectorRecord(id=1, vector=[1, 2]), VectorRecord(id=2, vector=[1, 2, 3])])


def test_a_schema_tells_what_a_batch_holds() -> None:
    batch = RecordBatch.from_records(
        [
            VectorRecord(
                id=1,
                vectors={"a": np.zeros(2, np.float16), "m": np.zeros((3, 4))},
                sparse_vectors={"s": {1: 1.0}},
            )
        ]
    )
    found = {f.name: (f.kind, f.dim, f.dtype) for f in schema_of(batch).fields}
    assert found == {
        "a": (Kind.DENSE, 2, DType.FLOAT16),
        "m": (Kind.MULTI, 4, DType.FLOAT32),
        "s": (Kind.SPARSE, None, DType.FLOAT32),
    }


def test_rows_with_nan_are_found() -> None:
    rows = [VectorRecord(id=i, vector=[1.0, np.nan if i == 2 else 0.0]) for i in range(4)]
    rows.append(VectorRecord(id=9, vectors={"": [1, 1], "m": [[1.0], [np.inf]]}))
    assert RecordBatch.from_records(rows).non_finite() == [2, 4]


# -- filters ----------------------------------------------------------------------------------


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_operators_mean_what_python_means(value: int, bound: int) -> None:
    expected = {
        "$eq": value == bound,
        "$ne": value != bound,
        "$gt": value > bound,
        "$gte": value >= bound,
        "$lt": value < bound,
        "$lte": value <= bound,
        "$in": value in (bound, 3),
        "$nin": value not in (bound, 3),
    }
    for name, answer in expected.items():
        operand = [bound, 3] if name in ("$in", "$nin") else bound
        assert matches({"a": {name: operand}}, {"a": value}) is answer
        assert matches({"$not": {"a": {name: operand}}}, {"a": value}) is not answer


def test_filters_reach_into_lists_and_objects() -> None:
    document = {"tags": ["x", "y"], "deep": {"a": {"b": 2}}, "flag": True, "n": None}
    assert matches({"tags": "x", "deep.a.b": {"$gt": 1}, "gone": {"$exists": False}}, document)
    assert not matches({"flag": 1}, document), "True is not 1"
    assert not matches({"deep.a.c": 1}, document) and not matches({"tags": {"$gt": 3}}, document)
    assert matches({"$or": [{"flag": False}, {"n": None}]}, document)


@pytest.mark.parametrize("bad", [{"a": {"$near": 1}}, {"$xor": []}, {"$and": {}}, {"a": {}}, "a == 1", 7])
def test_malformed_filters_are_named(bad: Any) -> None:
    with pytest.raises(ConfigurationError):
        check_where(bad)


@pytest.mark.parametrize(
    ("text", "document", "answer"),
    [
        ("lang == 'en' and page >= 3", {"lang": "en", "page": 3}, True),
        ("lang == 'en' and page >= 3", {"lang": "en", "page": 2}, False),
        ("not (a in [1, 2]) or b.c == 'x'", {"a": 1, "b": {"c": "x"}}, True),
        ("'odd key' == -1", {"odd key": -1}, True),
        ("a not in ('x', 'y')", {"a": "z"}, True),
    ],
)
def test_expressions(text: str, document: dict[str, Any], answer: bool) -> None:
    assert matches(check_where(parse_where(text)), document) is answer


@pytest.mark.parametrize(
    "text", ["__import__('os')", "a == b", "a", "1 < a < 3", "a == f'{x}'", "a ==", ""]
)
def test_expressions_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="filter"):
        parse_where(text)


# -- urls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("faiss:./kb", ("faiss", "./kb", None, "")),
        ("parquet:/a b/c%3Fd.parquet?id=x#y", ("parquet", "/a b/c?d.parquet", None, "y")),
        ("qdrant://h:6333/questions", ("qdrant", "questions", "h", "")),
        ("pgvector://u:p%40w@[::1]:5432/app#t", ("pgvector", "app", "::1", "t")),
        ("jsonl:C:/x.jsonl", ("jsonl", "C:/x.jsonl", None, "")),
    ],
)
def test_urls(text: str, parts: tuple[Any, ...]) -> None:
    url = StoreURL.parse(text)
    assert (url.scheme, url.path, url.host, url.fragment) == parts


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert StoreURL.parse("parquet:~/a").path == "/home/ann/a"
    assert str(StoreURL.parse("faiss:~/kb#x")) == "faiss:/home/ann/kb#x"
    assert StoreURL.parse("faiss:./~/kb").path == "./~/kb"


@given(st.text("abcXYZ0189", min_size=8, max_size=20))
def test_a_secret_is_never_shown(secret: str) -> None:
    url = StoreURL.parse(f"qdrant://user:q{secret}@host:1/c?api_key=q{secret}&timeout=3")
    assert f"q{secret}" not in str(url) + repr(url) and "timeout=3" in str(url)
    assert url.password == f"q{secret}" == url.options["api_key"]


@pytest.mark.parametrize("bad", ["", "kb", "./kb", "qdrant://h:port/c", "://x"])
def test_malformed_urls_are_named(bad: str) -> None:
    with pytest.raises(ConfigurationError):
        StoreURL.parse(bad)


def test_the_value_of_a_text_enumeration_is_kept() -> None:
    class Colour(str, Enum):  # noqa: UP042 - StrEnum gives its value anyway
        RED = "red"

    assert to_json({"c": Colour.RED, "l": [Colour.RED]}) == ({"c": "red", "l": ["red"]}, {})
