"""Any function as an embedder, and LangChain's ``Embeddings`` objects."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from vecferry.embedding.base import BaseEmbedder, Matrix, Part, checked, clean
from vecferry.embedding.spaces import canonical, declared_space
from vecferry.errors import ConfigurationError, FatalStoreError, VecferryError
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

SLICE = 256
_PROBE = "A short text to see how long the vectors are."


class CallableEmbedder(BaseEmbedder):
    """A function from texts to vectors.

    Args:
        function: takes ``list[str]``, returns ``(n, dim)`` numbers; may be ``async``. It must be
            thread-safe if it is shared between jobs.
        space: the space, or ``"provider:model"``; else the name is ``name`` and the rest is measured.
        name: the model's name; else the function's own dotted name.
        batch_size: texts per call.
        queries: the function for questions, where the model treats them differently.

    Raises:
        ConfigurationError: for a function without a name: two lambdas would pass for one model.
    """

    provider = "callable"

    def __init__(
        self,
        function: Callable[[list[str]], Any],
        *,
        space: str | EmbeddingSpace | None = None,
        name: str | None = None,
        batch_size: int = SLICE,
        queries: Callable[[list[str]], Any] | None = None,
    ) -> None:
        super().__init__()
        self._queries = queries
        self._function = function
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._space: EmbeddingSpace | None = None
        self._declaration = space
        self.name = name or (_name_of(function) if space is None else "")
        if isinstance(space, EmbeddingSpace):
            self._space = space

    @property
    def space(self) -> EmbeddingSpace:
        """Declared, or measured with one short text."""
        with self._lock:
            if self._space is None:
                self._space = self._measured()
            return self._space

    def for_queries(self) -> Embedder:
        """An embedder of questions, in the same space."""
        if self._queries is None:
            return self
        return CallableEmbedder(
            self._queries, space=self.space, name=self.name, batch_size=self._batch_size
        )

    def embed_parts(self, texts: Sequence[str]) -> Iterator[Part]:
        for start in range(0, len(texts), self._batch_size):
            rows = list(range(start, min(start + self._batch_size, len(texts))))
            vectors = self._call([texts[row] for row in rows])
            yield Part(rows, checked(vectors, len(rows), self.space))

    def _measured(self) -> EmbeddingSpace:
        vector = np.asarray(self._call([_PROBE]), dtype=np.float32)
        if vector.ndim != 2 or vector.shape[0] != 1:
            raise FatalStoreError(
                f"{self.name} returned shape {vector.shape} for one text; (1, dim) is due"
            )
        if self._declaration is not None:
            return declared_space(self._declaration, vector.shape[1])
        unit = bool(abs(float(np.linalg.norm(vector[0])) - 1.0) < 1e-3)
        return EmbeddingSpace(model=canonical(self.name), dim=vector.shape[1], normalized=unit)

    def _call(self, texts: list[str]) -> Matrix:
        try:
            answer = self._function(texts)
            if inspect.isawaitable(answer):
                answer = _run(answer)
            return np.asarray(answer, dtype=np.float32)
        except VecferryError:
            raise
        except Exception as error:  # a foreign function may raise anything
            raise FatalStoreError(f"{self!r} failed: {type(error).__name__}: {clean(error)}") from error


def from_langchain(embeddings: Any, space: str | EmbeddingSpace | None = None) -> CallableEmbedder:
    """A LangChain ``Embeddings`` object: ``embed_documents``, and ``embed_query`` for questions."""
    return CallableEmbedder(
        embeddings.embed_documents,
        space=space,
        name=None if space is not None else model_of(embeddings),
        queries=lambda texts: [embeddings.embed_query(text) for text in texts],
    )


def model_of(embeddings: object) -> str:
    """The model name a framework's object carries.

    Raises:
        ConfigurationError: if it carries none.
    """
    for attribute in ("model_name", "model", "model_id", "deployment"):
        value = getattr(embeddings, attribute, None)
        if isinstance(value, str) and value and value != "unknown":
            return canonical(value)
    raise ConfigurationError(
        f"{type(embeddings).__name__} does not say which model it is: wrap it with its space, "
        'CallableEmbedder(embeddings.…, space="provider:model")'
    )


def _name_of(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    if "<" in name.rsplit(".", 1)[-1]:
        raise ConfigurationError(
            'a lambda says nothing about its model: CallableEmbedder(function, space="provider:model")'
        )
    module = getattr(function, "__module__", None) or type(function).__module__
    return f"{module}.{name}"


def _run(awaitable: Any) -> Any:
    """Wait for an awaitable, also inside a running loop."""

    async def wait() -> Any:
        return await awaitable

    return asyncio.run_coroutine_threadsafe(wait(), _loop(os.getpid())).result()


@cache
def _loop(_process: int) -> asyncio.AbstractEventLoop:
    """One loop for all calls, in a thread of its own: an async client's connections belong to a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vecferry-async", daemon=True).start()
    return loop


__all__ = ["CallableEmbedder", "from_langchain", "model_of"]
