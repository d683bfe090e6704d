"""What hand-written scripts leave beside an index, in the shapes that occur."""

from __future__ import annotations

import json
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from known import some
from stores.faiss.support import by_id, random_vectors
from vecferry.errors import CorruptDataError
from vecferry.stores.faiss import FaissStore

VECTORS = random_vectors(4, 8)
OWN = [70, 20, 50, 10]
TEXTS = ["a", "b", "c", "d"]
ROWS: list[dict[str, Any]] = [{"text": text, "n": i} for i, text in enumerate(TEXTS)]


def lay(
    folder: Path, rows: Any, kind: str = "json", ids: list[int] | None = None, factory: str = "Flat"
) -> Path:
    index = faiss.index_factory(8, factory)
    index.train(VECTORS)
    index.add(VECTORS) if ids is None else index.add_with_ids(VECTORS, np.array(ids))
    faiss.write_index(index, str(folder / "faiss.index"))
    if kind == "pkl":
        (folder / "metadata.pkl").write_bytes(pickle.dumps(rows))
    elif kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        (folder / "metadata.json").write_text(json.dumps(rows, indent=2))
    return folder


def found(folder: Path) -> dict[Any, tuple[str | None, dict[str, Any], list[float]]]:
    return {k: (r.text, r.metadata, some(r.vector).tolist()) for k, r in by_id(FaissStore(folder)).items()}


def wanted(ids: list[Any]) -> dict[Any, Any]:
    return {id_: (TEXTS[i], {"n": i}, VECTORS[i].tolist()) for i, id_ in enumerate(ids)}


@pytest.mark.parametrize("kind", ["json", "jsonl", "pkl"])
def test_a_list_of_dicts_without_ids_is_numbered(kind: str, tmp_path: Path) -> None:
    assert found(lay(tmp_path, ROWS, kind)) == wanted([0, 1, 2, 3])
    assert FaissStore(tmp_path).describe().layout == f"raw-{kind}"


@pytest.mark.parametrize("key", ["id", "_id"])
def test_ids_in_the_rows_are_the_ids(key: str, tmp_path: Path) -> None:
    rows = [{key: f"x{i}", **row} for i, row in enumerate(ROWS)]
    assert found(lay(tmp_path, rows)) == wanted(["x0", "x1", "x2", "x3"])


def test_ids_that_stand_twice_stay_ids_unless_row_numbers_are_asked_for(tmp_path: Path) -> None:
    rows = [{"id": f"x{i // 2}", **row} for i, row in enumerate(ROWS)]
    lay(tmp_path, rows)
    store = FaissStore(tmp_path)
    assert [id_ for batch in store.scan() for id_ in batch.id_list] == ["x0", "x0", "x1", "x1"]
    assert not store.describe().ids_unique
    got = by_id(FaissStore(tmp_path, id="row"))
    assert list(got) == [0, 1, 2, 3] and [r.metadata["id"] for r in got.values()] == [
        "x0",
        "x0",
        "x1",
        "x1",
    ]


@pytest.mark.parametrize("kind", ["json", "pkl"])
def test_a_dict_by_row_may_stand_in_any_order(kind: str, tmp_path: Path) -> None:
    rows = {(str(i) if kind == "json" else i): ROWS[i] for i in (2, 0, 3, 1)}
    assert found(lay(tmp_path, rows, kind)) == wanted([0, 1, 2, 3])


def test_a_dict_by_the_index_own_numbers(tmp_path: Path) -> None:
    rows = {str(number): ROWS[i] for i, number in enumerate(OWN)}
    assert found(lay(tmp_path, rows, ids=OWN, factory="IDMap2,Flat")) == wanted([70, 20, 50, 10])


def test_a_dict_by_the_numbers_of_an_ivf(tmp_path: Path) -> None:
    rows = {str(number): ROWS[i] for i, number in enumerate(OWN)}
    assert found(lay(tmp_path, rows, ids=OWN, factory="IVF2,Flat")) == wanted(OWN)


def test_a_list_beside_own_numbers_follows_the_order_of_adding(tmp_path: Path) -> None:
    assert found(lay(tmp_path, ROWS, ids=OWN, factory="IDMap,Flat")) == wanted([70, 20, 50, 10])


def test_a_list_beside_an_ivf_with_own_numbers_is_not_guessed_at(tmp_path: Path) -> None:
    lay(tmp_path, ROWS, ids=OWN, factory="IVF2,Flat")
    with pytest.raises(CorruptDataError, match="keyed by these numbers"):
        found(tmp_path)


def test_a_dict_by_id_is_in_row_order(tmp_path: Path) -> None:
    rows = {f"doc-{i}": row for i, row in enumerate(ROWS)}
    assert found(lay(tmp_path, rows)) == wanted([f"doc-{i}" for i in range(4)])


def test_a_list_of_texts(tmp_path: Path) -> None:
    got = found(lay(tmp_path, TEXTS, "pkl"))
    assert [(text, metadata) for text, metadata, _ in got.values()] == [(text, {}) for text in TEXTS]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("rows", [ROWS, TEXTS, np.array(TEXTS)], ids=["dicts", "texts", "array"])
def test_a_list_is_read_in_every_protocol(rows: Any, protocol: int, tmp_path: Path) -> None:
    lay(tmp_path, [])
    (tmp_path / "metadata.json").rename(tmp_path / "metadata.pkl")
    (tmp_path / "metadata.pkl").write_bytes(pickle.dumps(rows, protocol))
    assert [text for text, _, _ in found(tmp_path).values()] == TEXTS


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_records(kind: str, tmp_path: Path) -> None:
    path = lay(tmp_path, ROWS, kind) / f"metadata.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert found(tmp_path) == wanted([0, 1, 2, 3])


@pytest.mark.parametrize(
    "rows", [[{"v": timedelta(1)}] * 4, {"x": {"v": timedelta(1)}, **dict.fromkeys("abc")}]
)
def test_a_value_that_no_record_can_have_is_named(rows: Any, tmp_path: Path) -> None:
    lay(tmp_path, rows, "pkl")
    with pytest.raises(CorruptDataError, match=r"record 0 .*/v is a timedelta.*text or numbers"):
        found(tmp_path)


def test_numbers_that_no_index_has_are_named(tmp_path: Path) -> None:
    lay(tmp_path, {str(2**70 + i): row for i, row in enumerate(ROWS)})
    with pytest.raises(CorruptDataError, match=r"beyond 64 bits.*as a list"):
        found(tmp_path)


@pytest.mark.parametrize("key", ["text", "page_content", "content", "document", "chunk"])
def test_the_text_has_many_names_and_metadata_may_be_nested(key: str, tmp_path: Path) -> None:
    rows = [{key: text, "metadata": {"n": i}} for i, text in enumerate(TEXTS)]
    assert found(lay(tmp_path, rows)) == wanted([0, 1, 2, 3])


@pytest.mark.parametrize("rows", [3, "text", [1, 2, 3, 4], {"a": 1}])
@pytest.mark.parametrize("kind", ["json", "pkl"])
def test_anything_else_is_named(rows: Any, kind: str, tmp_path: Path) -> None:
    lay(tmp_path, rows, kind)
    with pytest.raises(CorruptDataError, match="metadata"):
        found(tmp_path)


def test_metadata_with_the_keys_of_a_row_survives_being_written(tmp_path: Path) -> None:
    from stores.faiss.support import schema, write
    from vecferry.model import VectorRecord

    tricky: list[dict[str, Any]] = [{"id": 1}, {"text": "x"}, {"metadata": {"a": 1}}, {}]
    tricky.append({"page_content": "y", "_id": None})
    rows = [VectorRecord(id=i, text=None, vector=[1.0, float(i)], metadata=m) for i, m in enumerate(tricky)]
    for layout in ("raw-pkl", "raw-json", "raw-jsonl"):
        write(tmp_path / layout, rows, schema(2), layout=layout)
        assert by_id(FaissStore(tmp_path / layout)) == {row.id: row for row in rows}


@pytest.mark.parametrize("kind", ["json", "jsonl", "pkl"])
def test_integers_beyond_64_bits_are_exact(kind: str, tmp_path: Path) -> None:
    rows = [{"id": 2**70 + i, "n": {"deep": -(2**65) - i}} for i in range(4)]
    records = by_id(FaissStore(lay(tmp_path, rows, kind)))
    assert {id_: record.metadata for id_, record in records.items()} == {
        r["id"]: {"n": r["n"]} for r in rows
    }
