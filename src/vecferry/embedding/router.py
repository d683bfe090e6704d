"""Hosts by purpose, within one space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

from vecferry.embedding.base import BaseEmbedder, Part, parts_of
from vecferry.embedding.resolve import resolve
from vecferry.embedding.space import check_same_space
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

Purpose: TypeAlias = Literal["indexing", "query", "batch"]


class EmbeddingRouter(BaseEmbedder):
    """Sends bulk work to one host and questions to another, both of one space.

    "Index with the local model, answer questions with OpenAI" cannot work: vectors of two spaces
    are not comparable, and every search would return noise. Such a route is refused here.

    Args:
        indexing: for documents as they come. It is also what `embed` uses.
        query: for questions; else ``indexing``.
        batch: for large jobs such as a migration; else ``indexing``.

    Raises:
        SpaceMismatchError: if two routes serve different spaces, saying in what they differ.
    """

    provider = "router"

    def __init__(self, indexing: Any, query: Any = None, batch: Any = None) -> None:
        super().__init__()
        documents = resolve(indexing)
        self._routes: dict[Purpose, Embedder] = {
            "indexing": documents,
            "query": documents if query is None else resolve(query),
            "batch": documents if batch is None else resolve(batch),
        }
        for purpose in ("query", "batch"):
            check_same_space(
                documents.space,
                self._routes[purpose].space,
                f"vectors for indexing and for {purpose} would not be comparable",
            )
        self.hosts = list(dict.fromkeys(self._routes.values()))
        self.name = "router"

    @property
    def space(self) -> EmbeddingSpace:
        return self._routes["indexing"].space

    def route(self, purpose: Purpose) -> Embedder:
        """The host for ``indexing``, ``query`` (with its query prompt) or ``batch``."""
        chosen = self._routes[purpose]
        return chosen.for_queries() if purpose == "query" and isinstance(chosen, BaseEmbedder) else chosen

    def for_queries(self) -> Embedder:
        return self.route("query")

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        yield from parts_of(self._routes["indexing"], texts)

    def close(self) -> None:
        for host in self.hosts:
            if isinstance(host, BaseEmbedder):
                host.close()


__all__ = ["EmbeddingRouter", "Purpose"]
