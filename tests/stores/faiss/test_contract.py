"""The store contract for `faiss:`, looked behind with FAISS, pickle and json themselves."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import pytest

from vecferry.model import Metric
from vecferry.stores.faiss import FaissStore
from vecferry.testing import StoreContract, VendorView


class TestPlain(StoreContract):
    options: ClassVar[dict[str, Any]] = {}

    def open(self, folder: Path, name: str) -> FaissStore:
        return FaissStore(folder / name, **self.options)

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        index = faiss.read_index(str(store.target / "index.faiss"))
        lines = (store.target / "records.jsonl").read_text("utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        return dict(enumerate(map(VendorView, texts, index.reconstruct_n(0, index.ntotal))))


@pytest.mark.slow
class TestParquet(TestPlain):
    options: ClassVar[dict[str, Any]] = {"sidecar": "parquet"}

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        import pandas as pd

        index = faiss.read_index(str(store.target / "index.faiss"))
        texts = pd.read_parquet(store.target / "records.parquet")["text"]
        return dict(enumerate(map(VendorView, texts, index.reconstruct_n(0, index.ntotal))))


class TestHnswIp(TestPlain):
    options: ClassVar[dict[str, Any]] = {"index": "HNSW16"}
    metric = Metric.IP
    exact = False  # inner products find the record itself only at unit length


@pytest.mark.slow
class TestCosine(TestPlain):
    metric = Metric.COSINE


class TestIvf(TestPlain):
    options: ClassVar[dict[str, Any]] = {"index": "IVF2,Flat"}

    @pytest.mark.skip("two lists cannot be trained from one record, and a sequence may leave one")
    def test_any_sequence_of_writes_ends_as_a_dict_would(self, tmp_path: Path) -> None: ...

    def load(self, store: Any, records: Any, **schema: Any) -> Any:
        if len(records) < 2:
            store = FaissStore(store.target)
        return super().load(store, records, **schema)

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        index: Any = faiss.read_index(str(store.target / "index.faiss"))
        index.make_direct_map()
        lines = (store.target / "records.jsonl").read_text("utf-8").splitlines()
        rows = [index.reconstruct(i) for i in range(index.ntotal)]
        return {i: VendorView(json.loads(line)["text"], rows[i]) for i, line in enumerate(lines)}


class TestLangChain(StoreContract):
    def open(self, folder: Path, name: str) -> FaissStore:
        return FaissStore(folder / name, layout="langchain")

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        index = faiss.read_index(str(store.target / "index.faiss"))
        docstore, names = pickle.loads((store.target / "index.pkl").read_bytes())
        documents = [docstore.search(names[row]) for row in range(index.ntotal)]
        return {d.id: VendorView(d.page_content, index.reconstruct(i)) for i, d in enumerate(documents)}


class TestLlamaIndex(StoreContract):
    layout = "llamaindex"

    def open(self, folder: Path, name: str) -> FaissStore:
        return FaissStore(folder / name, layout=self.layout)

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        index = faiss.read_index(str(store.target / "default__vector_store.json"))
        nodes = json.loads((store.target / "docstore.json").read_text("utf-8"))["docstore/data"]
        found = {}
        for row, (name, node) in enumerate(nodes.items()):
            found[name] = VendorView(node["__data__"]["text"], index.reconstruct(row))
        return found


class TestLlamaIndexMap(TestLlamaIndex):
    layout = "llamaindex-map"


class TestLlamaIndexSimple(TestLlamaIndex):
    layout = "llamaindex-simple"
    metric = Metric.COSINE

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        vectors = json.loads((store.target / "default__vector_store.json").read_text("utf-8"))
        nodes = json.loads((store.target / "docstore.json").read_text("utf-8"))["docstore/data"]
        embeddings = vectors["embedding_dict"]
        return {
            name: VendorView(node["__data__"]["text"], np.array(embeddings[name], np.float32))
            for name, node in nodes.items()
        }


class TestRawPickle(StoreContract):
    def open(self, folder: Path, name: str) -> FaissStore:
        return FaissStore(folder / name, layout="raw-pkl")

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        index = faiss.read_index(str(store.target / "faiss.index"))
        rows = pickle.loads((store.target / "metadata.pkl").read_bytes())
        return {i: VendorView(row["text"], index.reconstruct(i)) for i, row in enumerate(rows)}


class TestRawJson(StoreContract):
    def open(self, folder: Path, name: str) -> FaissStore:
        return FaissStore(folder / name, layout="raw-json")

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        index = faiss.read_index(str(store.target / "faiss.index"))
        rows = json.loads((store.target / "metadata.json").read_bytes())
        return {i: VendorView(row["text"], index.reconstruct(i)) for i, row in enumerate(rows)}


@pytest.mark.slow
class TestRawJsonl(TestRawJson):
    def open(self, folder: Path, name: str) -> FaissStore:
        return FaissStore(folder / name, layout="raw-jsonl")

    def vendor_view(self, store: FaissStore) -> dict[Any, VendorView]:
        index = faiss.read_index(str(store.target / "faiss.index"))
        rows = list(map(json.loads, (store.target / "metadata.jsonl").read_text("utf-8").splitlines()))
        return {i: VendorView(row["text"], index.reconstruct(i)) for i, row in enumerate(rows)}
