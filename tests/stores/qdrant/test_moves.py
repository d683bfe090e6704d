"""Folders that the frameworks saved, moved to Qdrant, and asked the same questions before and after."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_qdrant import QdrantVectorStore as LangChainStore
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import QueryBundle
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaStore
from qdrant_client import QdrantClient

import vecferry as vf

SAMPLES = Path(__file__).parents[2] / "data" / "faiss_samples"
VECTORS = np.load(SAMPLES / "embeddings.npy")
QUERIES = VECTORS[[3, 77, 150]] + np.random.default_rng(0).normal(scale=0.02, size=(3, VECTORS.shape[1]))
DIM = VECTORS.shape[1]


def move(sample: str, target: Path, layout: str) -> QdrantClient:
    """Both metrics rank unit vectors alike; the frameworks expect cosine in Qdrant."""
    report = vf.migrate(
        f"faiss:{SAMPLES / sample}",
        f"qdrant:{target / 'db'}?layout={layout}#kb",
        metric="cosine",
        state_dir=target / "jobs",
    )
    report.check()
    assert report.written == 200
    return QdrantClient(path=str(target / "db"))


@pytest.mark.parametrize("layout", ["langchain", "both"])
def test_a_langchain_folder_answers_the_same_in_qdrant(tmp_path: Path, layout: str) -> None:
    model = DeterministicFakeEmbedding(size=DIM)
    folder = FAISS.load_local(str(SAMPLES / "langchain_faiss"), model, allow_dangerous_deserialization=True)
    before = [folder.similarity_search_by_vector(q.tolist(), k=5) for q in QUERIES]
    client = move("langchain_faiss", tmp_path, layout)
    app = LangChainStore(client=client, collection_name="kb", embedding=model)
    after = [app.similarity_search_by_vector(q.tolist(), k=5) for q in QUERIES]
    assert [texts(hits) for hits in after] == [texts(hits) for hits in before]
    for went, came in zip(chain(*before), chain(*after), strict=True):
        own = {k: v for k, v in came.metadata.items() if k not in ("_id", "_collection_name")}
        assert own == went.metadata
    client.close()


def texts(documents: list[Any]) -> list[str]:
    return [document.page_content for document in documents]


@pytest.mark.parametrize("sample", ["llamaindex_faiss", "llamaindex_simple"])
@pytest.mark.parametrize("layout", ["llamaindex", "both"])
def test_a_llamaindex_folder_answers_the_same_in_qdrant(tmp_path: Path, sample: str, layout: str) -> None:
    model = MockEmbedding(embed_dim=DIM)
    folder = str(SAMPLES / sample)
    store = FaissVectorStore.from_persist_dir(folder) if sample == "llamaindex_faiss" else None
    context = StorageContext.from_defaults(vector_store=store, persist_dir=folder)
    before = ask(load_index_from_storage(context, embed_model=model))
    client = move(sample, tmp_path, layout)
    app = LlamaStore(collection_name="kb", client=client)
    after = ask(VectorStoreIndex.from_vector_store(app, embed_model=model))
    assert after == before
    client.close()


def ask(index: Any) -> list[list[tuple[str, str, str | None, dict[str, Any]]]]:
    retriever = index.as_retriever(similarity_top_k=5)
    answers = []
    for query in QUERIES:
        hits = retriever.retrieve(QueryBundle(query_str="", embedding=query.tolist()))
        nodes = [hit.node for hit in hits]
        answers.append([(n.node_id, n.get_content(), n.ref_doc_id, n.metadata) for n in nodes])
    return answers
