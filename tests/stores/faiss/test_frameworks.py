"""Folders that vecferry writes are opened by LangChain and LlamaIndex themselves, and find the same."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from llama_index.core import StorageContext, load_index_from_storage
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import NodeRelationship, QueryBundle, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore, VectorStoreQuery
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.faiss.map_store import FaissMapVectorStore

from known import some
from stores.faiss.support import SAMPLES, by_id, records, schema, truth, write
from vecferry.model import Metric, VectorRecord
from vecferry.stores.faiss import FaissStore

TRUTH = {doc["text"]: doc for doc in truth()}
QUERIES = [3, 77, 150]


class KnownVectors(Embeddings):  # type: ignore[misc]
    """The sample texts' own vectors: no model, no network."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [TRUTH[text]["vector"].tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(x) for x in TRUTH[text]["vector"]]


class LlamaVectors(BaseEmbedding):  # type: ignore[misc]
    def _get_query_embedding(self, query: str) -> list[float]:
        return [float(x) for x in TRUTH[query]["vector"]]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)


def copy(source: str, target: Path, **options: Any) -> FaissStore:
    rows = [record for batch in FaissStore(SAMPLES / source).scan() for record in batch.records()]
    return write(target, rows, FaissStore(SAMPLES / source).describe(), **options)


def neighbours(row: int, k: int = 5) -> list[str]:
    """The ids nearest to a sample, by brute force over the truth."""
    documents = truth()
    vectors = np.stack([doc["vector"] for doc in documents])
    order = np.argsort(-(vectors @ vectors[row]), kind="stable")
    return [documents[i]["id"] for i in order[:k]]


def open_langchain(folder: Path) -> FAISS:
    return FAISS.load_local(str(folder), KnownVectors(), allow_dangerous_deserialization=True)


@pytest.mark.parametrize("source", ["langchain_faiss", "langchain_faiss_0_0_200", "llamaindex_simple"])
@pytest.mark.parametrize("index", ["Flat", "HNSW16", "IVF4,Flat"])
def test_langchain_opens_the_folder_and_finds_the_same(source: str, index: str, tmp_path: Path) -> None:
    copy(source, tmp_path / "kb", layout="langchain", index=index)
    store = open_langchain(tmp_path / "kb")
    if index.startswith("IVF"):
        store.index.nprobe = 4
    for row in QUERIES:
        wanted = truth()[row]
        hits = store.similarity_search_with_score(wanted["text"], k=5)
        assert [document.id for document, _ in hits] == neighbours(row)
        first = hits[0][0]
        assert first.page_content == wanted["text"] and hits[0][1] == pytest.approx(0, abs=1e-5)
        assert {k: v for k, v in first.metadata.items() if k != "_llamaindex"} == wanted["metadata"]


def test_langchain_can_go_on_with_the_folder_and_we_with_its_changes(tmp_path: Path) -> None:
    copy("langchain_faiss", tmp_path / "kb", layout="langchain")
    store = open_langchain(tmp_path / "kb")
    wanted = truth()[0]
    vector = wanted["vector"].tolist()
    store.add_embeddings([("a new text", vector)], metadatas=[{"when": datetime(2026, 1, 1)}], ids=["new"])
    store.delete([truth()[9]["id"]])
    store.save_local(str(tmp_path / "kb"))
    found = by_id(FaissStore(tmp_path / "kb"))
    assert len(found) == 200 and truth()[9]["id"] not in found
    assert found["new"].metadata == {"when": datetime(2026, 1, 1)}
    assert some(found[truth()[10]["id"]].vector).tolist() == truth()[10]["vector"].tolist()


def test_what_langchain_put_in_the_place_of_ours_is_read_as_what_it_is(tmp_path: Path) -> None:
    rows = [VectorRecord(id=f"r{i}", vector=np.arange(8, dtype=np.int8) + i) for i in range(4)]
    wanted = schema(8, Metric.COSINE, dtype="int8")
    assert write(tmp_path / "kb", rows, wanted, layout="langchain").describe().fields[0].dtype == "int8"
    store = open_langchain(tmp_path / "kb")
    store.add_embeddings([("new", [0.5] * 8)], ids=["new"])
    store.save_local(str(tmp_path / "kb"))
    assert some(by_id(FaissStore(tmp_path / "kb"))["new"].vector).tolist() == [0.5] * 8
    FAISS.from_embeddings(
        [("other", [0.5] * 8)], KnownVectors(), distance_strategy=DistanceStrategy.MAX_INNER_PRODUCT
    ).save_local(str(tmp_path / "kb"))
    assert FaissStore(tmp_path / "kb").describe().fields[0].metric == "ip"


def test_documents_that_langchain_numbers_keep_their_numbers(tmp_path: Path) -> None:
    pairs = [(f"text {i}", [float(i)] * 8) for i in range(3)]
    numbers: Any = [30, 10, 20]  # LangChain takes them, whatever its annotation says
    FAISS.from_embeddings(pairs, KnownVectors(), ids=numbers).save_local(str(tmp_path / "kb"))
    found = by_id(FaissStore(tmp_path / "kb"))
    assert {id_: record.text for id_, record in found.items()} == {30: "text 0", 10: "text 1", 20: "text 2"}


def test_langchain_sees_typed_metadata_and_strange_ids(tmp_path: Path) -> None:
    metadata = {
        "when": datetime(2026, 1, 1, tzinfo=UTC),
        "price": Decimal("1.5"),
        "id": UUID(int=3),
        "b": b"x",
    }
    rows = [
        VectorRecord(id=7, text="int", vector=[1.0, 0.0], metadata=metadata),
        VectorRecord(id=UUID(int=5), text=None, vector=[0.0, 1.0]),
        VectorRecord(id=("a", 1), text="tuple", vector=[1.0, 1.0]),
    ]
    write(tmp_path / "kb", rows, schema(2), layout="langchain")
    store = FAISS.load_local(str(tmp_path / "kb"), KnownVectors(), allow_dangerous_deserialization=True)
    documents: Any = vars(store.docstore)["_dict"]
    assert all(isinstance(document, Document) for document in documents.values())
    by_text = {document.page_content: document for document in documents.values()}
    assert {k: by_text["int"].metadata[k] for k in metadata} == metadata
    assert str(UUID(int=5)) in documents and by_text[""].id == str(UUID(int=5))
    assert by_id(FaissStore(tmp_path / "kb")) == {row.id: row for row in rows}


@pytest.mark.parametrize("layout", ["llamaindex", "llamaindex-map", "llamaindex-simple"])
@pytest.mark.parametrize("source", ["llamaindex_faiss", "langchain_faiss_0_2"])
def test_llamaindex_opens_the_folder_and_finds_the_same(source: str, layout: str, tmp_path: Path) -> None:
    copy(source, tmp_path / "kb", layout=layout)
    opened = open_llamaindex(tmp_path / "kb", layout)
    index = load_index_from_storage(opened, embed_model=LlamaVectors())
    retriever = index.as_retriever(similarity_top_k=5)
    for row in QUERIES:
        wanted = truth()[row]
        hits = retriever.retrieve(QueryBundle(wanted["text"], embedding=wanted["vector"].tolist()))
        assert [hit.node.node_id for hit in hits] == neighbours(row)
        assert hits[0].node.get_content() == wanted["text"]
        assert hits[0].node.metadata == wanted["metadata"]
        related = f"src-{wanted['metadata']['source']}" if source == "llamaindex_faiss" else None
        assert hits[0].node.ref_doc_id == related
    docstore = opened.docstore
    node = docstore.get_node(truth()[0]["id"])
    assert docstore.get_document_hash(node.node_id) == node.hash
    if source == "llamaindex_faiss":
        info = docstore.get_all_ref_doc_info()
        assert len(info) == 40 and all(len(entry.node_ids) == 5 for entry in info.values())


def open_llamaindex(folder: Path, layout: str) -> StorageContext:
    kinds = {
        "llamaindex": FaissVectorStore,
        "llamaindex-map": FaissMapVectorStore,
        "llamaindex-simple": SimpleVectorStore,
    }
    store = kinds[layout].from_persist_dir(str(folder))
    return StorageContext.from_defaults(vector_store=store, persist_dir=str(folder))


def test_llamaindex_goes_on_with_the_map_and_we_tell_shared_numbers_apart(tmp_path: Path) -> None:
    """FaissMapVectorStore numbers by size: after a deletion it gives a number a second time."""
    rows = records(5, 4)
    write(tmp_path / "kb", rows, schema(4), layout="llamaindex-map")
    context = open_llamaindex(tmp_path / "kb", "llamaindex-map")
    context.vector_store.delete_nodes(["r1"])
    nodes = [TextNode(id_=f"new{i}", text=f"new {i}", embedding=[float(i)] * 4) for i in range(2)]
    context.vector_store.add(nodes)
    context.docstore.add_documents(nodes)
    context.docstore.delete_document("r1")
    context.persist(str(tmp_path / "kb"))
    context.vector_store.persist(str(tmp_path / "kb" / "default__vector_store.json"))
    numbers = context.vector_store._node_id_to_faiss_id_map
    assert numbers["new0"] == numbers["r4"], "else this test tests nothing"
    found = by_id(FaissStore(tmp_path / "kb"))
    assert set(found) == {"r0", "r2", "r3", "r4", "new0", "new1"}
    assert some(found["r4"].vector).tolist() == some(rows[4].vector).tolist()
    assert (
        some(found["new0"].vector).tolist() == [0.0] * 4
        and some(found["new1"].vector).tolist() == [1.0] * 4
    )


def test_relations_between_nodes_survive(tmp_path: Path) -> None:
    relations = {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"file": "a.md"}),
        NodeRelationship.NEXT: RelatedNodeInfo(node_id="b"),
    }
    node = TextNode(
        id_="a",
        text="hello",
        embedding=[1.0, 0.0],
        metadata={"k": 1},
        relationships=relations,
        start_char_idx=3,
        excluded_llm_metadata_keys=["k"],
    )
    store = SimpleVectorStore()
    store.add([node])
    context = StorageContext.from_defaults(vector_store=store)
    context.docstore.add_documents([node.model_copy(update={"embedding": None})])
    context.persist(str(tmp_path / "source"))
    rows = [r for batch in FaissStore(tmp_path / "source").scan() for r in batch.records()]
    assert rows[0].metadata["_llamaindex"]["ref_doc_id"] == "doc"
    for layout in ("llamaindex", "llamaindex-map", "llamaindex-simple"):
        write(tmp_path / layout, rows, schema(2, Metric.COSINE), layout=layout)
        back = open_llamaindex(tmp_path / layout, layout).docstore.get_node("a")
        assert back.relationships == relations and back.start_char_idx == 3
        assert back.excluded_llm_metadata_keys == ["k"] and back.metadata == {"k": 1}


def test_the_envelope_never_reaches_a_prompt(tmp_path: Path) -> None:
    row = VectorRecord(id=7, text="t", vector=[1.0, 0.0], metadata={"when": datetime(2026, 1, 1)})
    write(tmp_path / "kb", [row], schema(2), layout="llamaindex")
    (node,) = open_llamaindex(tmp_path / "kb", "llamaindex").docstore.docs.values()
    assert "_vecferry" in node.metadata
    assert "_vecferry" not in node.get_content("llm") + node.get_content("embed")
    assert by_id(FaissStore(tmp_path / "kb")) == {7: row}


def test_a_query_to_the_simple_store_ranks_as_ours_does(tmp_path: Path) -> None:
    copy("llamaindex_simple", tmp_path / "kb", layout="llamaindex-simple")
    theirs = SimpleVectorStore.from_persist_dir(str(tmp_path / "kb"))
    query = truth()[5]["vector"]
    found = theirs.query(VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=5))
    ours = FaissStore(tmp_path / "kb").search(query, 5)
    assert [hit.id for hit in ours] == found.ids
    np.testing.assert_allclose([some(hit.score) for hit in ours], found.similarities, atol=1e-5)
