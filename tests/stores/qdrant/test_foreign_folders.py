"""A folder from somebody else: its points are pickles, and reading them runs nothing."""

from __future__ import annotations

import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

import vecferry as vf
from vecferry.errors import CorruptDataError, UnsafePickleError
from vecferry.stores.qdrant.folder import _OPEN


class Bomb:
    """Makes a file when it is read by Python."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    client = QdrantClient(path=str(tmp_path / "db"))
    client.create_collection(
        "kb",
        {"d": models.VectorParams(size=3, distance=models.Distance.DOT)},
        sparse_vectors_config={"s": models.SparseVectorParams()},
    )
    client.create_collection("other", models.VectorParams(size=2, distance=models.Distance.COSINE))
    sparse = models.SparseVector(indices=[1, 7], values=[0.5, 1.5])
    vectors: Any = {"d": [1.0, 2.0, 3.0], "s": sparse}
    payload = {"a": [1, 2.5, None, {"b": True}], "text": "ä"}
    client.upsert("kb", [models.PointStruct(id=1, vector=vectors, payload=payload)])
    client.upsert("kb", [models.PointStruct(id=2, vector={"d": [0.0, 0.0, 1.0]}, payload={})])
    client.close()
    return tmp_path / "db"


def put(folder: Path, blob: bytes, collection: str = "kb") -> None:
    with sqlite3.connect(folder / "collection" / collection / "storage.sqlite") as file:
        file.execute("insert into points values ('gANLCS4=', ?)", (blob,))
    file.close()


def test_an_honest_folder_is_read_whole(folder: Path) -> None:
    with vf.connect(f"qdrant:{folder}#kb") as there:
        one, two = there.records()
    assert (one.id, one.text, one.metadata) == (1, "ä", {"a": [1, 2.5, None, {"b": True}]})
    assert one.vectors["d"].tolist() == [1.0, 2.0, 3.0]
    assert one.sparse_vectors["s"].indices.tolist() == [1, 7]
    assert two.vectors["d"].tolist() == [0.0, 0.0, 1.0] and not two.sparse_vectors


@pytest.mark.parametrize("collection", ["kb", "other"])
def test_a_point_that_runs_something_is_refused_unrun(
    folder: Path, tmp_path: Path, collection: str
) -> None:
    canary = tmp_path / "canary"
    bomb: Any = Bomb(canary)
    put(folder, pickle.dumps(models.PointStruct.model_construct(id=9, vector=bomb)), collection)
    with vf.connect(f"qdrant:{folder}#{collection}") as there:
        for read in (there.describe, lambda: list(there.scan()), lambda: there.fetch([9])):
            with pytest.raises(UnsafePickleError):
                read()
    with pytest.raises(UnsafePickleError), vf.connect(f"qdrant:{folder}#kb") as there:
        there.write([{"id": 3, "vectors": {"d": [1, 2, 3]}}])  # the client loads every collection
    assert not canary.exists()
    assert str(folder.resolve()) not in _OPEN, "nothing stays open"


def test_two_readings_of_one_pickle_do_not_differ(folder: Path, tmp_path: Path) -> None:
    """Python counts memo entries, others count puts: what one takes for a set is a call for the other."""
    canary = str(tmp_path / "canary").encode()
    blob = (
        b"\x80\x04\x8c\x08builtins\x94\x8c\x03setq\x00q\x00\x8c\x02os\x94\x8c\x05mkdir\x940000"
        b"h\x02h\x03\x93\x8c" + bytes([len(canary)]) + canary + b"\x85R."
    )
    put(folder, blob)
    with pytest.raises((UnsafePickleError, CorruptDataError)), vf.connect(f"qdrant:{folder}#kb") as there:
        there.describe()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("blob", [b"", b"junk", pickle.dumps(7), pickle.dumps({"vector": 1}), b"\x80\x04."])
def test_what_is_no_point_is_named(folder: Path, blob: bytes) -> None:
    put(folder, blob)
    with (
        pytest.raises(CorruptDataError, match=r"folder|truncated"),
        vf.connect(f"qdrant:{folder}#kb") as there,
    ):
        there.describe()
