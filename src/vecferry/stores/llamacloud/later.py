"""The later kind of index ("v2"): files can be found, read and searched; no chunk list, no vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vecferry.model import VectorRecord
from vecferry.stores.llamacloud.client import Client
from vecferry.stores.llamacloud.mapping import chunk_id

_PAGE = 1000
_TEXT = 200_000
"""Characters asked for at once."""


def files(client: Client, index_id: str) -> Iterator[dict[str, Any]]:
    """Every file once: ``{"file_id", "file_name"}``, in the order of the service."""
    seen: set[str] = set()
    body = {"index_id": index_id, "page_size": _PAGE}
    for file in client.items("POST", "/api/v1/retrieval/files/find", body=body):
        if file["file_id"] not in seen:
            seen.add(file["file_id"])
            yield file


def read_text(client: Client, index_id: str, file_id: str) -> str:
    """The parsed text of a file, read in pieces."""
    pieces: list[str] = []
    offset = 0
    while True:
        body = {"index_id": index_id, "file_id": file_id, "offset": offset, "max_length": _TEXT}
        piece = client.post("/api/v1/retrieval/files/read", body).get("content") or ""
        pieces.append(piece)
        offset += len(piece)
        if len(piece) < _TEXT:
            return "".join(pieces)


def search(client: Client, index_id: str, text: str, k: int) -> list[VectorRecord]:
    """Hits of the retrieval endpoint. The service names no chunks: an id is made of file and position."""
    body = {"index_id": index_id, "query": text, "top_k": min(k, 500)}
    results = client.post("/api/v1/retrieval/retrieve", body).get("results") or []
    return [_hit(result, number) for number, result in enumerate(results)]


def _hit(result: dict[str, Any], number: int) -> VectorRecord:
    place = {k: v for k, v in (result.get("static_fields") or {}).items() if v is not None}
    metadata = {**(result.get("metadata") or {}), **place}
    score = result.get("rerank_score")
    score = result.get("score") if score is None else score
    return VectorRecord(
        id=chunk_id(place, number), text=result.get("content") or "", metadata=metadata, score=score
    )
