"""The index's own settings, in vecferry's words: embedding space, chunker, customer-owned sink."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from vecferry.model import EmbeddingSpace, Loss

_MODEL_KEYS = ("model_name", "model", "azure_deployment", "deployment_name", "model_id")
_SECRETS = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)

# Dimensions as the makers of the models document them; the API states them only sometimes.
_DIMS: tuple[tuple[str, int], ...] = (
    ("text-embedding-ada-002", 1536),
    ("text-embedding-3-small", 1536),
    ("text-embedding-3-large", 3072),
    ("embed-english-light", 384),
    ("embed-multilingual-light", 384),
    ("embed-english-v3", 1024),
    ("embed-multilingual-v3", 1024),
    ("embed-english-v2", 4096),
    ("embed-multilingual-v2", 768),
    ("embed-v4", 1536),
    ("gemini-embedding-001", 3072),
    ("text-embedding-004", 768),
    ("text-embedding-005", 768),
    ("embedding-001", 768),
    ("textembedding-gecko", 768),
    ("text-multilingual-embedding-002", 768),
    ("amazon.titan-embed-text-v1", 1536),
    ("amazon.titan-embed-text-v2", 1024),
    ("all-MiniLM-L6-v2", 384),
    ("all-mpnet-base-v2", 768),
    ("bge-small", 384),
    ("bge-base", 768),
    ("bge-large", 1024),
    ("bge-m3", 1024),
)
# Cohere's v2 models and Google's shortened ones are not of unit length.
_NOT_NORMALIZED = ("embed-english-v2", "embed-multilingual-v2")


def space_of(pipeline: Mapping[str, Any]) -> EmbeddingSpace | None:
    """The space of the index's vectors; ``None`` if the model or its dimension cannot be told."""
    config = embedding_of(pipeline)
    component = config.get("component") or {}
    model = next((component[key] for key in _MODEL_KEYS if component.get(key)), None)
    if not isinstance(model, str):
        return None
    if config.get("type") == "MANAGED_OPENAI_EMBEDDING":
        model = model.removeprefix("openai-")
    sink = (pipeline.get("data_sink") or {}).get("component") or {}
    dim = component.get("dimensions") or sink.get("embed_dim") or _dim_of(model)
    if not isinstance(dim, int) or dim <= 0:
        return None
    normalized = not any(name in model for name in _NOT_NORMALIZED)
    return EmbeddingSpace(model=model, dim=dim, normalized=normalized)


def embedding_of(pipeline: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``embedding_config`` in force: the index's own, or the shared one it refers to."""
    own: Mapping[str, Any] = pipeline.get("embedding_config") or {}
    shared = (pipeline.get("embedding_model_config") or {}).get("embedding_config") or {}
    return own or shared


def chunker_of(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """How the index cuts documents: ``splitter``, ``chunk_size``, ``chunk_overlap``, ``unit``, and more.

    ``splitter`` is ``sentence``, ``token``, ``character``, ``semantic`` or ``none``. The automatic mode is
    LlamaIndex's sentence splitter with the given size and overlap, in tokens.
    """
    config = pipeline.get("transform_config") or {}
    if config.get("mode", "auto") != "advanced":
        return _chunker("sentence", config)
    chunking = config.get("chunking_config") or {}
    segmentation = config.get("segmentation_config") or {}
    chunker = _chunker(chunking.get("mode") or "sentence", chunking)
    if segmentation.get("mode") not in (None, "none"):
        chunker["segmentation"] = {k: v for k, v in segmentation.items() if v is not None}
    return chunker


def _chunker(splitter: str, config: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("separator", "paragraph_separator", "buffer_size", "breakpoint_percentile_threshold")
    extra = {key: config[key] for key in kept if config.get(key) is not None}
    if splitter in ("none", "semantic"):
        return {"splitter": splitter, **extra}
    size, overlap = config.get("chunk_size"), config.get("chunk_overlap")
    return {
        "splitter": splitter,
        "chunk_size": 1024 if size is None else size,
        "chunk_overlap": 200 if overlap is None else overlap,
        "unit": "character" if splitter == "character" else "token",
        **extra,
    }


def sink_of(pipeline: Mapping[str, Any]) -> dict[str, Any] | None:
    """The customer-owned vector store of an index: type, name and, where vecferry reads it, its URL.

    ``None`` means the vendor's own store, whose vectors cannot be reached. The service never returns
    the sink's secrets; they come from the environment, as for any other store.
    """
    sink = pipeline.get("data_sink")
    if not sink:
        return None
    kind, component = str(sink.get("sink_type", "")).upper(), sink.get("component") or {}
    url = {"QDRANT": _qdrant_url, "POSTGRES": _postgres_url}.get(kind, lambda _: None)(component)
    return {"type": kind.lower(), "name": sink.get("name"), "url": url}


def settings_of(info: Mapping[str, Any], version: int) -> dict[str, Any]:
    """What a schema keeps of an index, to be looked at and to make an equal one."""
    settings: dict[str, Any] = {"index": info.get("name"), "index_id": info.get("id"), "version": version}
    if version == 2:
        return settings
    space = space_of(info)
    return settings | {
        "embedding": without_secrets(embedding_of(info)),
        "space": space.model_dump() if space else None,
        "chunker": chunker_of(info),
        "transform_config": without_secrets(info.get("transform_config") or {}),
        "data_sink": sink_of(info),
    }


def loss_of(info: Mapping[str, Any]) -> Loss:
    """Why there are no vectors, and where they are."""
    sink = sink_of(info)
    detail = "LlamaCloud keeps its vectors to itself; embed anew with embed=…"
    if sink:
        there = f"read them with vecferry at {sink['url']}" if sink["url"] else "read them there"
        detail = f"the vectors of this index lie in your own {sink['type']} store {sink['name']!r}; {there}"
    return Loss(kind="vector", detail=detail, where="source")


def without_secrets(value: Any) -> Any:
    """A copy of a JSON value without the values of keys that sound secret, and without ``null``."""
    if isinstance(value, Mapping):
        return {
            key: without_secrets(item)
            for key, item in value.items()
            if item is not None and not _SECRETS.search(str(key))
        }
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def _qdrant_url(component: Mapping[str, Any]) -> str | None:
    parts = urlsplit(str(component.get("url") or ""))
    if not parts.hostname or not component.get("collection_name"):
        return None
    port = parts.port or 6333  # as Qdrant's own client reads an address without one
    tls = "?https=true" if parts.scheme == "https" else "?https=false"
    return f"qdrant://{parts.hostname}:{port}/{quote(str(component['collection_name']))}{tls}"


def _postgres_url(component: Mapping[str, Any]) -> str | None:
    host, table = component.get("host"), component.get("table_name")
    if not host or not table:
        return None
    login = f"{quote(str(component['user']), safe='')}@" if component.get("user") else ""
    database = quote(str(component.get("database") or "postgres"), safe="")
    schema = component.get("schema_name") or "public"
    # The service stores through LlamaIndex's PGVectorStore, which puts data_ before the name.
    table = table.lower() if table.startswith("data_") else f"data_{table.lower()}"
    return f"pgvector://{login}{host}:{component.get('port') or 5432}/{database}#{schema}.{table}"


def _dim_of(model: str) -> int | None:
    return next((dim for name, dim in _DIMS if name in model), None)
