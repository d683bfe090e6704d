"""URL scheme → adapter. The core knows adapters as strings only.

A third party adds one without touching this project, in its own ``pyproject.toml``::

    [project.entry-points."vecferry.stores"]
    mystore = "my_package.store:MyStore"

The class needs ``from_url(url: StoreURL, **options)`` and the ports it wants to serve.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vecferry.errors import UnknownSchemeError

STORES = {
    "faiss": "vecferry.stores.faiss:FaissStore",
    "jsonl": "vecferry.stores.jsonl:JsonlStore",
    "llamacloud": "vecferry.stores.llamacloud:LlamaCloudStore",
    "memory": "vecferry.stores.memory:MemoryStore",
    "parquet": "vecferry.stores.parquet:ParquetStore",
    "pgvector": "vecferry.stores.pgvector:PgVectorStore",
    "qdrant": "vecferry.stores.qdrant:QdrantStore",
    "s3": "vecferry.snapshots.opening:S3FolderStore",
}
EMBEDDERS = {
    "azure": "vecferry.embedding.providers.azure:AzureEmbedder",
    "ollama": "vecferry.embedding.providers.ollama:OllamaEmbedder",
    "openai": "vecferry.embedding.providers.openai:OpenAIEmbedder",
    "sentence-transformers": (
        "vecferry.embedding.providers.sentence_transformers:SentenceTransformersEmbedder"
    ),
}

BRIDGES = {
    "langchain": "vecferry.contrib.bridges:as_langchain_vector_store",
    "llama-index": "vecferry.contrib.bridges:as_llama_index_vector_store",
}
_GROUPS = {"vecferry.stores": STORES, "vecferry.embedders": EMBEDDERS, "vecferry.bridges": BRIDGES}


def find(group: str, name: str) -> Any:
    """What is registered as ``name`` in a group: ``vecferry.stores``, ``….embedders`` or ``….bridges``.

    Raises:
        UnknownSchemeError: naming the closest that exists.
    """
    outside = _outside(group)
    if name in outside:
        return outside[name].load()
    known = _GROUPS[group]
    if name not in known:
        names = sorted({*known, *outside})
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        raise UnknownSchemeError(f"nothing is registered as {name!r}; {hint}")
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


@cache
def _outside(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
