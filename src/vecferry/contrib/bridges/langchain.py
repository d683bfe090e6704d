"""LangChain's ``VectorStore`` over a collection."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vecferry.contrib.bridges.common import Backend, one_embedder, refuse_unknown
from vecferry.errors import MissingDependencyError, UnsupportedError
from vecferry.model import Metric, RecordBatch, VectorRecord
from vecferry.model.vectors import DenseColumn
from vecferry.ports import Question, for_queries

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError:
    raise MissingDependencyError("as_langchain_vector_store()", "langchain") from None


class VecferryEmbeddings(Embeddings):  # type: ignore[misc]
    """LangChain's face of a vecferry `Embedder`."""

    def __init__(self, embedder: Any) -> None:
        self._embedder = embedder
        self._queries = for_queries(embedder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.embed(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self._queries.embed([text])[0].tolist()
        return vector


class VecferryVectorStore(VectorStore):  # type: ignore[misc]
    """Searches and, where the collection can be written, adds and deletes.

    Filters are vecferry's (``filter={"lang": "en", "page": {"$gte": 3}}``). Ids come and go as text.
    """

    def __init__(
        self,
        collection: Any,
        embedder: Any = None,
        *,
        embed: Any = None,
        field: str = "",
        writer: Any = None,
    ) -> None:
        self._backend = Backend(collection, field, writer)
        embedder = one_embedder(embedder, embed)
        self._backend.check_model(embedder)
        ready = embedder is None or hasattr(embedder, "embed_query")
        self._embeddings: Embeddings | None = embedder if ready else VecferryEmbeddings(embedder)

    @property
    def embeddings(self) -> Embeddings | None:
        return self._embeddings

    # -- searching ------------------------------------------------------------------------------

    def similarity_search(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Scores as vecferry's: higher is better under every metric."""
        return _scored(self._backend.search(self._asked(query), k, filter, kwargs))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        asked = Question(vector=np.asarray(embedding, np.float32))
        hits = self._backend.search(asked, k, filter, kwargs)
        return [document for document, _ in _scored(hits)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        found = await self.asimilarity_search_with_score(query, k, filter, **kwargs)
        return [document for document, _ in found]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        vector = None
        if self._embeddings is not None:
            vector = np.asarray(await self._embeddings.aembed_query(query), np.float32)
        return _scored(await self._backend.asearch(Question(query, vector), k, filter, kwargs))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        asked = Question(vector=np.asarray(embedding, np.float32))
        hits = await self._backend.asearch(asked, k, filter, kwargs)
        return [document for document, _ in _scored(hits)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        asked = self._asked(query).vector
        if asked is None:
            raise UnsupportedError("a diverse search needs vectors; pass an embedder to the bridge")
        return self.max_marginal_relevance_search_by_vector(asked, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Any,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Any = None,
        **kwargs: Any,
    ) -> list[Document]:
        query = np.asarray(embedding, np.float32)
        hits = self._backend.search(Question(vector=query), fetch_k, filter, kwargs)
        vectors = [hit.vectors.get(self._backend.field, hit.vector) for hit in hits]
        if any(vector is None for vector in vectors):
            raise UnsupportedError(
                "the hits of this collection carry no vectors, which a diverse search needs"
            )
        chosen = maximal_marginal_relevance(query, vectors, lambda_mult=lambda_mult, k=k)
        return [_document(hits[i]) for i in chosen]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """To [0, 1]: (1 + cosine) / 2, 1 / (1 + distance)."""
        metric = self._backend.collection.describe().field(self._backend.field).metric
        if metric in (Metric.COSINE, Metric.IP):
            return lambda score: (1.0 + score) / 2.0
        return lambda score: 1.0 / (1.0 - score)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [_document(record) for record in self._backend.fetch(ids)]

    # -- writing --------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        refuse_unknown(kwargs, "add_texts")
        rows = list(texts)
        if self._embeddings is None:
            raise UnsupportedError("texts must be embedded to be added; pass an embedder to the bridge")
        names = [given or str(uuid.uuid4()) for given in ids or [""] * len(rows)]
        if rows:
            values = np.asarray(self._embeddings.embed_documents(rows), np.float32)
            metadata: list[dict[str, Any]] = [dict(m) for m in metadatas or [{} for _ in rows]]
            field = self._backend.collection.describe()
            name = field.field(self._backend.field).name if field.fields else self._backend.field
            self._backend.write(
                RecordBatch(ids=names, vectors={name: DenseColumn(values)}, texts=rows, metadata=metadata)
            )
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        refuse_unknown(kwargs, "delete")
        if ids is None:
            raise UnsupportedError("say which ids to delete")
        known = [record.id for record in self._backend.fetch(ids)]
        self._backend.delete(known)
        return True

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Any,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        collection: Any = "memory:",
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> VecferryVectorStore:
        """A collection filled with texts; ``collection=`` names it."""
        store = cls(collection, embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return await asyncio.to_thread(self.get_by_ids, ids)

    def _asked(self, query: str) -> Question:
        """The text, with its vector where there is an embedder."""
        if self._embeddings is None:
            return Question(query)
        return Question(query, np.asarray(self._embeddings.embed_query(query), np.float32))


def _scored(hits: Sequence[VectorRecord]) -> list[tuple[Document, float]]:
    return [(_document(hit), 0.0 if hit.score is None else float(hit.score)) for hit in hits]


def _document(record: VectorRecord) -> Document:
    return Document(id=str(record.id), page_content=record.text or "", metadata=record.metadata)
