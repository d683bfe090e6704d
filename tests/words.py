"""An embedder without a model, for tests that need a space and sensible neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from vecferry.model import EmbeddingSpace

DIM = 16


class WordEmbedder:
    """Each word has a fixed random direction; a text is the unit sum. Two names make two spaces."""

    def __init__(self, model: str = "words", dim: int = DIM) -> None:
        self.space = EmbeddingSpace(model=model, dim=dim)
        self.calls = 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls += 1
        return np.stack([self._one(text) for text in texts]).astype(np.float32)

    async def aembed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embed(texts)

    def _one(self, text: str) -> NDArray[np.float64]:
        total = np.full(self.space.dim, 1e-9)
        for word in text.lower().split():
            seed = int.from_bytes(blake2b(f"{self.space.model}/{word}".encode(), digest_size=8).digest())
            total += np.random.default_rng(seed).normal(size=self.space.dim)
        return np.asarray(total / np.linalg.norm(total))
