"""The id column: one key for an id, in whatever form its column is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vecferry as vf
from model.test_records import ids, typed
from vecferry.model import IdColumn, RecordBatch, encode_id, id_key, keys_of

columns = st.lists(ids, max_size=12) | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=12)


def fixed(key: Any) -> bytes:
    """A key of an array with the trailing zeros that numpy takes away."""
    return bytes(key).ljust(16, b"\0")


@settings(max_examples=100, deadline=None)
@given(columns, st.data())
def test_keys_do_not_depend_on_the_form_of_the_column(values: list[Any], data: st.DataObject) -> None:
    due = [id_key(value) for value in values]
    column = IdColumn(values)
    assert [fixed(key) for key in column.keys] == due
    assert column.encoded() == [encode_id(value) for value in values]
    beside = IdColumn([*values, "a text makes it a list"])
    assert beside.ints is None and [fixed(key) for key in beside.keys[:-1]] == due
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=6)) if values else []
    fresh, warm = IdColumn(values).take(rows), column.take(rows)
    assert [typed(i) for i in fresh] == [typed(values[i]) for i in rows]
    assert np.array_equal(fresh.keys, warm.keys) and fresh == warm
    assert [fixed(key) for key in IdColumn.concat([column, warm]).keys] == due + [due[i] for i in rows]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, -5], "int"),
        (np.array([1, 2], np.uint8), "int"),
        (np.array([2**63], np.uint64), "mixed"),
        ([2**63], "mixed"),
        (["a", ""], "str"),
        ([UUID(int=1)], "uuid"),
        ([1, "1"], "mixed"),
        ([(1, "a")], "mixed"),
        ([], "mixed"),
    ],
)
def test_kinds(values: Any, kind: str) -> None:
    column = IdColumn(values)
    assert column.kind == kind
    due = values.tolist() if isinstance(values, np.ndarray) else values
    assert [typed(i) for i in column] == [typed(i) for i in due]
    assert (column.ints is not None) is (kind == "int")


def test_an_array_and_a_list_are_one_column() -> None:
    array, listed = RecordBatch(ids=np.arange(3)), RecordBatch(ids=[0, 1, 2])
    assert array.ids == listed.ids == [0, 1, 2] and array.ids != IdColumn(["0", "1", "2"])
    assert type(array.ids[1]) is int and array.ids[1:] == [1, 2] and list(array.ids) == [0, 1, 2]
    assert keys_of(array.ids) is keys_of(array.ids), "computed once"
    assert np.asarray(IdColumn(["a", (1, 2)])).tolist() == ["a", (1, 2)]
    with pytest.raises(TypeError):
        IdColumn.checked([1, None])
    assert IdColumn.checked([np.int32(1), 2]) == [1, 2]


def test_an_id_that_comes_again_in_another_form_is_found(tmp_path: Path) -> None:
    """One text id turns a batch of integers into a list: the repeated 42 stands in both forms."""
    path = tmp_path / "rows.jsonl"
    rows = [{"id": i, "text": f"t{i}", "vector": [float(i), 1.0]} for i in range(9000)]
    rows[8500]["id"], rows[8700]["id"] = "a text", 42
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(vf.VecferryError, match="42"):
        vf.migrate(f"jsonl:{path}", f"parquet:{tmp_path}/out.parquet")
