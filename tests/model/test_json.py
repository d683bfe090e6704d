"""The JSON door, and metadata that stays bytes."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.test_records import all_of, documents, typed
from vecferry.errors import RejectedRecord
from vecferry.model import JsonColumn, RecordBatch, dump_json, parse_json, to_json
from vecferry.model.json_column import Unkeepable
from vecferry.model.typed import is_plain

BIG = 12345678901234567890123
any_text = st.text(max_size=6)  # halves of surrogate pairs, too
json_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1e15, 1e16, 123456789012345678.0, 5e-324, 1.7976931348623157e308])
    | any_text
)
json_values = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(any_text, json_values, max_size=4)


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_json_is_read_exactly(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=1), json.dumps([{"deep": [value]}])):
        due = json.loads(text)
        assert typed(parse_json(text)) == typed(due)
        assert typed(parse_json(text.encode())) == typed(due)
    assert typed(parse_json(dump_json(value))) == typed(json.loads(json.dumps(value)))


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ('{"order_ids":[12345678901234567890123]}', {"order_ids": [BIG]}),
        ('{"a": {"b": [[-12345678901234567890123]]}}', {"a": {"b": [[-BIG]]}}),
        ("12345678901234567890123", BIG),
        ("[0.10000000000000000555]", [Decimal("0.10000000000000000555")]),
        ("[123456789.1234567891]", [Decimal("123456789.1234567891")]),
        ("[1e400, 1e-400]", [Decimal("1e400"), Decimal("1e-400")]),
        (f"[0.10000000000000001, 0.1, 1e22, 1.50, {BIG}]", [0.1, 0.1, 1e22, 1.5, BIG]),
    ],
)
def test_digits_that_no_float_holds_are_kept(text: str, due: Any) -> None:
    assert typed(parse_json(text)) == typed(due)


def test_a_vector_is_floats_whatever_its_digits() -> None:
    line = '{"id":1,"vector":[0.012345678901234567891],"metadata":{"n":12345678901234567890123}}'
    assert parse_json(line, vector="vector") == {
        "id": 1,
        "vector": [Decimal("0.012345678901234567891")],
        "metadata": {"n": BIG},
    }, "a number elsewhere makes the whole line exact"
    line = line.replace(str(BIG), "1")
    assert type(parse_json(line, vector="vector")["vector"][0]) is float
    assert parse_json('{"a": 1}', vector="vector") == {"a": 1}


@settings(max_examples=150, deadline=None)
@given(st.lists(documents | objects, max_size=5))
def test_a_json_column_is_what_to_json_gives(rows: list[dict[str, Any]]) -> None:
    column = JsonColumn.of(rows)
    assert [typed(row) for row in column] == [typed(row) for row in rows]
    for i, row in enumerate(rows):
        body, types = to_json(row)
        assert column.raw(i) == dump_json(body) and column.types(i) == types
        assert b"\n" not in column.raw(i)
        assert is_plain(row) is (not types) or not row
        assert typed(column[i]) == typed(row)


@settings(max_examples=150, deadline=None)
@given(st.lists(objects, max_size=5))
def test_json_from_elsewhere_becomes_the_same_column(rows: list[dict[str, Any]]) -> None:
    due = JsonColumn.of(rows)
    for form in ({}, {"indent": 1}, {"separators": (",", ":")}):
        parsed = JsonColumn.parse([json.dumps(row, **form) for row in rows])
        assert (parsed.rows(), parsed.typed) == (due.rows(), due.typed)
    parsed = JsonColumn.of_parsed([parse_json(json.dumps(row)) for row in rows])
    assert (parsed.rows(), parsed.typed) == (due.rows(), due.typed)


@settings(max_examples=60, deadline=None)
@given(st.lists(documents, min_size=1, max_size=6), st.data())
def test_rows_of_a_json_column(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    column = JsonColumn.of(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    assert [typed(d) for d in column.take(chosen)] == [typed(rows[i]) for i in chosen]
    cut = data.draw(st.integers(0, len(rows)))
    joined = JsonColumn.concat([column[:cut], column[cut:]])
    assert joined == column == rows and [typed(d) for d in joined] == [typed(d) for d in rows]
    assert [typed(d) for d in pickle.loads(pickle.dumps(column))] == [typed(d) for d in rows]
    assert typed(column[-1]) == typed(rows[-1])


def test_what_is_handed_out_belongs_to_the_caller() -> None:
    column = JsonColumn.of([{"a": [1]}])
    column[0]["a"].append(2)
    next(iter(column))["a"].append(2)
    assert column[0] == {"a": [1]}


@settings(max_examples=40, deadline=None)
@given(st.lists(documents, min_size=1, max_size=5))
def test_a_batch_of_bytes_is_a_batch(rows: list[dict[str, Any]]) -> None:
    plain = RecordBatch(ids=list(range(len(rows))), metadata=rows)
    bytes_ = plain.replace(metadata=JsonColumn.of(rows))
    assert all_of(bytes_) == all_of(plain)
    assert all_of(bytes_.take([0, 0])) == all_of(plain.take([0, 0]))
    assert isinstance(bytes_.take([0]).metadata, JsonColumn)
    both = RecordBatch.concat([bytes_, bytes_])
    assert isinstance(both.metadata, JsonColumn) and all_of(both) == all_of(plain) * 2
    assert all_of(RecordBatch.concat([plain, bytes_])) == all_of(plain) * 2
    back = RecordBatch.from_arrow(bytes_.to_arrow())
    assert isinstance(back.metadata, JsonColumn) and all_of(back) == all_of(plain)
    assert bytes_.to_arrow().equals(plain.to_arrow())
    assert back.json_metadata is back.metadata


def test_what_cannot_be_kept_is_named() -> None:
    batch = RecordBatch(ids=[7, 8], metadata=[{}, {"a": [object()]}])
    with pytest.raises(RejectedRecord, match=r"metadata of 8 .* /a/0 is a object") as caught:
        _ = batch.json_metadata
    assert list(caught.value.ids) == [8]
    with pytest.raises(Unkeepable, match="list") as bad:
        JsonColumn.parse(['{"a":1}', "[1]"])
    assert bad.value.row == 1
    with pytest.raises(Unkeepable, match="not JSON"):
        JsonColumn.parse(["{'a':1}"])


def test_a_document_of_the_file_that_somebody_changed() -> None:
    """Own tables may be edited with other tools, which write numbers as they like."""
    arrow = RecordBatch(ids=[1, 2], metadata=[{"a": 1}, {"d": Decimal("1.5")}]).to_arrow()
    changed = [f'{{"a": {BIG}, "b": -0.0, "c": NaN}}', arrow.column("metadata")[1].as_py()]
    columns = dict(zip(arrow.schema.names, arrow.columns, strict=True)) | {"metadata": pa.array(changed)}
    arrow = pa.RecordBatch.from_arrays(list(columns.values()), schema=arrow.schema)
    first, second = RecordBatch.from_arrow(arrow).metadata_list
    assert first["a"] == BIG and math.copysign(1, first["b"]) < 0 and math.isnan(first["c"])
    assert second == {"d": Decimal("1.5")}
    assert orjson.loads(arrow.column("metadata")[1].as_py()) == {"d": "1.5"}


def test_arrow_without_pandas() -> None:
    """pyarrow imports pandas, where it is installed, to look at lists: two seconds that no batch needs."""
    code = """
import sys, uuid
import numpy as np
from vecferry.model import DenseColumn, RecordBatch
vectors = DenseColumn(np.ones((2, 2), np.float32), np.array([True, False]))
for ids in ([1, 2], ["a", "b"], [1, "b"], [uuid.UUID(int=1), uuid.UUID(int=2)]):
    batch = RecordBatch(ids=ids, texts=["x", None], metadata=[{}, {"b": {1, 2}}], vectors={"": vectors})
    back = RecordBatch.from_arrow(batch.to_arrow())
    assert back.ids == ids and back.texts == ["x", None] and back.metadata == batch.metadata
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
