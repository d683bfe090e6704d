"""The frameworks themselves use the bridges, over any collection that can search."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import vecferry as vf
from known import some
from vecferry.errors import RetryableError, UnsupportedError
from vecferry.model import RecordBatch, VectorRecord
from vecferry.ports import WriteMode
from vecferry.serving import DualWriter, FallbackCollection
from vecferry.stores.memory import MemoryStore

from .conftest import Moody, WordEmbedder, contents, fill, schema

documents = pytest.importorskip("langchain_core.documents")
core = pytest.importorskip("llama_index.core")

TEXT = "record number n5 about topic t5"


@pytest.fixture
def kb(words: WordEmbedder) -> vf.Collection:
    return vf.connect(fill(MemoryStore(), words))


# -- LangChain ----------------------------------------------------------------------------------------


def test_langchain_searches(kb: vf.Collection, words: WordEmbedder) -> None:
    store = kb.as_langchain_vector_store(words)
    hits = store.similarity_search_with_score(TEXT, k=3)
    expected = kb.search(words.embed([TEXT])[0], 3)
    assert [(d.id, d.page_content, s) for d, s in hits] == [(str(h.id), h.text, h.score) for h in expected]
    assert hits[0][0].metadata == {"n": 5}
    assert [d.id for d in store.similarity_search(TEXT, k=4, filter={"n": {"$lt": 3}})] != []
    assert {d.metadata["n"] for d in store.similarity_search(TEXT, k=9, filter={"n": {"$lt": 3}})} == {
        0,
        1,
        2,
    }
    [found] = store.similarity_search_by_vector(words.embed([TEXT])[0].tolist(), k=1)
    assert found.id == "5"
    relevant = store.similarity_search_with_relevance_scores(TEXT, k=2)
    assert relevant[0][1] == pytest.approx(1.0, abs=1e-5)
    assert len(store.max_marginal_relevance_search(TEXT, k=3, fetch_k=9)) == 3


def test_a_langchain_retriever_in_an_app(kb: vf.Collection, words: WordEmbedder) -> None:
    retriever = kb.as_langchain_vector_store(words).as_retriever(search_kwargs={"k": 2})
    assert retriever.invoke(TEXT)[0].id == "5"
    assert asyncio.run(retriever.ainvoke(TEXT))[0].id == "5"


def test_langchain_adds_gets_and_deletes(kb: vf.Collection, words: WordEmbedder) -> None:
    store = kb.as_langchain_vector_store(words)
    ids = store.add_documents(
        [documents.Document(id="new", page_content="alpha beta", metadata={"lang": "en"})]
    )
    assert ids == ["new"]
    made = store.add_texts(["gamma"], [{"a": 1}])
    assert str(UUID(made[0])) == made[0]
    assert [d.page_content for d in store.get_by_ids(["new", "5", "nothing"])] == ["alpha beta", TEXT]
    assert store.similarity_search("alpha beta", k=1)[0].id == "new"
    assert store.delete(["new", "5"])
    assert {"new", 5} & set(contents(kb.store)) == set()


def test_langchain_from_texts(words: WordEmbedder) -> None:
    from vecferry.contrib.bridges.langchain import VecferryVectorStore

    target = MemoryStore()
    target.prepare(schema(words), WriteMode.UPSERT)
    store = VecferryVectorStore.from_texts(["a b", "c d"], words, ids=["1", "2"], collection=target)
    assert store.similarity_search("c d", k=1)[0].id == "2"
    assert some(store.embeddings).embed_query("x") == words.embed(["x"])[0].tolist()


def test_langchain_over_a_fallback(words: WordEmbedder, tmp_path: Path) -> None:
    local, cloud = fill(Moody(), words), fill(Moody(), words)
    kb = FallbackCollection(local, cloud, embedder=words)
    store = kb.as_langchain_vector_store()
    local.error = RetryableError("down")
    assert store.similarity_search(TEXT, k=1)[0].id == "5"
    assert asyncio.run(store.asimilarity_search(TEXT, k=1))[0].id == "5"
    with pytest.raises(UnsupportedError, match="pass an embedder"):
        store.add_texts(["x"])
    with pytest.raises(UnsupportedError, match="writer=DualWriter"):
        kb.as_langchain_vector_store(words).add_texts(["x"])
    with DualWriter(local, cloud, tmp_path / "j") as writer:
        kb.as_langchain_vector_store(words, writer=writer).add_texts(["x y"], ids=["both"])
    assert contents(local)["both"] == contents(cloud)["both"]


# -- LlamaIndex ---------------------------------------------------------------------------------------


class IndexEmbedding(core.embeddings.BaseEmbedding):  # type: ignore[misc,name-defined]
    def _get_text_embedding(self, text: str) -> list[float]:
        return WordEmbedder().embed([text])[0].tolist()  # type: ignore[no-any-return]

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def nodes() -> list[Any]:
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

    made = []
    for n in range(6):
        node = TextNode(id_=f"n{n}", text=f"words w{n} of document", metadata={"n": n, "lang": "en"})
        node.excluded_embed_metadata_keys = ["n", "lang"]  # else LlamaIndex embeds them with the text
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc{n // 3}")
        if n:
            node.relationships[NodeRelationship.PREVIOUS] = RelatedNodeInfo(node_id=f"n{n - 1}")
        made.append(node)
    return made


@pytest.fixture
def index(words: WordEmbedder) -> Any:
    target = MemoryStore()
    target.prepare(schema(words), WriteMode.UPSERT)
    store = vf.connect(target).as_llama_index_vector_store()
    built = core.VectorStoreIndex.from_vector_store(store, embed_model=IndexEmbedding())
    built.insert_nodes(nodes())
    return built


def test_a_llama_index_index_over_a_collection(index: Any) -> None:
    hits = index.as_retriever(similarity_top_k=2).retrieve("words w4 of document")
    assert hits[0].node.node_id == "n4"
    assert hits[0].node.ref_doc_id == "doc1"
    assert hits[0].node.prev_node.node_id == "n3"
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert hits[0].node.metadata == {"n": 4, "lang": "en"}
    again = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve("words w2 of document"))
    assert again[0].node.node_id == "n2"


def test_llama_index_filters(index: Any) -> None:
    from llama_index.core.vector_stores import FilterCondition, MetadataFilter, MetadataFilters

    few = MetadataFilters(
        filters=[
            MetadataFilter(key="n", value=4, operator=">="),
            MetadataFilters(
                filters=[MetadataFilter(key="n", value=[0, 1], operator="in")],
                condition=FilterCondition.AND,
            ),
        ],
        condition=FilterCondition.OR,
    )
    hits = index.as_retriever(similarity_top_k=6, filters=few).retrieve("words")
    assert {h.node.metadata["n"] for h in hits} == {0, 1, 4, 5}
    nope = MetadataFilters(filters=[MetadataFilter(key="n", value="x", operator="text_match")])
    with pytest.raises(UnsupportedError, match="text_match"):
        index.as_retriever(filters=nope).retrieve("words")
    only = index.as_retriever(similarity_top_k=6, doc_ids=["doc0"]).retrieve("words")
    assert {h.node.node_id for h in only} == {"n0", "n1", "n2"}


def test_llama_index_gets_and_deletes(index: Any) -> None:
    store = index.vector_store
    assert [n.node_id for n in store.get_nodes(["n3", "zz"])] == ["n3"]
    store.delete_nodes(["n3"])
    index.delete_ref_doc("doc0")
    assert {n.node_id for n in store.get_nodes()} == {"n4", "n5"}
    store.clear()
    assert store.get_nodes() == []


def test_llama_index_over_a_fallback_that_embeds(words: WordEmbedder) -> None:
    local, cloud = fill(Moody(), words), fill(Moody(), words)
    local.error = RetryableError("down")
    from llama_index.core.vector_stores.types import VectorStoreQuery

    store = FallbackCollection(local, cloud, embedder=words).as_llama_index_vector_store()
    result = store.query(VectorStoreQuery(query_str=TEXT, similarity_top_k=1))
    assert (result.ids, result.nodes[0].text) == (["5"], TEXT)
    embedded = VectorStoreQuery(query_embedding=words.embed([TEXT])[0].tolist(), similarity_top_k=1)
    assert asyncio.run(store.aquery(embedded)).ids == ["5"]
    with pytest.raises(UnsupportedError):
        store.query(VectorStoreQuery())


def test_what_llama_index_wrote_moves_on_with_its_relations(index: Any, words: WordEmbedder) -> None:
    """Nodes that came in through the bridge are nodes again on the other side of a move."""
    source = index.vector_store.client
    target = MemoryStore()
    target.prepare(schema(words), WriteMode.UPSERT)
    target.write(RecordBatch.concat(list(source.scan())))
    moved = vf.connect(target).as_llama_index_vector_store().get_nodes(["n4"])[0]
    assert moved == index.vector_store.get_nodes(["n4"])[0]
    assert isinstance(next(iter(contents(target).values())), VectorRecord)


# -- the whole question -------------------------------------------------------------------------------


class TextOnly(MemoryStore):
    """A side that embeds by itself, as LlamaCloud does: it is asked by text."""

    search = None  # type: ignore[assignment]

    def __init__(self, words: WordEmbedder) -> None:
        super().__init__()
        self.words, self.asked = words, []  # type: ignore[var-annotated]

    def search_text(self, text: str, k: int = 10, *, where: Any = None) -> list[VectorRecord]:
        self.asked.append(text)
        return MemoryStore.search(self, self.words.embed([text])[0], k, where=where)


def test_the_text_reaches_a_side_that_embeds_by_itself(words: WordEmbedder) -> None:
    from llama_index.core.vector_stores.types import VectorStoreQuery

    local, cloud = fill(Moody(), words), fill(TextOnly(words), words)
    kb = FallbackCollection(local, cloud)
    for store in (kb, vf.connect(cloud)):
        local.error = RetryableError("down")
        bridge = store.as_llama_index_vector_store()
        asked = VectorStoreQuery(
            query_str=TEXT, query_embedding=words.embed([TEXT])[0].tolist(), similarity_top_k=1
        )
        assert bridge.query(asked).ids == ["5"] and asyncio.run(bridge.aquery(asked)).ids == ["5"]
        chain = store.as_langchain_vector_store(words)
        assert chain.similarity_search(TEXT, k=1)[0].id == "5"
        assert asyncio.run(chain.asimilarity_search(TEXT, k=1))[0].id == "5"
    assert set(cloud.asked) == {TEXT} and len(cloud.asked) == 8
    local.error = None
    assert kb.as_llama_index_vector_store().query(asked).ids == ["5"]
    assert len(cloud.asked) == 8  # the side of vectors got the vector


def test_llama_index_node_ids_and_mmr(index: Any) -> None:
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

    store, embedding = index.vector_store, IndexEmbedding()
    vector = embedding.get_query_embedding("words w4 of document")
    asked = VectorStoreQuery(query_embedding=vector, similarity_top_k=2, node_ids=["n0", "n1"])
    assert set(store.query(asked).ids) == {"n0", "n1"}
    assert set(asyncio.run(store.aquery(asked)).ids) == {"n0", "n1"}
    diverse = VectorStoreQuery(
        query_embedding=vector, similarity_top_k=3, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.3
    )
    found = store.query(diverse).ids
    assert found[0] == "n4" and len(set(found)) == 3


@pytest.mark.parametrize("extra", [
    {"mode": "hybrid"}, {"mode": "sparse"}, {"alpha": 0.5}, {"sparse_top_k": 3}, {"hybrid_top_k": 3},
    {"output_fields": ["text"]},
])  # fmt: skip
def test_llama_index_questions_that_would_be_dropped_are_refused(index: Any, extra: dict[str, Any]) -> None:
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

    given = {**extra, "mode": VectorStoreQueryMode(extra.get("mode", "default"))}
    asked = VectorStoreQuery(query_embedding=[0.0] * 16, similarity_top_k=1, **given)
    store = index.vector_store
    for call in (lambda: store.query(asked), lambda: asyncio.run(store.aquery(asked))):
        with pytest.raises(UnsupportedError, match=extra.get("mode", next(iter(extra)))):
            call()


def test_unknown_keywords_are_refused_by_name(kb: vf.Collection, words: WordEmbedder) -> None:
    from llama_index.core.vector_stores.types import VectorStoreQuery

    chain, llama = kb.as_langchain_vector_store(words), kb.as_llama_index_vector_store()
    asked = VectorStoreQuery(query_embedding=words.embed([TEXT])[0].tolist(), similarity_top_k=1)
    for call in (
        lambda: chain.similarity_search(TEXT, colour="red"),
        lambda: asyncio.run(chain.asimilarity_search(TEXT, colour="red")),
        lambda: chain.max_marginal_relevance_search(TEXT, colour="red"),
        lambda: chain.add_texts(["a"], colour="red"),
        lambda: chain.delete(["1"], colour="red"),
        lambda: llama.query(asked, colour="red"),
        lambda: llama.delete("doc", colour="red"),
    ):
        with pytest.raises(UnsupportedError, match="colour"):
            call()
    assert len(contents(kb.store)) > 5


def test_the_model_of_the_questions_is_that_of_the_collection(kb: vf.Collection) -> None:
    with pytest.raises(vf.VecferryError, match="holds vectors of"):
        kb.as_langchain_vector_store(WordEmbedder("another"))
    with pytest.raises(vf.VecferryError, match="holds vectors of"):
        kb.as_llama_index_vector_store(embed=WordEmbedder("another"))

    class Known:
        model = "text-embedding-3-small"

        def embed_documents(self, texts: list[str]) -> Any: ...

        def embed_query(self, text: str) -> Any: ...

    with pytest.raises(vf.VecferryError, match="text-embedding-3-small"):
        kb.as_langchain_vector_store(Known())


def test_embed_is_the_one_name(kb: vf.Collection, words: WordEmbedder) -> None:
    assert kb.as_langchain_vector_store(embed=words).similarity_search(TEXT, k=1)[0].id == "5"
    with pytest.raises(vf.VecferryError, match="embed= only"):
        kb.as_langchain_vector_store(words, embed=words)
