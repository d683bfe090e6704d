"""What an embedding provider promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vecferry.model import EmbeddingSpace


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors of one space."""

    @property
    def space(self) -> EmbeddingSpace:
        """The space of every vector it returns. May load the model or ask the server once."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 ``(len(texts), space.dim)``, row i for text i; finite; thread-safe.

        Raises:
            RetryableError: a passing fault (rate limit, time-out).
            RejectedRecord: these texts cannot be embedded; ``ids`` are their positions.
            FatalStoreError: the provider said no for good (key, quota, unknown model).
        """
        ...

    async def aembed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `embed`, for event loops."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A whole question: its text, and the vector that an application has made of it.

    A collection of vectors is asked by the vector, one that embeds by itself by the text.

    Attributes:
        space: of the vector, if it is known.
    """

    text: str | None = None
    vector: Any = None
    space: EmbeddingSpace | None = None


@runtime_checkable
class AsksDifferently(Protocol):
    """A model that wants questions with another prompt than documents (E5, BGE, nomic)."""

    def for_queries(self) -> Embedder:
        """An embedder of questions, in the same space."""
        ...


def for_queries(embedder: Embedder) -> Embedder:
    """The embedder that questions to its space are to be embedded with."""
    return embedder.for_queries() if isinstance(embedder, AsksDifferently) else embedder
