"""Lines of JSON: exact numbers, foreign files, and lines that are wrong."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecferry.errors import ConfigurationError, CorruptDataError, RejectedRecord, SchemaMismatchError
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord, schema_of
from vecferry.model.json_record import dump_rows
from vecferry.ports import WriteMode
from vecferry.stores.jsonl import JsonlStore
from vecferry.testing import sample_records


def written(path: Path, records: list[VectorRecord], schema: CollectionSchema | None = None) -> JsonlStore:
    store = JsonlStore(path)
    batch = RecordBatch.from_records(records, schema)
    store.prepare(schema or schema_of(batch), WriteMode.CREATE)
    store.write(batch)
    store.finish()
    return store


def test_every_line_is_a_record(tmp_path: Path) -> None:
    store = written(tmp_path / "a.jsonl", sample_records(5))
    rows = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    assert list(rows[1])[:4] == ["id", "text", "metadata", "vector"]
    assert "schema" in rows[0]["_vecferry"] and "schema" not in rows[1].get("_vecferry", {})
    assert len(pd.read_json(store.path, lines=True)) == 5


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(np.float32, 40, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_float32_is_exact(values: Any) -> None:
    batch = RecordBatch.from_records([VectorRecord(id=1, vector=values)])
    line = json.loads(next(dump_rows(batch)))
    back = np.array(line["vector"], dtype=np.float64).astype(np.float32)
    assert back.tobytes() == values.tobytes()


def test_the_one_float32_that_its_own_digits_do_not_name(tmp_path: Path) -> None:
    odd = np.array([0x15AE43FD, 0x95AE43FD, 0x3F800000], dtype=np.uint32).view(np.float32)
    assert np.float32(float("7.038531e-26")) != odd[0], "else this would need no care"
    record = VectorRecord(
        id=1,
        vectors={"": odd, "late": np.stack([odd, odd])},
        sparse_vectors={"words": {"indices": [1, 2, 3], "values": odd}},
    )
    store = written(tmp_path / "a.jsonl", [record])
    assert [r for b in store.scan() for r in b.records()] == [record]


def test_every_float16_is_exact(tmp_path: Path) -> None:
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = patterns[np.isfinite(patterns)].reshape(-1, 256)
    records = [VectorRecord(id=i, vector=row) for i, row in enumerate(every)]
    store = written(tmp_path / "a.jsonl", records)
    back = np.concatenate([b.vectors[""].values for b in store.scan()])
    assert back.dtype == np.float16 and back.tobytes() == every.tobytes()


def test_every_kind_of_vector_and_id(tmp_path: Path) -> None:
    schema = CollectionSchema(
        fields=(
            VectorField(dim=3),
            VectorField(name="byte", dim=2, dtype="int8"),
            VectorField(name="bits", dim=12, dtype="bit", metric="hamming"),
            VectorField(name="words", kind="sparse", metric="ip"),
            VectorField(name="late", kind="multi", dim=2),
        )
    )
    records = [
        VectorRecord(
            id=UUID(int=7),
            vectors={
                "": [1, 2, 3],
                "byte": np.array([-128, 127], np.int8),
                "bits": np.array([255, 240], np.uint8),
                "late": [[1, 2], [3, 4]],
            },
            sparse_vectors={"words": {7: 0.1, 2: 1.5}},
        ),
        VectorRecord(id=("a", 7, UUID(int=1)), text="", vectors={"late": [[9, 9]]}),
        VectorRecord(id=2**80, vectors={"": [4, 5, 6]}, metadata={"_vecferry": {"a": (1,)}}),
    ]
    store = written(tmp_path / "a.jsonl", records, schema)
    assert [r for batch in store.scan(batch_size=2) for r in batch.records()] == records
    assert store.describe().fields == schema.fields


def test_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "f.ndjson"
    path.write_text(
        '\ufeff{"_id": "a", "page_content": "one", "embedding": [0.5, 1], "lang": "en"}\r\n'
        "\n"
        '{"_id": "b", "page_content": "two", "embedding": [1, 2], "metadata": {"n": 1}, "lang": "de"}'
    )
    store = JsonlStore(path)
    assert [r for b in store.scan() for r in b.records()] == [
        VectorRecord(id="a", text="one", vector=[0.5, 1], metadata={"lang": "en"}),
        VectorRecord(id="b", text="two", vector=[1, 2], metadata={"n": 1, "lang": "de"}),
    ]
    assert store.count() == 2 and store.describe().field("").dim == 2
    store.delete(["a"])
    assert [r.id for b in store.scan() for r in b.records()] == ["b"]
    assert b"_vecferry" in path.read_bytes(), "it is ours now"


def test_a_foreign_file_with_named_keys(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"key": 9, "id": "x", "v": [1], "body": "t"}\n')
    store = JsonlStore(path, id="key", vector="v")
    assert list(next(store.scan()).records()) == [
        VectorRecord(id=9, text="t", vector=[1], metadata={"id": "x"})
    ]
    with pytest.raises(CorruptDataError, match=r"line 1 .*no key 'nope'"):
        list(JsonlStore(path, id="nope").scan())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 3, "vector": [1, 2]', "line 3 is not a record"),
        ("[1, 2]", "line 3 is not a record: it is a JSON list"),
        ('{"id": 3, "vector": [1, 2, 3]}', "line 3 .*3 components where 2"),
        ('{"id": 3, "vector": [1, "x"]}', "line 3 .*no number"),
        ('{"id": 1.5, "vector": [1, 2], "_vecferry": {"id": "nonsense"}}', "line 3 is not a record"),
        ("\x00\x01", "line 3 is not a record"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    good = '{"id": %d, "vector": [1, 2]}\n'
    path.write_text(good % 1 + good % 2 + line + "\n" + good % 4)
    with pytest.raises(CorruptDataError, match=message):
        list(JsonlStore(path).scan())


def test_bad_lines_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "vector": [1]}\nnonsense\n{"id": 2, "vector": [2]}\n{"id": 3, "vec')
    store = JsonlStore(path, on_bad_line="skip")
    assert [i for b in store.scan() for i in b.id_list] == [1, 2]
    with pytest.raises(ConfigurationError, match="on_bad_line"):
        JsonlStore(path, on_bad_line="maybe")


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": 1, "vector": [1]}\n' * 1000)[:-20])
    with pytest.raises(CorruptDataError, match="not a whole gzip"):
        list(JsonlStore(path).scan())


def test_what_json_cannot_hold_is_rejected(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path / "a.jsonl")
    good = VectorRecord(id=1, vector=[1.0])
    store.prepare(schema_of(RecordBatch.from_records([good])), WriteMode.CREATE)
    for bad in (
        VectorRecord(id=2, vector=[np.nan]),
        VectorRecord(id=2, vector=[1], text="\ud800"),
        VectorRecord(id=2, vector=[1], metadata={"a": object()}),
    ):
        with pytest.raises(RejectedRecord) as caught:
            store.write(RecordBatch.from_records([good, bad]))
        assert caught.value.ids == (2,)
    with pytest.raises(SchemaMismatchError, match="components"):
        store.write(RecordBatch.from_records([VectorRecord(id=3, vector=[1, 2])]))
    with pytest.raises(SchemaMismatchError, match="no vector field 'other'"):
        store.write(RecordBatch.from_records([VectorRecord(id=3, vectors={"other": [1]})]))
    store.write(RecordBatch.from_records([good]))
    store.finish()
    assert store.count() == 1


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=60), want=st.integers(1, 12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_byte_ranges_part_the_lines(tmp_path: Path, sizes: list[int], want: int) -> None:
    folder = tmp_path / "many"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    rows = [json.dumps({"id": i, "text": "é" * size, "vector": [1]}) for i, size in enumerate(sizes)]
    half = len(rows) // 2
    (folder / "a.jsonl").write_text("\n".join(rows[:half]))
    (folder / "b.jsonl").write_text("".join(f"{row}\n\n" for row in rows[half:]))
    store = JsonlStore(folder)
    found = [
        i
        for part in store.partitions(want)
        for b in store.scan(partition=part, batch_size=3)
        for i in b.id_list
    ]
    assert found == list(range(len(sizes)))


def test_jsonl_needs_no_pyarrow(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", sample_records(5))
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from vecferry.connecting import connect\n"
        f"assert connect('jsonl:{tmp_path}/a.jsonl').count() == 5\n"
        "from vecferry.errors import MissingDependencyError\n"
        "try:\n    connect('parquet:x')\n"
        "except MissingDependencyError as e:\n    assert 'vecferry[parquet]' in str(e)\n"
        "else:\n    raise SystemExit('parquet opened without pyarrow')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
