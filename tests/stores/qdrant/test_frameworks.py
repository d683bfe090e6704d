"""Collections that LangChain and LlamaIndex wrote are read; what is written opens in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore as LangChainStore
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaStore
from qdrant_client import QdrantClient, models

from vecferry.layouts.llamaindex import NODE_KEY
from vecferry.model import CollectionSchema, VectorField, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.connection import Address

from .conftest import fill, read, vectors

DIM, ROWS = 16, 30
VECTORS = vectors(ROWS, dim=DIM, seed=5)
QUERIES = vectors(4, dim=DIM, seed=6)
TEXTS = [f"note {i} – 안녕" for i in range(ROWS)]


class Known(Embeddings):  # type: ignore[misc]
    """The i-th text has the i-th vector; no model, no network."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [VECTORS[TEXTS.index(text)].tolist() if text in TEXTS else [1.0] * DIM for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def store_at(path: Path, collection: str, **options: Any) -> QdrantStore:
    return QdrantStore(Address(path=str(path)), collection, **options)


def copy(source: QdrantStore, target: QdrantStore) -> None:
    """As a migration does: what is described is prepared, what is read is written."""
    target.prepare(source.describe(), WriteMode.CREATE)
    for batch in source.scan(batch_size=7):
        target.write(batch)
    target.finish()
    source.close()
    target.close()


# -- LangChain ----------------------------------------------------------------------------------


def langchain_answers(path: Path, collection: str) -> list[list[tuple[str, dict[str, Any], float]]]:
    client = QdrantClient(path=str(path))
    app = LangChainStore(client=client, collection_name=collection, embedding=Known())
    answers = []
    for query in QUERIES:
        hits = app.similarity_search_with_score_by_vector(query.tolist(), k=5)
        answers.append([(d.page_content, own(d.metadata), round(score, 5)) for d, score in hits])
    filtered = app.similarity_search_by_vector(
        QUERIES[0].tolist(),
        k=5,
        filter=models.Filter(
            must=[models.FieldCondition(key="metadata.topic", match=models.MatchValue(value="t1"))]
        ),
    )
    answers.append([(d.page_content, own(d.metadata), 0.0) for d in filtered])
    client.close()
    return answers


def own(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in ("_id", "_collection_name")}


@pytest.fixture
def langchain(tmp_path: Path) -> Path:
    """A collection written by LangChain."""
    client = QdrantClient(path=str(tmp_path / "lc"))
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("app", params)
    app = LangChainStore(client=client, collection_name="app", embedding=Known())
    app.add_documents(
        [
            Document(page_content=text, metadata={"topic": f"t{i % 3}", "nested": {"i": i}})
            for i, text in enumerate(TEXTS)
        ]
    )
    client.close()
    return tmp_path / "lc"


@pytest.mark.parametrize("layout", [None, "langchain", "both"])
def test_langchain_finds_the_same_after_a_move(langchain: Path, tmp_path: Path, layout: str | None) -> None:
    before = langchain_answers(langchain, "app")
    copy(store_at(langchain, "app"), store_at(tmp_path / "new", "moved", layout=layout))
    assert langchain_answers(tmp_path / "new", "moved") == before


def test_a_langchain_collection_is_recognised(langchain: Path) -> None:
    store = store_at(langchain, "app")
    described = store.describe()
    found = {record.text: record for record in read(store)}
    store.close()
    assert (described.layout, described.id_type, described.metadata_types["topic"]) == (
        "langchain",
        "uuid",
        "str",
    )
    assert found[TEXTS[4]].metadata == {"topic": "t1", "nested": {"i": 4}}
    assert isinstance(found[TEXTS[4]].id, UUID)


def test_langchain_can_go_on_with_what_was_moved(langchain: Path, tmp_path: Path) -> None:
    copy(store_at(langchain, "app"), store_at(tmp_path / "new", "moved"))
    client = QdrantClient(path=str(tmp_path / "new"))
    app = LangChainStore(client=client, collection_name="moved", embedding=Known())
    first = app.similarity_search_with_score_by_vector(VECTORS[3].tolist(), k=1)[0][0]
    assert first.page_content == TEXTS[3]
    app.delete([first.metadata["_id"]])
    assert app.similarity_search_by_vector(VECTORS[3].tolist(), k=1)[0].page_content != TEXTS[3]
    client.close()


def test_records_of_any_kind_open_in_langchain(tmp_path: Path) -> None:
    rows = [
        VectorRecord(id=f"doc/{i}", text=TEXTS[i] if i else None, vector=VECTORS[i], metadata={"i": i})
        for i in range(5)
    ]
    like = CollectionSchema(fields=(VectorField(dim=DIM),), id_type="str")
    store = fill(store_at(tmp_path, "c", layout="langchain"), rows, like)
    assert sorted(r.id for r in read(store)) == [f"doc/{i}" for i in range(5)]
    assert {r.id: r.text for r in read(store)}["doc/0"] is None
    store.close()
    client = QdrantClient(path=str(tmp_path))
    app = LangChainStore(client=client, collection_name="c", embedding=Known())
    (hit,) = app.similarity_search(TEXTS[2], k=1)
    assert (hit.page_content, own(hit.metadata)) == (TEXTS[2], {"i": 2})
    client.close()


# -- LlamaIndex ---------------------------------------------------------------------------------


def llama_nodes() -> list[TextNode]:
    nodes = []
    for i, text in enumerate(TEXTS):
        node = TextNode(
            id_=str(UUID(int=i + 1)),
            text=text,
            metadata={"topic": f"t{i % 3}"},
            embedding=VECTORS[i].tolist(),
            start_char_idx=10 * i,
        )
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{i // 10}")
        if i:
            node.relationships[NodeRelationship.PREVIOUS] = RelatedNodeInfo(node_id=str(UUID(int=i)))
        nodes.append(node)
    return nodes


def llama_answers(path: Path, collection: str) -> list[Any]:
    client = QdrantClient(path=str(path))
    app = LlamaStore(collection_name=collection, client=client)
    topic = MetadataFilters(filters=[MetadataFilter(key="topic", value="t1")])
    asked = [VectorStoreQuery(query_embedding=q.tolist(), similarity_top_k=5) for q in QUERIES]
    asked.append(VectorStoreQuery(QUERIES[0].tolist(), similarity_top_k=5, filters=topic))
    asked.append(VectorStoreQuery(QUERIES[0].tolist(), similarity_top_k=5, doc_ids=["doc-1"]))
    answers = []
    for query in asked:
        found = app.query(query)
        nodes = [node.model_copy(update={"embedding": None}) for node in found.nodes]
        answers.append([(n, round(s, 5)) for n, s in zip(nodes, found.similarities, strict=True)])
    client.close()
    return answers


@pytest.fixture
def llamaindex(tmp_path: Path) -> Path:
    """A collection written by LlamaIndex."""
    client = QdrantClient(path=str(tmp_path / "li"))
    LlamaStore(collection_name="app", client=client).add(llama_nodes())
    client.close()
    return tmp_path / "li"


@pytest.mark.parametrize("layout", [None, "llamaindex", "both"])
def test_llamaindex_finds_the_same_after_a_move(
    llamaindex: Path, tmp_path: Path, layout: str | None
) -> None:
    before = llama_answers(llamaindex, "app")
    copy(store_at(llamaindex, "app"), store_at(tmp_path / "new", "moved", layout=layout))
    assert llama_answers(tmp_path / "new", "moved") == before


def test_a_llamaindex_collection_is_recognised_with_its_relations(llamaindex: Path) -> None:
    store = store_at(llamaindex, "app")
    described = store.describe()
    found = {record.text: record for record in read(store)}
    store.close()
    assert (described.layout, described.id_type) == ("llamaindex", "str")
    assert [f.dim for f in described.fields] == [DIM]
    record = found[TEXTS[12]]
    assert record.id == str(UUID(int=13))
    assert record.metadata["topic"] == "t0"
    relations = record.metadata[NODE_KEY]
    assert (relations["ref_doc_id"], relations["start_char_idx"]) == ("doc-1", 120)
    assert relations["relationships"]["2"]["node_id"] == str(UUID(int=12))


def test_the_relations_survive_a_stop_in_between(llamaindex: Path, tmp_path: Path) -> None:
    """LlamaIndex → plain → LlamaIndex."""
    before = llama_answers(llamaindex, "app")
    copy(store_at(llamaindex, "app"), store_at(tmp_path / "plain", "p", layout="plain"))
    copy(store_at(tmp_path / "plain", "p"), store_at(tmp_path / "back", "b", layout="llamaindex"))
    assert llama_answers(tmp_path / "back", "b") == before


def test_llamaindex_deletes_documents_and_nodes_of_what_was_moved(llamaindex: Path, tmp_path: Path) -> None:
    copy(store_at(llamaindex, "app"), store_at(tmp_path / "new", "moved"))
    client = QdrantClient(path=str(tmp_path / "new"))
    app = LlamaStore(collection_name="moved", client=client)
    app.delete("doc-2")
    assert client.count("moved").count == 20
    app.delete_nodes([str(UUID(int=1))])
    assert client.count("moved").count == 19
    assert app.get_nodes([str(UUID(int=2))])[0].get_content() == TEXTS[1]
    client.close()


def test_one_collection_serves_both(llamaindex: Path, tmp_path: Path) -> None:
    rows = [
        VectorRecord(
            id=str(UUID(int=i + 1)), text=TEXTS[i], vector=VECTORS[i], metadata={"topic": f"t{i % 3}"}
        )
        for i in range(ROWS)
    ]
    like = CollectionSchema(fields=(VectorField(dim=DIM),), id_type="str")
    fill(store_at(tmp_path / "both", "c", layout="both"), rows, like).close()
    lang = [[text for text, _, _ in hits] for hits in langchain_answers(tmp_path / "both", "c")]
    llama = [[node.get_content() for node, _ in hits] for hits in llama_answers(tmp_path / "both", "c")]
    assert lang[:5] == llama[:5]
    best = np.argsort(-(VECTORS @ QUERIES[0]) / np.linalg.norm(VECTORS, axis=1))[:5]
    assert lang[0] == [TEXTS[i] for i in best]
