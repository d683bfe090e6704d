"""An embedder in front of which lies a cache: a text is asked for once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vecferry.embedding.base import BaseEmbedder, Matrix, Part, parts_of
from vecferry.embedding.cache import EmbeddingCache
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder, for_queries


@dataclass(slots=True)
class CacheCounts:
    """Texts found in the cache, and texts computed. One that stands twice in a batch is computed once."""

    hits: int = 0
    misses: int = 0

    @property
    def hit_rate(self) -> float:
        """Between 0 and 1; 0 before the first text."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


class CachedEmbedder(BaseEmbedder):
    """Asks the cache first and keeps every answer as soon as it is there.

    Args:
        inner: computes what the cache lacks.
        cache: see `vecferry.embedding.open_cache`; ``None`` only removes doubles within a batch.
        refused: texts known to be refused, by cache key; shared with a verification's own pass.
    """

    provider = "cache"

    def __init__(
        self, inner: Embedder, cache: EmbeddingCache | None, refused: dict[str, str] | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.cache = cache
        self.counts = CacheCounts()
        self.refused: dict[str, str] = {} if refused is None else refused
        self._lock = threading.Lock()

    @property
    def space(self) -> EmbeddingSpace:
        return self.inner.space

    def for_queries(self) -> Embedder:
        """The inner embedder of questions; the cache keeps documents."""
        return for_queries(self.inner)

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        """First what is known, then the rest as it comes."""
        places: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            places.setdefault(text, []).append(row)
        for text in [text for text in places if text in self.refused]:
            yield Part(places.pop(text), None, self.refused[text])
        unique = list(places)
        missing = unique
        if self.cache is not None and unique:
            vectors, rows = self.cache.get(self.space, unique)
            missing = [unique[row] for row in rows]
            yield from self._found(vectors, set(rows), unique, places)
        self._count(sum(map(len, places.values())) - len(missing), len(missing))
        for part in parts_of(self.inner, missing) if missing else ():
            yield self._keep(part, missing, places)

    def _found(
        self, vectors: Matrix, lacking: set[int], unique: list[str], places: dict[str, list[int]]
    ) -> Iterator[Part]:
        present = [row for row in range(len(unique)) if row not in lacking]
        if present:
            yield _spread(present, vectors[present] if lacking else vectors, unique, places, None)

    def _keep(self, part: Part, asked: list[str], places: dict[str, list[int]]) -> Part:
        if part.vectors is None:
            for row in part.rows:
                self.refused[asked[row]] = part.reason
            return Part([place for row in part.rows for place in places[asked[row]]], None, part.reason)
        if self.cache is not None:
            self.cache.put(self.space, [asked[row] for row in part.rows], part.vectors)
        return _spread(part.rows, part.vectors, asked, places, part.tokens)

    def _count(self, hits: int, misses: int) -> None:
        with self._lock:
            self.counts.hits += hits
            self.counts.misses += misses


def _spread(
    rows: list[int], vectors: Matrix, texts: list[str], places: dict[str, list[int]], tokens: int | None
) -> Part:
    """The vectors of unique texts at every place where these stand."""
    targets = [places[texts[row]] for row in rows]
    counts = [len(places) for places in targets]
    repeated = vectors if max(counts, default=1) == 1 else np.repeat(vectors, counts, axis=0)
    return Part([place for places in targets for place in places], repeated, tokens=tokens)
