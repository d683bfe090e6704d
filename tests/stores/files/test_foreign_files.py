"""Files of others: documents of JSON, tables with odd columns, folders whose files disagree."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecferry as vf
from vecferry.errors import CorruptDataError, LossRefusedError, PlanError, SchemaMismatchError
from vecferry.model import CollectionSchema, Metric, RecordBatch, VectorField
from vecferry.ports import WriteMode
from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.parquet import ParquetStore

ROWS = [
    {"id": f"r{i}", "text": f"text {i}", "vector": [float(i), 1.0], "metadata": {"n": i}} for i in range(5)
]


def seen(store: Any) -> list[Any]:
    rows = [r for batch in store.scan(batch_size=2) for r in batch.records()]
    return [
        {"id": r.id, "text": r.text, "vector": r.vectors[""].tolist(), "metadata": r.metadata} for r in rows
    ]


def floats(rows: Any, size: int | None = None) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32()) if size is None else pa.list_(pa.float32(), size))


# -- ids in several files ---------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["jsonl", "parquet"])
def test_two_exports_with_a_common_id_in_one_folder_are_refused_with_its_id(
    scheme: str, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    for name, rows in (("a", ROWS[:3]), ("b", ROWS[2:])):
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        vf.migrate(f"jsonl:{tmp_path}/in.jsonl", f"{scheme}:{folder}/{name}.{scheme}")
    with pytest.raises(PlanError, match="r2"):
        vf.migrate(f"{scheme}:{folder}", f"jsonl:{tmp_path}/out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    report = vf.migrate(f"{scheme}:{folder}", f"jsonl:{tmp_path}/out.jsonl", dedupe="id")
    assert report.ok and len((tmp_path / "out.jsonl").read_text().splitlines()) == 5


def write(store: Any, metric: Metric, dim: int = 2) -> None:
    schema = CollectionSchema(fields=(VectorField(dim=dim, metric=metric),))
    store.prepare(schema, WriteMode.CREATE)
    row = {"id": str(store.path), "vectors": {"": np.ones(dim, np.float32)}}
    store.write(RecordBatch.from_records([row]))
    store.finish()


@pytest.mark.parametrize("make", [JsonlStore, ParquetStore])
@pytest.mark.parametrize("other", [{"metric": Metric.L2}, {"dim": 3, "metric": Metric.IP}])
def test_files_that_do_not_belong_to_one_collection_are_both_named(
    make: Any, other: dict[str, Any], tmp_path: Path
) -> None:
    suffix = make.suffixes[0]
    write(make(tmp_path / f"a{suffix}"), Metric.IP)
    write(make(tmp_path / f"b{suffix}"), **other)
    with pytest.raises(SchemaMismatchError, match=rf"b{suffix}.*a{suffix}"):
        make(tmp_path).describe()


# -- JSON documents ---------------------------------------------------------------------------

POINTS = [
    {
        "id": r["id"],
        "vector": r["vector"],
        "payload": {"page_content": r["text"], "metadata": r["metadata"]},
    }
    for r in ROWS
]
DOCUMENTS = {
    "array": ROWS,
    "list among others": {"model": "m", "documents": ROWS},
    "by id": {row["id"]: {k: v for k, v in row.items() if k != "id"} for row in ROWS},
    "parallel lists": {
        "ids": [r["id"] for r in ROWS],
        "embeddings": [r["vector"] for r in ROWS],
        "documents": [r["text"] for r in ROWS],
        "metadatas": [r["metadata"] for r in ROWS],
        "uris": None,
    },
    "points of Qdrant": {"result": {"points": POINTS, "next_page_offset": None}, "status": "ok"},
}


@pytest.mark.parametrize("shape", DOCUMENTS)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_document_of_json_is_read_record_by_record(
    shape: str, indent: int | None, tmp_path: Path
) -> None:
    (tmp_path / "export.json").write_text(json.dumps(DOCUMENTS[shape], indent=indent))
    store = JsonlStore(tmp_path / "export.json")
    assert seen(store) == ROWS and store.count() == 5
    assert store.fetch(["r3"]).id_list == ["r3"]
    assert seen(JsonlStore(tmp_path)) == ROWS  # a folder of such documents
    assert store.describe().field("").metric_declared is False


def test_points_of_qdrant_one_a_line_with_several_vectors(tmp_path: Path) -> None:
    point = {
        "id": 7,
        "vector": {"d": [1, 2], "bm25": {"indices": [3], "values": [0.5]}},
        "payload": {"text": "t", "n": 1},
    }
    (tmp_path / "dump.jsonl").write_text(json.dumps(point) + "\n")
    (record,) = [r for batch in JsonlStore(tmp_path / "dump.jsonl").scan() for r in batch.records()]
    assert (record.id, record.text, record.metadata) == (7, "t", {"n": 1})
    assert record.vectors["d"].tolist() == [1, 2] and record.sparse_vectors["bm25"].indices.tolist() == [3]


def test_lines_in_a_file_of_another_name_stay_lines(tmp_path: Path) -> None:
    for name in ("data.txt", "data.json"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        assert seen(JsonlStore(tmp_path / name)) == ROWS
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0]))
    assert seen(JsonlStore(tmp_path / "one.json")) == ROWS[:1]


@pytest.mark.parametrize(
    "body", ["[", "[1]", "{", '{"documents": [', "[" * 5000, '{"a": "\\ud800', "[nul]"]
)
def test_a_damaged_document_is_named(body: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(body)
    with pytest.raises(CorruptDataError, match=r"x\.json"):
        seen(JsonlStore(tmp_path / "x.json"))


def test_a_replaced_file_stays_a_file(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    assert vf.migrate(f"jsonl:{tmp_path}/new.jsonl", f"jsonl:{tmp_path}/data.txt", mode="replace").ok
    assert (tmp_path / "data.txt").is_file() and seen(JsonlStore(tmp_path / "data.txt")) == ROWS[:2]


# -- Parquet ----------------------------------------------------------------------------------


def test_ragged_lists_of_floats_are_metadata(tmp_path: Path) -> None:
    prices = [[1.5, 2.5][: i % 3] for i in range(6)]
    emb = [[float(i), 2.0] for i in range(6)]
    table = pa.table({"id": list("abcdef"), "embedding": floats(emb), "prices": floats(prices)})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = [r for batch in ParquetStore(tmp_path / "x.parquet").scan() for r in batch.records()]
    assert [r.vectors[""].tolist() for r in rows] == emb and [r.metadata["prices"] for r in rows] == prices
    assert all(list(r.vectors) == [""] for r in rows)


def test_a_vector_column_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "v": floats([[1.0, 2.0]], 2), "bbox": floats([[0.5] * 4], 4)})
    pq.write_table(table, tmp_path / "x.parquet")
    (record,) = next(ParquetStore(tmp_path / "x.parquet", vector="v").scan()).records()
    assert list(record.vectors) == [""] and record.metadata == {"bbox": [0.5] * 4}


@pytest.mark.parametrize("nested", [False, True])
def test_times_finer_than_a_microsecond_are_counted_before_they_are_cut(
    nested: bool, tmp_path: Path
) -> None:
    times = pa.array([1_700_000_000_123_456_789, 1_700_000_000_000_000_000], pa.timestamp("ns"))
    column = pa.StructArray.from_arrays([times], ["at"]) if nested else times
    table = pa.table({"id": [1, 2], "vector": floats([[1.0]] * 2), "ts": column})
    pq.write_table(table, tmp_path / "x.parquet")
    (loss,) = ParquetStore(tmp_path / "x.parquet").describe().losses
    assert loss.count == 1 and "'ts'" in loss.detail
    with pytest.raises(LossRefusedError, match="microsecond"):
        vf.migrate(f"parquet:{tmp_path}/x.parquet", f"jsonl:{tmp_path}/out.jsonl", lossy="refuse")
    first = next(next(ParquetStore(tmp_path / "x.parquet").scan()).records()).metadata["ts"]
    assert (first["at"] if nested else first) == datetime(2023, 11, 14, 22, 13, 20, 123456)


def test_a_small_dictionary_that_unfolds_to_very_much_is_read_in_pieces(tmp_path: Path) -> None:
    import tracemalloc

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["x" * 1_000_000])
    table = pa.table({"id": range(3000), "vector": floats([[1.0]] * 3000), "text": texts})
    pq.write_table(table, tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 200_000
    tracemalloc.start()
    count = sum(len(batch) for batch in ParquetStore(tmp_path / "x.parquet").scan(batch_size=3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000 and peak < 300_000_000


def test_an_index_that_pandas_kept_is_the_id_where_no_column_is(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "vector": floats([[1.0]] * 2), "__index_level_0__": [7, 9]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert next(ParquetStore(tmp_path / "x.parquet").scan()).id_list == [7, 9]


def test_the_same_rows_are_the_same_records_as_lines_and_as_a_table(tmp_path: Path) -> None:
    rows = [{"pk": i, "passage": f"p{i}", "embedding": [float(i), 1.0], "lang": "en"} for i in range(3)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert seen(JsonlStore(tmp_path / "x.jsonl")) == seen(ParquetStore(tmp_path / "x.parquet"))
    assert seen(JsonlStore(tmp_path / "x.jsonl"))[2] == {
        "id": 2, "text": "p2", "vector": [2.0, 1.0], "metadata": {"lang": "en"},
    }  # fmt: skip


def test_a_metric_that_no_file_declares_is_taken_from_the_target(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write(ParquetStore(tmp_path / "t.parquet"), Metric.L2)
    assert vf.migrate(f"jsonl:{tmp_path}/x.jsonl", f"parquet:{tmp_path}/t.parquet", mode="upsert").ok
    assert ParquetStore(tmp_path / "t.parquet").describe().field("").metric is Metric.L2


# -- stamps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_stamp_changes_with_the_files(suffix: str, tmp_path: Path) -> None:
    make = JsonlStore if suffix == ".jsonl" else ParquetStore
    write(make(tmp_path / f"a{suffix}"), Metric.IP)
    store = make(tmp_path)
    first = store.stamp()
    assert first == make(tmp_path).stamp() and json.loads(json.dumps(first)) == first
    write(make(tmp_path / f"b{suffix}"), Metric.IP)
    second = store.stamp()
    assert second != first and second["files"] == 2
    with (tmp_path / f"a{suffix}").open("ab") as file:
        file.write(b" ")
    assert store.stamp() != second


@pytest.mark.parametrize("scheme", ["jsonl", "parquet", "faiss"])
def test_a_link_to_an_empty_folder_is_a_target(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert vf.migrate(f"jsonl:{tmp_path}/x.jsonl", f"{scheme}:{tmp_path}/link").ok
    assert (tmp_path / "link").is_symlink() and any((tmp_path / "real").iterdir())
