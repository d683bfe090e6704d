"""Any function as an embedder, and the embedding objects of LangChain and LlamaIndex."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from vecferry.core.retry import RetryPolicy
from vecferry.embedding.base import Matrix, checked
from vecferry.embedding.requests import SLICE, Reply, RequestEmbedder, foreign_error
from vecferry.embedding.space import canonical, declared_space
from vecferry.errors import ConfigurationError, FatalStoreError, VecferryError
from vecferry.model import EmbeddingSpace
from vecferry.ports import Embedder

Function: TypeAlias = Callable[[list[str]], ArrayLike | Awaitable[ArrayLike]]


class CallableEmbedder(RequestEmbedder):
    """A function from texts to vectors.

    What it raises is told apart by the status code that its client's exception carries, or by its causes:
    a rate limit and a broken connection are waited out, a refused key stops, a text that makes it fail
    while others do not is set aside.

    Args:
        function: takes ``list[str]``, returns ``(n, dim)`` numbers; may be ``async``. It must be
            thread-safe if it is shared between jobs.
        space: the space, or ``"provider:model"``; else the name is ``name`` and the rest is measured.
        name: the model's name; else the function's own dotted name.
        batch_size: texts per call.
        queries: the function for questions, where the model treats them differently.
        retry: waits between attempts.

    Raises:
        ConfigurationError: for a function whose name says nothing about its model: a lambda, one of
            ``__main__``, one defined inside another. Two scripts would pass for one model.
    """

    provider = "callable"

    def __init__(
        self,
        function: Function,
        *,
        space: str | EmbeddingSpace | None = None,
        name: str | None = None,
        batch_size: int = SLICE,
        queries: Function | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__(concurrency=1, batch_size=batch_size, retry=retry)
        self._queries = queries
        self._function = function
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
            self._queries, space=self.space, name=self.name, batch_size=self.batch_size, retry=self.retry
        )

    def request(self, texts: list[str], prompt: str) -> Reply:
        vectors = self._call(texts)
        return Reply(checked(vectors, len(texts), self._space) if self._space else vectors)

    def _measured(self) -> EmbeddingSpace:
        vector = self.measure()
        if self._declaration is not None:
            return declared_space(self._declaration, vector.shape[1])
        unit = bool(abs(float(np.linalg.norm(vector[0])) - 1.0) < 1e-3)
        return EmbeddingSpace(model=canonical(self.name), dim=vector.shape[1], normalized=unit)

    def _call(self, texts: list[str]) -> Matrix:
        try:
            answer = self._function(texts)
            if inspect.isawaitable(answer):
                answer = run_awaitable(answer)
        except VecferryError:
            raise
        except Exception as error:  # a foreign function may raise anything
            raise foreign_error(error, f"{self!r}") from error
        try:
            return np.asarray(answer, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise FatalStoreError(f"{self!r} returned something else than vectors of one length") from error


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


def _name_of(function: Function) -> str:
    """The function's dotted name, where it can be that of one model only."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None) or type(function).__module__
    what = "a lambda" if name.endswith("<lambda>") else f"{module}.{name}"
    if "<" in name or module in ("__main__", "__mp_main__", "builtins"):
        raise ConfigurationError(
            f"{what} says nothing about its model, and another script may have one of that name: "
            'CallableEmbedder(function, space="provider:model")'
        )
    return f"{module}.{name}"


def run_awaitable(awaitable: Awaitable[Any]) -> Any:
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


__all__ = ["CallableEmbedder", "LlamaIndexEmbedder", "from_langchain", "model_of", "run_awaitable"]
