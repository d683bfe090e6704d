"""Under which names rows of other tools keep the parts of a record: the only lists of them.

A name earlier in a list wins over a later one. Every reader of foreign rows (JSON Lines, Parquet, tables,
sidecars, payloads) takes them from here, so that the same rows are the same records whatever holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ID_NAMES = ("id", "_id", "ID", "Id", "doc_id", "chunk_id", "uuid", "key", "pk")
TEXT_NAMES = (
    "text", "page_content", "content", "document", "chunk", "body", "passage", "sentence", "chunk_text",
)  # fmt: skip
METADATA_NAMES = (
    "metadata", "meta", "metadata_", "cmetadata", "langchain_metadata", "payload", "attributes",
)  # fmt: skip
VECTOR_NAMES = ("vector", "embedding", "embeddings", "emb", "vectors", "dense_vector", "values")


def pop_part(row: dict[str, Any], given: str | None, known: Sequence[str], kind: Any) -> Any:
    """Take a part out of a row: under the name ``given``, else the first known name with such a value.

    Raises:
        ValueError: if there is no key ``given``.
    """
    if given is not None:
        if given not in row:
            raise ValueError(f"it has no key {given!r}")
        return row.pop(given)
    for name in known:
        value = row.get(name)
        if isinstance(value, kind) and not isinstance(value, bool):
            return row.pop(name)
    return None


def join_metadata(name: str, nested: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a row that has an object ``nested`` of them and other keys besides.

    They are joined, unless a key stands on both sides: then the object stays under its name.
    """
    if not rest:
        return dict(nested)
    if nested.keys() & rest.keys():
        return {name: dict(nested), **rest}
    return {**nested, **rest}
