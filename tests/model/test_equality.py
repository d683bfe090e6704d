"""One canonical form, whatever the cargo is made of; one rule for vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.test_records import documents, ids, typed
from vecferry.model import (
    DenseColumn,
    DType,
    JsonColumn,
    Kind,
    Metric,
    MultiColumn,
    RecordBatch,
    SparseColumn,
    SparseVector,
    VectorField,
)
from vecferry.model.canonical import canonical_rows, canonical_value, hash_rows, parse_canonical
from vecferry.model.equality import EXACT, Tolerance, compare_vectors, tolerance_of

any_text = st.none() | st.text(max_size=6)
rows = st.lists(st.tuples(ids, any_text, documents), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_bytes_and_dicts_have_one_canonical_form(found: list[tuple[Any, Any, Any]]) -> None:
    id_list, texts, metadata = (list(column) for column in zip(*found, strict=True))
    batch = RecordBatch(ids=id_list, texts=texts, metadata=metadata)
    forms = canonical_rows(batch)
    assert canonical_rows(batch.replace(metadata=JsonColumn.of(metadata))) == forms
    shuffled = [dict(reversed(list(document.items()))) for document in metadata]
    assert canonical_rows(batch.replace(metadata=JsonColumn.of(shuffled))) == forms
    assert hash_rows(forms).shape == (len(found), 4)
    for (_, text, _), form in zip(found, forms, strict=True):
        assert parse_canonical(form)[1] == text


@settings(max_examples=100, deadline=None)
@given(documents, documents)
def test_forms_are_equal_exactly_if_the_values_are(a: dict[str, Any], b: dict[str, Any]) -> None:
    one, other = (canonical_rows(RecordBatch(ids=[1], metadata=[document])) for document in (a, b))
    assert (one == other) is (typed(a) == typed(b))
    for left in a.values():
        for right in b.values():
            assert (canonical_value(left) == canonical_value(right)) is (typed(left) == typed(right))


def test_the_fixed_form() -> None:
    """Receipts rest on it: byte for byte the same in every version."""
    batch = RecordBatch(ids=[7, "ü"], texts=[None, "é"], metadata=[{"b": 1.5, "a": [True]}, {"x": -0.0}])
    assert canonical_rows(batch) == [
        b'["i:7",null,{"a":[true],"b":1.5},{}]',
        '["s:ü","é",{"x":"-0.0"},{"/x":"float"}]'.encode(),
    ]
    assert hash_rows([b""])[0].tobytes().hex() == "cae66941d9efbd404e4d88758ea67670"
    assert orjson.loads(canonical_rows(batch, text=False, metadata=False)[1]) == ["s:ü", None, {}, {}]


def test_a_sparse_pair_is_compared_row_by_row() -> None:
    a = SparseColumn.from_rows(
        [SparseVector([1, 2], [1, 2]), None, SparseVector([3], [1]), SparseVector([], [])]
    )
    b = SparseColumn.from_rows(
        [SparseVector([1, 2], [1, 3]), None, SparseVector([4], [1]), SparseVector([], [])]
    )
    found = compare_vectors(a, b, 4, EXACT)
    assert set(found.faults) == {0, 2} and "indices" in found.faults[2][0]
    assert compare_vectors(a, b, 4, Tolerance(absolute=1.0)).faults.keys() == {2}


def test_ragged_columns_share_their_rows() -> None:
    multi = MultiColumn.from_rows([[[1.0, 2.0]], None, [[3.0, 4.0], [5.0, 6.0]]])
    sparse = SparseColumn.from_rows([SparseVector([1], [1.0]), None, SparseVector([2, 3], [2.0, 3.0])])
    columns: tuple[Any, ...] = (multi, sparse)
    for column in columns:
        assert column.lengths.tolist() == [1, 0, 2]
        again = type(column).concat(
            [column.take(np.array([2, 1])), column.absent(2), column.take(np.array([0]))]
        )
        assert again.lengths.tolist() == [2, 0, 0, 0, 1] and again.present.tolist() == [
            True,
            False,
            False,
            False,
            True,
        ]
        assert compare_vectors(column, again.take(np.array([4, 1, 0])), 3, EXACT).faults == {}
    assert DenseColumn(np.ones((1, 2))).absent(1)[0] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_odd_numbers_are_found_in_ragged_rows(bad: float) -> None:
    multi = MultiColumn.from_rows([None, [[1.0, 2.0]], np.empty((0, 2)), [[3.0, 4.0], [bad, 6.0]]])
    sparse = SparseColumn.from_rows(
        [SparseVector([1], [bad]), None, SparseVector([], []), SparseVector([2], [1])]
    )
    batch = RecordBatch(ids=range(4), vectors={"m": multi}, sparse_vectors={"s": sparse})
    assert batch.non_finite() == [0, 3]


# -- the tolerance, held at its edges from both sides --------------------------------------------


def field(dtype: str = "float32", dim: int | None = 4, kind: str = "dense") -> VectorField:
    return VectorField(dim=dim, dtype=DType(dtype), kind=Kind(kind), metric=Metric.L2)


def faults(a: Any, b: Any, rule: Tolerance) -> dict[int, tuple[str, float | None]]:
    return compare_vectors(DenseColumn(np.atleast_2d(a)), DenseColumn(np.atleast_2d(b)), 1, rule).faults


def test_a_float16_may_be_one_rounding_away_and_no_more() -> None:
    rule = tolerance_of(field(), field("float16"))
    assert (rule.relative, rule.absolute) == (2.0**-11, 2.0**-25)
    x = np.array([1.0, -3.0, 0.1, 100.0], np.float32)
    for share, fine in ((0.99, True), (1.05, False), (100, False)):
        moved = (x.astype(np.float64) * (1 + share * 2.0**-11)).astype(np.float32)
        assert (not faults(x, moved, rule)) is fine, share
    rounded = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    assert not faults(rounded, rounded.astype(np.float16), rule)


def test_directions_may_differ_by_the_error_of_a_sum() -> None:
    rule = tolerance_of(field(dim=4), field(dim=4), normalizes=True)
    assert rule.relative == (4 + 8) * 2.0**-24 and rule.direction and not rule.lengths
    x = np.array([0.5, 0.5, 0.5, 0.5], np.float64)
    for share, fine in ((0.5, True), (4, False), (100, False)):
        y = x.copy()
        y[0] *= 1 + share * rule.relative
        assert (not faults(x, y, rule)) is fine, share


def test_lengths_count_where_they_are_kept() -> None:
    long, short = [3.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    kept = tolerance_of(field(), field(), normalizes=True, keeps_norms=True)
    gone = tolerance_of(field(), field(), normalizes=True)
    assert faults(np.array(long, np.float32), np.array(short, np.float32), kept)
    assert not faults(np.array(long, np.float32), np.array(short, np.float32), gone)
    assert faults(np.array(long, np.float32), np.array(short, np.float32), tolerance_of(field(), field()))


@pytest.mark.parametrize(("moved", "fine"), [(0.5, True), (0.51, False), (1.0, False)])
def test_an_integer_may_be_half_a_step_away(moved: float, fine: bool) -> None:
    rule = tolerance_of(field(), field("int8"))
    x = np.array([10.0, -3.0, 0.0, 7.0], np.float32)
    assert (not faults(x, x + np.float32(moved), rule)) is fine


def test_the_same_type_is_held_to_its_bits() -> None:
    assert tolerance_of(field(), field()) is EXACT
    x = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    assert faults(x, np.nextafter(x, np.float32(9)), EXACT)
    assert tolerance_of(field("int8"), field("int8")) is EXACT
