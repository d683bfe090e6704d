"""What others read of our Parquet, and what we read of theirs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecferry
from known import some
from vecferry.errors import ConfigurationError, CorruptDataError, NotFoundError, RejectedRecord
from vecferry.model import (
    CollectionSchema,
    EmbeddingSpace,
    RecordBatch,
    VectorField,
    VectorRecord,
    schema_of,
)
from vecferry.ports import Fields, StoreURL, WriteMode
from vecferry.stores import parquet
from vecferry.stores.parquet import ParquetStore
from vecferry.testing import sample_records


def written(path: Path, records: list[VectorRecord], **schema: Any) -> ParquetStore:
    store = ParquetStore(path)
    batch = RecordBatch.from_records(records)
    store.prepare(CollectionSchema(**schema) if schema else schema_of(batch), WriteMode.CREATE)
    store.write(batch)
    store.finish()
    return store


def test_duckdb_reads_it_as_it_is(tmp_path: Path) -> None:
    records = sample_records(25)
    store = written(tmp_path / "a.parquet", records)
    query = f"select id, text, vector, metadata ->> '$.topic' as topic from '{store.path}' order by id"
    rows = some(duckdb.sql(query)).fetchall()
    assert [(r.id, r.text, some(r.vector).tolist(), r.metadata["topic"]) for r in records] == [
        (id_, text, list(vector), topic) for id_, text, vector, topic in rows
    ]
    described = dict(
        some(duckdb.sql(f"select column_name, column_type from (describe '{store.path}')")).fetchall()
    )
    assert described["id"] == "BIGINT" and described["vector"].startswith("FLOAT[")


def test_the_space_is_in_the_file(tmp_path: Path) -> None:
    space = EmbeddingSpace(model="m", dim=2, prompt="passage: ")
    fields = (VectorField(dim=2, metric="l2", space=space, index={"hnsw_m": 32}),)
    store = written(tmp_path / "a.parquet", [VectorRecord(id=1, vector=[1, 2])], fields=fields)
    assert ParquetStore(store.path).describe().fields == fields
    about = json.loads(pq.read_schema(store.path).metadata[b"vecferry"])
    assert about["schema"]["fields"][0]["space"]["model"] == "m"


@pytest.mark.parametrize(
    ("ids", "arrow"),
    [
        ([7, -1, 2**62], "int64"),
        (["7", "007", "ü"], "string"),
        ([UUID(int=1), uuid4(), uuid4()], "extension<arrow.uuid>"),
        ([7, "7", (1, "a")], "string"),
        ([2**70, 1, 0], "string"),
    ],
)
def test_ids_lie_in_the_column_that_people_expect(tmp_path: Path, ids: list[Any], arrow: str) -> None:
    store = written(tmp_path / "a.parquet", [VectorRecord(id=i, vector=[1, 2]) for i in ids])
    assert str(pq.read_schema(store.path).field("id").type) == arrow
    found = [i for batch in store.scan() for i in batch.id_list]
    assert found == ids and [type(i) for i in found] == [type(i) for i in ids]


def test_ids_of_another_kind_join_a_file_later(tmp_path: Path) -> None:
    store = written(tmp_path / "a.parquet", [VectorRecord(id=1, vector=[1, 2])])
    store.prepare(store.describe(), WriteMode.UPSERT)
    store.write(RecordBatch.from_records([VectorRecord(id="1", vector=[3, 4])]))
    store.write(RecordBatch.from_records([VectorRecord(id=2, vector=[3, 4])]))
    store.finish()
    assert [i for batch in store.scan() for i in batch.id_list] == [1, "1", 2]
    assert store.fetch(["1"]).id_list == ["1"]


def test_every_kind_of_vector(tmp_path: Path) -> None:
    fields = (
        VectorField(dim=3),
        VectorField(name="half", dim=2, dtype="float16"),
        VectorField(name="byte", dim=2, dtype="int8"),
        VectorField(name="bits", dim=12, dtype="bit", metric="hamming"),
        VectorField(name="words", kind="sparse", metric="ip"),
        VectorField(name="late", kind="multi", dim=2),
    )
    records = [
        VectorRecord(
            id=1,
            vectors={
                "": [1, 2, 3],
                "half": np.array([0.1, 2], np.float16),
                "byte": np.array([-128, 127], np.int8),
                "bits": np.array([255, 240], np.uint8),
                "late": [[1, 2], [3, 4], [5, 6]],
            },
            sparse_vectors={"words": {7: 0.5, 2: 1.5}},
        ),
        VectorRecord(id=2, vectors={"late": [[9, 9]]}),
        VectorRecord(id=3, vectors={"": [4, 5, 6]}, sparse_vectors={"words": {}}),
    ]
    store = ParquetStore(tmp_path / "a.parquet")
    schema = CollectionSchema(fields=fields)
    store.prepare(schema, WriteMode.CREATE)
    store.write(RecordBatch.from_records(records, schema))
    store.finish()
    assert [r for batch in store.scan(batch_size=2) for r in batch.records()] == records
    frame = pd.read_parquet(store.path)
    assert frame["vector_half"][0].dtype == np.float16 and frame["vector"][1] is None
    assert [h.id for h in store.search(np.array([4, 5, 6]), 1)] == [3]
    assert {h.id for h in store.search(np.array([[9, 9]]), 3, field="late")} == {1, 2}
    only = next(iter(store.scan(fields=Fields(vectors=("half",)))))
    assert set(only.vectors) == {"half"} and not only.sparse_vectors


def test_row_groups_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "group_rows", lambda schema: 10)
    monkeypatch.setattr(parquet, "GROUPS_PER_PART", 2)
    store = written(tmp_path / "parts", sample_records(75))
    assert [pq.ParquetFile(p).num_row_groups for p in store.files()] == [2, 2, 2, 2]
    assert [p.count for p in store.partitions(4)] == [20, 20, 20, 15]
    assert [p.count for p in store.partitions(100)] == [10] * 7 + [5]
    whole = ParquetStore(store.files()[1])
    assert [i for b in whole.scan() for i in b.id_list] == list(range(20, 40))


@pytest.mark.parametrize("mode", [WriteMode.CREATE, WriteMode.UPSERT, WriteMode.REPLACE])
@pytest.mark.parametrize("data", [True, False])
def test_a_folder_with_other_files_in_it_is_never_swapped_away(
    tmp_path: Path, mode: WriteMode, data: bool
) -> None:
    (tmp_path / "work" / "notes").mkdir(parents=True)
    store = ParquetStore(tmp_path / "work")
    if data:
        written(store.path / "a.parquet", sample_records(3))
    (store.path / "notes" / "precious.txt").write_text("mine")
    sink = store.shadow("t") if store.stages(mode) else store
    with pytest.raises(ConfigurationError, match=r"precious\.txt.*another folder"):
        sink.prepare(schema_of(RecordBatch.from_records(sample_records(1))), mode)
    (store.path / "notes" / "precious.txt").rename(store.path / "_SUCCESS")
    sink.prepare(schema_of(RecordBatch.from_records(sample_records(1))), WriteMode.REPLACE)


def test_a_foreign_file_in_the_usual_shape(tmp_path: Path) -> None:
    table = pa.table(
        {
            "title": ["a", "b"],
            "doc_id": pa.array(["x", "y"]).dictionary_encode(),
            "content": pa.array(["one", None], pa.large_string()),
            "emb": pa.array([[0.1, 0.2], [0.3, 0.4]], pa.large_list(pa.float64())),
            "page": pa.array([1, None]),
        }
    )
    pq.write_table(table, tmp_path / "foreign.parquet")
    store = ParquetStore(tmp_path / "foreign.parquet")
    schema = store.describe()
    assert schema.field("").dim == 2 and schema.count == 2 and not schema.ids_unique
    assert "float64" in schema.losses[0].detail
    records = [record for batch in store.scan() for record in batch.records()]
    assert [(r.id, r.text, r.metadata) for r in records] == [
        ("x", "one", {"title": "a", "page": 1}),
        ("y", None, {"title": "b", "page": None}),
    ]
    assert some(records[0].vector).tolist() == np.array([0.1, 0.2], np.float32).tolist()


def test_a_foreign_file_with_named_columns(tmp_path: Path) -> None:
    table = pa.table({"n": [5, 6], "a": [[1.0], [2.0]], "b": [[3.0], [4.0]], "s": ["x", "y"]})
    pq.write_table(table, tmp_path / "f.parquet")
    url = StoreURL.parse(f"parquet:{tmp_path}/f.parquet?id=n&vector=b&text=s")
    store = ParquetStore.from_url(url, **url.options)
    records = [record for batch in store.scan() for record in batch.records()]
    assert [(r.id, r.text, r.vectors[""].tolist(), r.metadata["a"]) for r in records] == [
        (5, "x", [3.0], [1.0]),
        (6, "y", [4.0], [2.0]),
    ]
    with pytest.raises(ConfigurationError, match="no column is called 'nope'"):
        ParquetStore(tmp_path / "f.parquet", id="nope").describe()
    with pytest.raises(ConfigurationError, match="not a list of numbers"):
        ParquetStore(tmp_path / "f.parquet", vector="s").describe()


@pytest.mark.parametrize("column", ["vector", "x"])
@pytest.mark.parametrize("fixed", [2, -1])
@pytest.mark.parametrize(("kind", "read"), [("int64", "float32"), ("int16", "float32"), ("int8", "int8")])
def test_vectors_of_integers_are_vectors(
    column: str, fixed: int, kind: str, read: str, tmp_path: Path
) -> None:
    integers = pa.array([[1, 2], [3, 4]], pa.list_(pa.type_for_alias(kind), fixed))
    table = pa.table({"id": [1, 2], column: integers, "tags": pa.array([[7], [8, 9]])})
    pq.write_table(table, tmp_path / "f.parquet")
    store = ParquetStore(tmp_path / "f.parquet", vector=column if column == "x" else None)
    assert [f.dtype for f in store.describe().fields] == [read]
    assert ["int64" in loss.detail for loss in store.describe().losses] == [True] * (kind == "int64")
    records = [r for b in store.scan() for r in b.records()]
    assert [(some(r.vector).tolist(), r.metadata) for r in records] == [
        ([1, 2], {"tags": [7]}),
        ([3, 4], {"tags": [8, 9]}),
    ]


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        ([{"a": 1}, {"a": 2}], None, [{"a": 1}, {"a": 2}]),
        ([[("a", 1)], None], pa.map_(pa.string(), pa.int64()), [{"a": 1}, {}]),
        (['{"a": 1}', "null"], None, [{"a": 1}, {}]),
        (["plain", '{"a": 1}'], None, [{"metadata": "plain"}, {"a": 1}]),
        (["[1]", ""], None, [{"metadata": "[1]"}, {}]),
    ],
)
def test_metadata_has_many_forms(values: Any, kind: Any, wanted: Any, tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "vector": [[1.0], [2.0]], "metadata": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "f.parquet")
    store = ParquetStore(tmp_path / "f.parquet")
    assert [r.metadata for b in store.scan() for r in b.records()] == wanted
    named = ParquetStore(tmp_path / "f.parquet", metadata="metadata")
    assert [r.metadata for b in named.scan() for r in b.records()] == wanted


def test_nanoseconds_are_read_to_the_microsecond(tmp_path: Path) -> None:
    when = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC"))
    pq.write_table(pa.table({"id": [1], "vector": [[1.0]], "when": when}), tmp_path / "f.parquet")
    (record,) = (r for b in ParquetStore(tmp_path / "f.parquet").scan() for r in b.records())
    assert type(record.metadata["when"]) is datetime
    assert record.metadata["when"] == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


def test_a_foreign_file_that_was_changed_is_still_read_by_the_same_url(tmp_path: Path) -> None:
    table = pa.table({"docid": ["x", "y"], "emb": [[1.0], [2.0]], "passage": ["one", "two"]})
    pq.write_table(table, tmp_path / "f.parquet")
    url = f"parquet:{tmp_path}/f.parquet?id=docid&vector=emb&text=passage"
    with vecferry.connect(url) as kb:
        kb.delete(["x"])
        kb.write([VectorRecord(id=7, text="seven", vector=[3.0])])
    records = list(vecferry.connect(url).records())
    assert [(r.id, r.text, some(r.vector).tolist()) for r in records] == [
        ("y", "two", [2]),
        (7, "seven", [3]),
    ]


def test_settings_and_tables_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"compression is one of zstd.*'rar'"):
        ParquetStore(tmp_path / "f.parquet", compression="rar")
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["id", "id"])
    pq.write_table(twice, tmp_path / "f.parquet")
    with pytest.raises(CorruptDataError, match="two columns are called 'id'"):
        ParquetStore(tmp_path / "f.parquet").describe()


def test_rows_without_an_id_are_numbered(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 3)):
        vectors = [[float(start + i), 1.0] for i in range(3)]
        pq.write_table(pa.table({"embedding": vectors}), tmp_path / f"{name}.parquet", row_group_size=2)
    store = ParquetStore(tmp_path)
    assert [i for b in store.scan(batch_size=1) for i in b.id_list] == list(range(6))
    assert [i for b in store.scan(fields=Fields.IDS) for i in b.id_list] == list(range(6))
    assert some(next(store.fetch([4]).records()).vector).tolist() == [4.0, 1.0]
    assert store.search(np.array([0.0, 1.0]), 1)[0].id == 0


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [1, 2], "text": ["a", "b"], "vector": [np.ones(2), np.zeros(2)]})
    frame.to_parquet(tmp_path / "p.parquet")
    store = ParquetStore(tmp_path / "p.parquet")
    assert [(r.id, r.text, some(r.vector).tolist()) for b in store.scan() for r in b.records()] == [
        (1, "a", [1, 1]),
        (2, "b", [0, 0]),
    ]


def test_our_columns_survive_a_pass_through_duckdb(tmp_path: Path) -> None:
    records = sample_records(12)
    store = written(tmp_path / "a.parquet", records)
    duckdb.sql(f"copy (select * from '{store.path}') to '{tmp_path}/b.parquet' (format parquet)")
    again = ParquetStore(tmp_path / "b.parquet")
    assert [r for b in again.scan() for r in b.records()] == records


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0], [3.0]]), "components"),
        (pa.array([[1.0, None], [3.0, 4.0]]), "null inside"),
    ],
)
def test_damaged_vectors_are_named(tmp_path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"id": [1, 2], "vector": column}), tmp_path / "x.parquet")
    with pytest.raises(CorruptDataError, match=message):
        list(ParquetStore(tmp_path / "x.parquet").scan())


def test_damaged_files_are_named(tmp_path: Path) -> None:
    store = written(tmp_path / "a.parquet", sample_records(50))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-20])
    with pytest.raises(CorruptDataError, match=r"a\.parquet"):
        store.describe()
    store.path.write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"a\.parquet"):
        list(store.scan())
    with pytest.raises(NotFoundError, match="check the path"):
        ParquetStore(tmp_path / "nothing.parquet").describe()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no"):
        ParquetStore(tmp_path / "empty").describe()
    table = pa.table({"id": [1], "vector": [[1.0]], "metadata": ["{"]})
    pq.write_table(table, tmp_path / "json.parquet")
    with pytest.raises(CorruptDataError, match="not JSON"):
        list(ParquetStore(tmp_path / "json.parquet").scan())


def test_text_that_is_no_unicode_is_rejected(tmp_path: Path) -> None:
    store = ParquetStore(tmp_path / "a.parquet")
    bad = [VectorRecord(id=1, text="fine", vector=[1]), VectorRecord(id=2, text="\ud800", vector=[1])]
    store.prepare(schema_of(RecordBatch.from_records(bad)), WriteMode.CREATE)
    with pytest.raises(RejectedRecord, match=r"text of \[2\]") as caught:
        store.write(RecordBatch.from_records(bad))
    assert caught.value.ids == (2,)
    broken = [VectorRecord(id=3, vector=[1], metadata={"a": object()})]
    with pytest.raises(RejectedRecord, match="/a"):
        store.write(RecordBatch.from_records(broken))
    store.write(RecordBatch.from_records(bad[:1]))
    store.finish()
    assert store.count() == 1
