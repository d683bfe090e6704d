"""Bad input: a typed error that names the next move, and a target that stays as it was."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import vecferry
from stores.faiss.support import SAMPLES, by_id, random_vectors, records, schema, write
from vecferry.errors import (
    ConfigurationError,
    CorruptDataError,
    NotFoundError,
    RejectedRecord,
    SchemaMismatchError,
    TargetExistsError,
    UnsupportedError,
)
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    DType,
    Metric,
    RecordBatch,
    VectorField,
    VectorRecord,
)
from vecferry.ports import WriteMode
from vecferry.stores.faiss import FaissStore


def read_all(path: Path, **options: Any) -> int:
    return sum(len(batch) for batch in FaissStore(path, **options).scan())


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """A copy of a sample, to be damaged."""

    def copy(name: str) -> Path:
        shutil.copytree(SAMPLES / name, tmp_path / name)
        return tmp_path / name

    return copy


@pytest.mark.parametrize("factory", ["Flat", "IDMap2,Flat", "IVF4,Flat", "HNSW8", "SQ8"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_index_is_named(factory: str, share: float, tmp_path: Path) -> None:
    index = faiss.index_factory(16, factory)
    index.train(random_vectors(200))
    rows = random_vectors(200)
    index.add_with_ids(rows, np.arange(200)) if factory.startswith("IDMap") else index.add(rows)
    path = tmp_path / "i.faiss"
    faiss.write_index(index, str(path))
    whole = path.read_bytes()
    assert read_all(path) == 200
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptDataError, match="restore"):
        read_all(path)


@pytest.mark.parametrize("size", [25, 31, 127, 4000])
def test_a_truncated_large_index_does_not_take_the_process_along(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped, as large files are, FAISS 1.15 reads beyond the end of some truncated files."""
    monkeypatch.setattr("vecferry.stores.faiss.readers._SMALL", 0)
    index = faiss.index_factory(16, "HNSW8")
    index.add(random_vectors(200))
    path = tmp_path / "i.faiss"
    faiss.write_index(index, str(path))
    assert read_all(path) == 200
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptDataError, match="restore"):
        read_all(path)


@pytest.mark.parametrize("junk", [b"hello", b"IxF2", b"\x00" * 100, b"IxF2" + b"\xff" * 60])
def test_junk_is_not_an_index(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "i.faiss").write_bytes(junk)
    with pytest.raises(CorruptDataError):
        FaissStore(tmp_path / "i.faiss").count()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        store = FaissStore(path)
        assert not store.exists()
        with pytest.raises(NotFoundError, match="check the path"):
            store.describe()


def test_several_indexes_in_a_folder_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a.faiss", "b.faiss"):
        shutil.copy(SAMPLES / "langchain_faiss" / "index.faiss", tmp_path / name)
        shutil.copy(SAMPLES / "langchain_faiss" / "index.pkl", tmp_path / name.replace("faiss", "pkl"))
    with pytest.raises(ConfigurationError, match=r"a\.faiss, b\.faiss"):
        FaissStore(tmp_path).describe()
    assert FaissStore(tmp_path, index_name="b").describe().layout == "langchain"
    assert FaissStore(tmp_path / "a.faiss").count() == 200
    assert vecferry.connect(f"faiss:{tmp_path}#b").count() == 200


@pytest.mark.parametrize(
    "name", ["langchain_faiss", "llamaindex_faiss", "llamaindex_faiss_map", "raw_faiss_pkl"]
)
@pytest.mark.parametrize("rows", [199, 201])
def test_an_index_that_does_not_fit_its_sidecar_is_named(name: str, rows: int, folder: Any) -> None:
    path = folder(name)
    index_path = FaissStore(path)._open().found.index
    flat = faiss.IndexFlatL2(384)
    flat.add(random_vectors(rows, 384))
    index: Any = flat
    if name.endswith("map"):
        index = faiss.IndexIDMap2(faiss.IndexFlatL2(384))
        index.add_with_ids(flat.reconstruct_n(0, rows), np.arange(rows))
    faiss.write_index(index, str(index_path))
    with pytest.raises(CorruptDataError, match="200"):
        read_all(path)
    assert read_all(index_path, layout="none") == rows


@pytest.mark.parametrize("lines", [9, 11])
@pytest.mark.parametrize("sidecar", ["jsonl", "parquet"])
def test_our_own_sidecar_of_another_length_is_named(sidecar: str, lines: int, tmp_path: Path) -> None:
    write(tmp_path / "a", records(10), sidecar=sidecar)
    write(tmp_path / "b", records(lines), sidecar=sidecar)
    shutil.copy(tmp_path / "b" / f"records.{sidecar}", tmp_path / "a" / f"records.{sidecar}")
    with pytest.raises(CorruptDataError, match="10"):
        read_all(tmp_path / "a")


def test_a_document_that_is_missing_is_named(folder: Any) -> None:
    path = folder("langchain_faiss")
    docstore, names = pickle.loads((path / "index.pkl").read_bytes())
    name, _ = docstore._dict.popitem()
    (path / "index.pkl").write_bytes(pickle.dumps((docstore, names)))
    with pytest.raises(CorruptDataError, match=name):
        read_all(path)


def test_a_node_that_is_missing_is_named(folder: Any) -> None:
    path = folder("llamaindex_faiss")
    docstore = json.loads((path / "docstore.json").read_text("utf-8"))
    name, _ = docstore["docstore/data"].popitem()
    (path / "docstore.json").write_text(json.dumps(docstore))
    with pytest.raises(CorruptDataError, match=name):
        read_all(path)


@pytest.mark.parametrize("file", ["docstore.json", "index_store.json"])
def test_a_missing_file_of_a_folder_is_named(file: str, folder: Any) -> None:
    path = folder("llamaindex_faiss")
    (path / file).unlink()
    with pytest.raises(NotFoundError, match=file):
        read_all(path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("langchain_faiss", "index.pkl"),
        ("raw_faiss_pkl", "metadata.pkl"),
        ("llamaindex_faiss", "docstore.json"),
        ("llamaindex_faiss", "index_store.json"),
        ("llamaindex_faiss_map", "id_map.json"),
        ("llamaindex_simple", "default__vector_store.json"),
    ],
)
def test_a_truncated_sidecar_is_named(name: str, file: str, folder: Any) -> None:
    path = folder(name) / file
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CorruptDataError, match=file.split(".", maxsplit=1)[0]):
        read_all(path.parent)


@pytest.mark.parametrize("sidecar", ["jsonl", "parquet"])
def test_our_own_damaged_sidecar_is_named(sidecar: str, tmp_path: Path) -> None:
    write(tmp_path / "kb", records(10), sidecar=sidecar)
    path = tmp_path / "kb" / f"records.{sidecar}"
    damaged = bytearray(path.read_bytes())
    damaged[:3] = b"\x00\x00\x00"
    if sidecar == "parquet":
        damaged = damaged[:-10]
    path.write_bytes(bytes(damaged))
    with pytest.raises(CorruptDataError, match="records"):
        read_all(tmp_path / "kb")


def test_a_damaged_card_is_named(tmp_path: Path) -> None:
    write(tmp_path / "kb", records(3))
    (tmp_path / "kb" / "vecferry.json").write_text("{")
    with pytest.raises(CorruptDataError, match=r"vecferry\.json"):
        FaissStore(tmp_path / "kb").describe()


def test_an_unknown_option_names_the_known_ones(tmp_path: Path) -> None:
    for option, value in (("layout", "haystack"), ("sidecar", "csv"), ("metric", "manhattan")):
        with pytest.raises(ConfigurationError, match="choose one of"):
            vecferry.connect(f"faiss:{tmp_path}?{option}={value}")
    with pytest.raises(ConfigurationError, match="no option 'colour'"):
        vecferry.connect(f"faiss:{tmp_path}?colour=red")
    with pytest.raises(ConfigurationError, match="needs a path"):
        vecferry.connect("faiss:")


# -- writing ----------------------------------------------------------------------------------


def filled(tmp_path: Path) -> FaissStore:
    return write(tmp_path / "kb", records(10))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_without_neighbours_are_rejected_by_id(bad: float, tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.prepare(schema(), WriteMode.UPSERT)
    rows = random_vectors(4)
    rows[1, 3] = rows[3, 0] = bad
    batch = RecordBatch(ids=["a", "b", "c", "d"], vectors={"": DenseColumn(rows)})
    with pytest.raises(RejectedRecord, match="NaN") as caught:
        store.write(batch)
    assert caught.value.ids == ("b", "d")
    store.write(batch.take([0, 2]))
    store.finish()
    assert set(by_id(store)) == {f"r{i}" for i in range(10)} | {"a", "c"}


def test_records_without_a_vector_are_rejected_by_id(tmp_path: Path) -> None:
    store = FaissStore(tmp_path / "kb")
    store.prepare(schema(), WriteMode.UPSERT)
    column = DenseColumn(random_vectors(3), np.array([True, False, True]))
    with pytest.raises(RejectedRecord) as caught:
        store.write(RecordBatch(ids=[1, 2, 3], vectors={"": column}))
    assert caught.value.ids == (2,)
    with pytest.raises(RejectedRecord) as caught:
        store.write(RecordBatch(ids=[1, 2], texts=["a", "b"]))
    assert caught.value.ids == (1, 2)


def test_metadata_that_cannot_be_kept_is_rejected_by_id(tmp_path: Path) -> None:
    store = FaissStore(tmp_path / "kb")
    store.prepare(schema(), WriteMode.UPSERT)
    batch = RecordBatch(
        ids=[1, 2, 3], vectors={"": DenseColumn(random_vectors(3))}, metadata=[{}, {"x": object()}, {}]
    )
    with pytest.raises(RejectedRecord, match="/x") as caught:
        store.write(batch)
    assert caught.value.ids == (2,)
    store.write(batch.take([0, 2]))
    store.finish()
    assert store.count() == 2


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (VectorField(name="a", dim=4), VectorField(name="b", dim=4)),
        (VectorField(kind="sparse", metric="ip"),),
        (VectorField(dim=4, kind="multi"),),
        (VectorField(dim=8, metric="jaccard"),),
        (VectorField(dim=12, dtype="bit", metric="hamming"),),
        (VectorField(dim=16, dtype="bit", metric="l2"),),
        (VectorField(dim=16, metric="hamming"),),
    ],
)
def test_a_schema_that_no_index_holds_is_refused(fields: Any, tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatchError):
        FaissStore(tmp_path / "kb").prepare(CollectionSchema(fields=fields), WriteMode.CREATE)
    assert not (tmp_path / "kb").exists()


def test_vectors_of_another_dimension_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.prepare(schema(), WriteMode.UPSERT)
    with pytest.raises(SchemaMismatchError, match="16"):
        store.write(RecordBatch.from_records(records(2, dim=17)))
    store.close()
    assert FaissStore(tmp_path / "kb").count() == 10


@pytest.mark.parametrize("index", ["Nonsense", "IVF10,", "PQ7"])
def test_an_index_that_faiss_does_not_know_is_refused_before_writing(index: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="HNSW32"):
        FaissStore(tmp_path / "kb", index=index).prepare(schema(), WriteMode.CREATE)
    assert not list(tmp_path.iterdir())


def test_too_few_records_for_an_index_leave_the_target_as_it_was(tmp_path: Path) -> None:
    filled(tmp_path)
    store = FaissStore(tmp_path / "kb", index="IVF64,Flat")
    store.prepare(schema(), WriteMode.UPSERT)
    with pytest.raises(ConfigurationError, match="fewer lists"):
        store.finish()
    store.close()
    assert set(by_id(FaissStore(tmp_path / "kb"))) == {f"r{i}" for i in range(10)}


def test_a_file_or_a_folder_of_other_things_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    filled(tmp_path)
    (tmp_path / "kb" / "README.md").write_text("mine")
    for path, match in ((tmp_path / "notes", "diary"), (tmp_path / "kb", "README")):
        for mode in (WriteMode.CREATE, WriteMode.REPLACE, WriteMode.UPSERT):
            with pytest.raises(ConfigurationError, match=match):
                FaissStore(path).prepare(schema(), mode)
    with pytest.raises(ConfigurationError, match="folder"):
        FaissStore(tmp_path / "x.faiss").prepare(schema(), WriteMode.CREATE)
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("index", [None, "SQ8", "Flat"])
def test_a_lossy_index_is_not_changed_in_place(index: str | None, tmp_path: Path) -> None:
    write(tmp_path / "kb", records(100), index="SQ8")
    store = FaissStore(tmp_path / "kb", index=index)
    with pytest.raises(UnsupportedError, match="would lose more"):
        store.prepare(schema(), WriteMode.UPSERT)
    with pytest.raises(UnsupportedError, match="would lose more"):
        store.delete(["r1"])
    assert store.count() == 100


def test_create_refuses_what_is_there_in_any_layout(folder: Any) -> None:
    for name in ("langchain_faiss", "llamaindex_simple", "raw_faiss_pkl"):
        store = FaissStore(folder(name))
        with pytest.raises(TargetExistsError):
            store.prepare(schema(384), WriteMode.CREATE)
        assert store.count() == 200


def test_losses_of_the_chosen_index_are_announced() -> None:
    assert not FaissStore("x", index="HNSW32").capabilities().losses
    assert not FaissStore("x", index="IVF16,SQ8,RFlat").capabilities().losses
    for factory in ("PQ16", "IVF16,SQ8", "PCA32,Flat", "HNSW32_SQ8", "OPQ16,PQ16", "L2norm,Flat", "LSH"):
        assert FaissStore("x", index=factory).capabilities().losses, factory
    assert DType.BIT in FaissStore("x").capabilities().dtypes
    assert DType.BIT not in FaissStore("x", layout="langchain").capabilities().dtypes


def test_what_changes_its_form_in_a_layout_is_announced() -> None:
    langchain = FaissStore("x", layout="langchain").capabilities()
    assert langchain.id_types == {"str"} and langchain.metadata_types is None
    raw = FaissStore("x", layout="raw-json").capabilities()
    assert raw.id_types == {"int", "str"} and "datetime" not in (raw.metadata_types or ())
    plain = FaissStore("x").capabilities()
    assert "tuple" in plain.id_types and plain.metadata_types is None


def test_small_numbers_and_bits_come_back_in_their_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray[Any, Any]] = {
        "float16": rng.standard_normal((5, 16)).astype(np.float16),
        "int8": rng.integers(-128, 128, (5, 16)).astype(np.int8),
        "uint8": rng.integers(0, 256, (5, 16)).astype(np.uint8),
        "bit": rng.integers(0, 256, (5, 2)).astype(np.uint8),
    }
    for dtype, values in columns.items():
        metric = Metric.HAMMING if dtype == "bit" else Metric.L2
        store = FaissStore(tmp_path / dtype)
        store.prepare(schema(16, metric, dtype=dtype, name="v"), WriteMode.CREATE)
        store.write(RecordBatch(ids=list(range(5)), vectors={"v": DenseColumn(values)}))
        store.finish()
        (batch,) = FaissStore(tmp_path / dtype).scan()
        assert batch.vectors["v"].values.dtype == values.dtype
        assert np.array_equal(batch.vectors["v"].values, values)
    index = faiss.read_index_binary(str(tmp_path / "bit" / "index.faiss"))
    assert index.ntotal == 5 and np.array_equal(index.reconstruct(3), columns["bit"][3])


def test_an_empty_collection_is_one(tmp_path: Path) -> None:
    for layout in ("plain", "langchain", "llamaindex", "llamaindex-simple", "raw-json"):
        store = FaissStore(tmp_path / layout, layout=layout)
        store.prepare(schema(), WriteMode.CREATE)
        store.finish()
        assert store.count() == 0 and list(store.scan()) == [] and store.exists()
        assert store.describe().layout == layout
        assert store.search(np.zeros(16), 3) == [] if layout != "llamaindex-simple" else True


def test_the_dimension_may_come_with_the_first_record(tmp_path: Path) -> None:
    store = FaissStore(tmp_path / "kb")
    store.prepare(CollectionSchema(fields=(VectorField(metric="l2"),)), WriteMode.CREATE)
    store.write(RecordBatch.from_records([VectorRecord(id=1, vector=[1.0, 2.0])]))
    store.finish()
    assert FaissStore(tmp_path / "kb").describe().field().dim == 2
