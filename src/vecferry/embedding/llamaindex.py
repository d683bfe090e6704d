"""Any LlamaIndex ``BaseEmbedding`` as an embedder."""

from __future__ import annotations

from typing import Any

from vecferry.embedding.callables import CallableEmbedder, model_of
from vecferry.model import EmbeddingSpace


class LlamaIndexEmbedder(CallableEmbedder):
    """A LlamaIndex model: ``get_text_embedding_batch`` for documents, its query form for questions.

    LlamaIndex embeds ``{metadata}\\n\\n{content}`` when it builds an index. What is embedded here is the
    text alone, so these vectors equal those of an index only for nodes without metadata.

    Args:
        embedding: the object.
        space: the space, or ``"provider:model"``; else its ``model_name`` and what is measured.
    """

    provider = "llamaindex"

    def __init__(self, embedding: Any, *, space: str | EmbeddingSpace | None = None) -> None:
        super().__init__(
            embedding.get_text_embedding_batch,
            space=space,
            name=None if space is not None else model_of(embedding),
            batch_size=max(1, int(getattr(embedding, "embed_batch_size", 10))) * 8,
            queries=lambda texts: [embedding.get_query_embedding(text) for text in texts],
        )
