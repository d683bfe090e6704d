"""LlamaIndex's ``BasePydanticVectorStore`` over a collection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from vecferry.contrib.bridges.common import Backend, one_embedder, refuse_unknown
from vecferry.embedding import resolve
from vecferry.errors import MissingDependencyError, UnsupportedError
from vecferry.layouts.llamaindex import NODE_KEY, build_node, read_node
from vecferry.model import RecordBatch, VectorRecord, Where, to_json
from vecferry.model.vectors import DenseColumn
from vecferry.ports import Question, for_queries

try:
    from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
    from llama_index.core.schema import BaseNode, TextNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node
    from pydantic import PrivateAttr
except ImportError:
    raise MissingDependencyError("as_llama_index_vector_store()", "llamaindex") from None

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.ANY: "$in",
    FilterOperator.CONTAINS: "$eq",
}


class VecferryVectorStore(BasePydanticVectorStore):  # type: ignore[misc]
    """Nodes with text, relations and metadata, found by vector or, where the collection embeds, by text."""

    stores_text: bool = True
    is_embedding_query: bool = True

    _backend: Backend = PrivateAttr()
    _embedder: Any = PrivateAttr(default=None)

    @classmethod
    def over(
        cls,
        collection: Any,
        embedder: Any = None,
        *,
        embed: Any = None,
        field: str = "",
        writer: Any = None,
    ) -> VecferryVectorStore:
        """The store of a collection."""
        store = cls()
        store._backend = Backend(collection, field, writer)
        embedder = one_embedder(embedder, embed)
        embedder = None if embedder is None else resolve(embedder)
        store._backend.check_model(embedder)
        store._embedder = embedder.for_queries() if hasattr(embedder, "for_queries") else embedder
        return store

    @classmethod
    def class_name(cls) -> str:
        return "VecferryVectorStore"

    @property
    def client(self) -> Any:
        """The collection."""
        return self._backend.collection

    # -- searching ------------------------------------------------------------------------------

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return _result(self._found(query, kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        if query.node_ids or query.mode != VectorStoreQueryMode.DEFAULT:
            return _result(await asyncio.to_thread(self._found, query, kwargs))
        asked = await asyncio.to_thread(self._asked, query)
        options = _options(query, kwargs)
        return _result(await self._backend.asearch(asked, query.similarity_top_k, _where(query), options))

    def _found(self, query: VectorStoreQuery, kwargs: dict[str, Any]) -> list[VectorRecord]:
        """The hits, with everything that the query asks for.

        Raises:
            UnsupportedError: naming what cannot be had.
        """
        asked, where, k = self._asked(query), _where(query), query.similarity_top_k
        if query.mode == VectorStoreQueryMode.MMR:
            wide = int(kwargs.pop("mmr_prefetch_k", None) or 4 * k)
            return self._diverse(asked, self._search(query, asked, wide, where, kwargs), query)
        return self._search(query, asked, k, where, kwargs)

    def _search(
        self, query: VectorStoreQuery, asked: Question, k: int, where: Where | None, kwargs: dict[str, Any]
    ) -> list[VectorRecord]:
        options = _options(query, kwargs)
        if not query.node_ids:
            return self._backend.search(asked, k, where, options)
        wanted, size = set(query.node_ids), k
        while True:  # no store searches among ids: more is asked for until k of them have come
            hits = self._backend.search(asked, size, where, options)
            among = [hit for hit in hits if str(hit.id) in wanted]
            if len(among) >= min(k, len(wanted)) or len(hits) < size or size >= _MOST_ASKED:
                return among[:k]
            size = min(size * 8, _MOST_ASKED)

    def _diverse(
        self, asked: Question, hits: list[VectorRecord], query: VectorStoreQuery
    ) -> list[VectorRecord]:
        """By maximal marginal relevance, as LlamaIndex computes it."""
        vectors = [hit.vectors.get(self._backend.field, hit.vector) for hit in hits]
        if asked.vector is None or any(vector is None for vector in vectors):
            raise UnsupportedError("mode='mmr' needs vectors, which this collection's hits do not carry")
        _, places = get_top_k_mmr_embeddings(
            np.asarray(asked.vector).tolist(),
            [np.asarray(vector).tolist() for vector in vectors],
            similarity_top_k=query.similarity_top_k,
            embedding_ids=list(range(len(hits))),
            mmr_threshold=query.mmr_threshold,
        )
        return [hits[place] for place in places]

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        if node_ids is not None:
            return [_node(record) for record in self._backend.fetch(node_ids)]
        return [_node(record) for record in self._backend.where(_filters(filters) if filters else {})]

    def _asked(self, query: VectorStoreQuery) -> Question:
        """The text, and a vector if there is one: each side of the collection takes what it can."""
        if query.query_embedding is not None:
            return Question(query.query_str, np.asarray(query.query_embedding, np.float32))
        if query.query_str is None:
            raise UnsupportedError("the query has neither an embedding nor a text")
        if self._embedder is None:
            return Question(query.query_str)
        return Question(query.query_str, for_queries(self._embedder).embed([query.query_str])[0])

    # -- writing --------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        refuse_unknown(kwargs, "add")
        if not nodes:
            return []
        schema = self._backend.collection.describe()
        name = schema.field(self._backend.field).name if schema.fields else self._backend.field
        rows = [read_node({**node.model_dump(mode="json"), "id_": node.node_id}) for node in nodes]
        ids = [node.node_id for node in nodes]
        vectors = DenseColumn.from_rows([node.embedding for node in nodes], None, np.float32)
        texts = [text for _, text, _ in rows]
        metadata = [body for _, _, body in rows]
        self._backend.write(RecordBatch(ids=ids, vectors={name: vectors}, texts=texts, metadata=metadata))
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        refuse_unknown(delete_kwargs, "delete")
        found = self._backend.where({f"{NODE_KEY}.ref_doc_id": ref_doc_id})
        self._backend.delete([record.id for record in found])

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        refuse_unknown(delete_kwargs, "delete_nodes")
        if node_ids is None and filters is None:
            raise UnsupportedError("say which nodes to delete: node_ids or filters")
        named = self._backend.fetch(node_ids) if node_ids is not None else None
        matched = self._backend.where(_filters(filters)) if filters else None
        if named is not None and matched is not None:
            wanted = {record.id for record in matched}
            named = [record for record in named if record.id in wanted]
        records = named if named is not None else matched or []
        self._backend.delete([record.id for record in records])

    def clear(self) -> None:
        self._backend.delete([record.id for record in self._backend.where({})])


_MOST_ASKED = 10_000
_MODES = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR)


def _options(query: VectorStoreQuery, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What goes on to the store.

    Raises:
        UnsupportedError: naming a mode or a setting that would be dropped.
    """
    if query.mode not in _MODES:
        modes = ", ".join(mode.value for mode in _MODES)
        raise UnsupportedError(f"the mode {query.mode.value!r} is not there; there are {modes}")
    asked = {
        "alpha": query.alpha,
        "sparse_top_k": query.sparse_top_k,
        "hybrid_top_k": query.hybrid_top_k,
        "output_fields": query.output_fields,
    }
    refuse_unknown({name: value for name, value in asked.items() if value is not None}, "the query")
    return {**kwargs, **({"field": query.embedding_field} if query.embedding_field else {})}


def _where(query: VectorStoreQuery) -> Where | None:
    parts: list[Where] = [_filters(query.filters)] if query.filters else []
    if query.doc_ids:
        parts.append({f"{NODE_KEY}.ref_doc_id": {"$in": list(query.doc_ids)}})
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"$and": parts}


def _filters(filters: MetadataFilters) -> Where:
    parts = [_filters(f) if isinstance(f, MetadataFilters) else _filter(f) for f in filters.filters]
    if filters.condition == FilterCondition.OR:
        return {"$or": parts}
    if filters.condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    return {"$and": parts}


def _filter(one: MetadataFilter) -> Where:
    if one.operator == FilterOperator.IS_EMPTY:
        return {one.key: {"$exists": False}}
    if one.operator not in _OPERATORS:
        known = ", ".join(operator.value for operator in _OPERATORS)
        raise UnsupportedError(
            f"the filter operator {one.operator.value!r} is not there; there are {known}"
        )
    return {one.key: {_OPERATORS[one.operator]: one.value}}


def _result(hits: Sequence[VectorRecord]) -> VectorStoreQueryResult:
    nodes = [_node(hit) for hit in hits]
    scores = [0.0 if hit.score is None else float(hit.score) for hit in hits]
    return VectorStoreQueryResult(nodes=nodes, similarities=scores, ids=[node.node_id for node in nodes])


def _node(record: VectorRecord) -> BaseNode:
    metadata, _ = to_json(record.metadata)
    node = build_node(str(record.id), record.text, metadata)
    kind = str(node["class_name"])
    vector = record.vector
    embedding = None if vector is None else np.asarray(vector, np.float32).tolist()
    if kind == "TextNode":
        built: BaseNode = TextNode.model_validate({**node, "embedding": embedding})
    else:
        import json

        built = metadata_dict_to_node({"_node_content": json.dumps(node), "_node_type": kind})
        built.embedding = embedding
    return built
