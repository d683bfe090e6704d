"""The same rows are the same records, as lines of JSON and as a table; one record as one JSON object."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

import vecferry as vf
from known import some
from model.test_records import all_of, records
from vecferry.model import CollectionSchema, RecordBatch, VectorRecord, schema_of
from vecferry.model.foreign import ID_NAMES, METADATA_NAMES, TEXT_NAMES, VECTOR_NAMES
from vecferry.model.json_record import columns_of, dump_rows, load_row, metadata_of, with_header


def written(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    jsonl, parquet = folder / "rows.jsonl", folder / "rows.parquet"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    return [f"jsonl:{jsonl}", f"parquet:{parquet}"]


def parts(url: str) -> list[Any]:
    with vf.connect(url) as kb:
        return [
            (r.id, r.text, None if r.vector is None else r.vector.tolist(), r.metadata)
            for r in kb.records()
        ]


NAMES = list(itertools.zip_longest(ID_NAMES, TEXT_NAMES, VECTOR_NAMES, METADATA_NAMES))


@pytest.mark.parametrize(("id_", "text", "vector", "metadata"), NAMES)
def test_rows_are_the_same_as_lines_and_as_a_table(
    id_: str | None, text: str | None, vector: str | None, metadata: str | None, tmp_path: Path
) -> None:
    names = (id_ or "pk", text or "passage", vector or "embedding", metadata or "meta")
    rows = [
        dict(zip((*names, "lang"), (f"n{i}", f"t{i}", [i, 0.5], {"page": i}, "en"), strict=True))
        for i in range(3)
    ]
    due = [(f"n{i}", f"t{i}", [i, 0.5], {"page": i, "lang": "en"}) for i in range(3)]
    for url in written(tmp_path, rows):
        assert parts(url) == due, url


def test_two_names_of_one_part(tmp_path: Path) -> None:
    """The first of the list is the part, the other stays metadata."""
    rows = [
        {"pk": i, "doc_id": f"d{i}", "content": "c", "text": "t", "emb": [1.5], "values": "v"}
        for i in range(2)
    ]
    for url in written(tmp_path, rows):
        assert parts(url) == [
            (f"d{i}", "t", [1.5], {"pk": i, "content": "c", "values": "v"}) for i in range(2)
        ]


def test_a_key_on_both_sides_is_not_lost(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "t", "vector": [1.5], "metadata": {"page": 1}, "page": 2}]
    for url in written(tmp_path, rows):
        assert parts(url) == [("a", "t", [1.5], {"metadata": {"page": 1}, "page": 2})]


@settings(max_examples=60, deadline=None)
@given(records())
def test_records_pass_through_lines(rows: list[VectorRecord]) -> None:
    batch = RecordBatch.from_records(rows)
    lines = list(dump_rows(batch, {"schema": {}}))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    read = [load_row(line, {}, at) for at, line in enumerate(lines)]
    found = [row for row in read if row is not None]
    columns = columns_of(found, schema_of(batch), lambda _: True)
    back = RecordBatch(**columns, texts=[row.text for row in found], metadata=metadata_of(found))
    assert all_of(back) == all_of(batch)


def test_numbers_of_a_line_are_exact_beside_a_vector() -> None:
    for key in ("vector", "embedding"):
        line = (
            b'{"id":1,"tags":["vector"],"order_ids":[12345678901234567890123],"%s":[0.5,0.25]}\n'
            % key.encode()
        )
        row = load_row(line, {}, 0)
        assert row is not None and row.metadata["order_ids"] == [12345678901234567890123]
        assert row.vectors == {"": [0.5, 0.25]}
    odd = load_row(b'{"keys":[12345678901234567890123],"vector":["]",12345678901234567890123]}', {}, 0)
    assert odd is not None and odd.metadata == {"keys": [12345678901234567890123]}
    assert odd.vectors[""][1] == 12345678901234567890123
    nested = load_row(b'{"id":1,"metadata":{"vector":[12345678901234567890123]}}', {}, 0)
    assert nested is not None and nested.metadata == {"vector": [12345678901234567890123]}


def test_a_header_joins_a_line_and_changes_nothing_else() -> None:
    for line in (
        b'{"id":1,"metadata":{"n":12345678901234567890123}}\n',
        b'{"id":"1","_vecferry":{"id":"i:1"},"metadata":{"n":12345678901234567890123}}\n',
    ):
        joined = with_header(line, {"schema": {"name": "x"}})
        assert b"12345678901234567890123" in joined and joined.endswith(b"\n")
        row = load_row(joined, {}, 0)
        assert row is not None and row.id == 1
        assert orjson.loads(joined)["_vecferry"]["schema"] == {"name": "x"}
    column = columns_of([some(row)], CollectionSchema(), lambda _: True)["ids"]
    assert column.ints.dtype == np.int64
