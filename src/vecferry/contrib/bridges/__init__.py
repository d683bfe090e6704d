"""A collection where a framework expects its own vector store: an application changes one line."""

from __future__ import annotations

from typing import Any

from vecferry.ports import Embedder

__all__ = ["as_langchain_vector_store", "as_llama_index_vector_store"]


def as_langchain_vector_store(collection: Any, embedder: Any = None, **options: Any) -> Any:
    """The collection as a LangChain ``VectorStore``.

    Args:
        collection: a `Collection`, a `FallbackCollection`, or any object with ``search``.
        embedder: a vecferry `Embedder` or a LangChain ``Embeddings``; not needed where the collection
            embeds by itself.
        options: ``embed=``, as ``embedder`` or as text; ``field=`` for the vector field; ``writer=`` for
            a `DualWriter` that takes the writes.

    Raises:
        MissingDependencyError: without langchain-core.
    """
    from vecferry.contrib.bridges.langchain import VecferryVectorStore

    return VecferryVectorStore(collection, embedder, **options)


def as_llama_index_vector_store(collection: Any, embedder: Embedder | None = None, **options: Any) -> Any:
    """The collection as a LlamaIndex ``BasePydanticVectorStore``.

    LlamaIndex embeds queries itself; ``embedder`` is needed only for queries that arrive without a vector.
    Other arguments as for `as_langchain_vector_store`.

    Raises:
        MissingDependencyError: without llama-index-core.
    """
    from vecferry.contrib.bridges.llama_index import VecferryVectorStore

    return VecferryVectorStore.over(collection, embedder, **options)
