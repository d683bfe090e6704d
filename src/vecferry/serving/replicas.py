"""One side of a `FallbackCollection`: it may be missing, slow, broken, or in another space."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any

from vecferry.connecting import Collection, connect
from vecferry.core.retry import CircuitBreaker
from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    MissingDependencyError,
    NotFoundError,
    RetryableError,
    SchemaMismatchError,
    SpaceMismatchError,
    UnsupportedError,
    VecferryError,
)
from vecferry.model import EmbeddingSpace, VectorRecord, Where
from vecferry.ports import Embedder, Searchable, for_queries
from vecferry.serving.counters import Counters

_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (SpaceMismatchError, "space"),
    (SchemaMismatchError, "schema"),
    (NotFoundError, "missing"),
    (ConfigurationError, "configuration"),
    (MissingDependencyError, "configuration"),
    (UnsupportedError, "unsupported"),
)


class SideTimeout(RetryableError):
    """A side did not answer in time."""


class SideOpen(RetryableError):
    """The circuit breaker of a side lets nothing through."""


class SideError(FatalStoreError):
    """An exception of a vendor's library that no adapter translated."""


def cause_of(error: BaseException) -> str:
    """One word for figures: why a side was passed over."""
    if isinstance(error, SideTimeout):
        return "timeout"
    if isinstance(error, SideOpen):
        return "breaker"
    return next((cause for kind, cause in _CAUSES if isinstance(error, kind)), "error")


@dataclass
class Query:
    """A question: a text, or a vector with the space it is known to be of.

    A text is embedded once per embedder. ``usual`` is the embedder whose space an app's own vectors are
    taken to be of.
    """

    text: str | None
    vector: Any = None
    space: EmbeddingSpace | None = None
    usual: Embedder | None = None
    _embedded: dict[int, Any] = field(default_factory=dict)

    def embedded(self, embedder: Embedder) -> Any:
        """The text's vector by this embedder."""
        if id(embedder) not in self._embedded:
            assert self.text is not None
            self._embedded[id(embedder)] = for_queries(embedder).embed([self.text])[0]
        return self._embedded[id(embedder)]


_MOST_ASKED = 10_000
"""Hits that a side is asked for at most, so that enough of them pass a filter."""


class Replica:
    """A collection, how its queries are embedded, and how patient one is with it.

    Args:
        what: a `Collection`, a store, a URL, or a callable that opens one. URLs and callables are
            opened at the first search, so that a service starts although a side is missing; one that
            could not be opened is tried again after ``reopen_after`` seconds.
    """

    def __init__(
        self,
        name: str,
        what: Any,
        embedder: Embedder | None,
        *,
        timeout: float | None,
        breaker: CircuitBreaker,
        figures: Counters,
        workers: int = 8,
        reopen_after: float = 15.0,
    ) -> None:
        self.name, self.timeout, self.breaker = name, timeout, breaker
        self.embedder = _for_queries(embedder)
        self._figures, self._reopen_after = figures, reopen_after
        self._what, self._collection = what, None if _opens_later(what) else _collection(what)
        self._failure: tuple[float, VecferryError] | None = None
        self._space: dict[str, EmbeddingSpace | None] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(workers, f"vecferry-{name}")
        if self._collection is not None:
            figures.count("initialisations", side=name, result="ok")

    def collection(self) -> Collection:
        """The opened collection.

        Raises:
            VecferryError: if it cannot be opened, or could not a moment ago.
        """
        if self._collection is not None:
            return self._collection
        with self._lock:
            if self._collection is None:
                self._open()
            assert self._collection is not None
            return self._collection

    def search(
        self, query: Query, k: int, where: Where | None, field: str, options: dict[str, Any]
    ) -> list[VectorRecord]:
        """Search within the timeout and through the breaker.

        Raises:
            VecferryError: whatever went wrong; vendors' own exceptions are wrapped.
        """
        if self.timeout is None:
            return self._guarded(lambda: self._search(query, k, where, field, options))
        return self._guarded(lambda: self._timed(query, k, where, field, options))

    async def asearch(
        self, query: Query, k: int, where: Where | None, field: str, options: dict[str, Any]
    ) -> list[VectorRecord]:
        """As `search`; the work happens in this side's own threads, the event loop stays free."""
        return await asyncio.get_running_loop().run_in_executor(
            self._waiters(), lambda: self.search(query, k, where, field, options)
        )

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiters = self.__dict__.pop("_async_pool", None)
        if waiters:  # whoever waits gets an error; a cancelled future would cancel its task
            waiters.shutdown(wait=False)
        if self._collection is not None:
            self._collection.close()

    # -- helpers ------------------------------------------------------------------------------

    def _waiters(self) -> ThreadPoolExecutor:
        """Threads that wait for `_pool`: they must not be the ones they wait for."""
        with self._lock:
            self._check_open()
            if "_async_pool" not in self.__dict__:
                self._async_pool = ThreadPoolExecutor(32, f"vecferry-{self.name}-async")
            return self._async_pool

    def _open(self) -> None:
        if self._failure and time.monotonic() - self._failure[0] < self._reopen_after:
            raise self._failure[1]
        try:
            self._collection = _collection(_opened(self._what))
            self._collection.describe()
        except Exception as error:
            self._collection = None
            translated = error if isinstance(error, VecferryError) else SideError(f"{self.name}: {error}")
            self._failure = (time.monotonic(), translated)
            self._figures.count("initialisations", side=self.name, result=cause_of(translated))
            raise translated from error
        self._figures.count("initialisations", side=self.name, result="ok")

    def _check_open(self) -> None:
        if self._closed:
            raise SideError(f"{self.name} is closed")

    def _guarded(self, search: Callable[[], list[VectorRecord]]) -> list[VectorRecord]:
        self._check_open()
        if self.breaker.open:
            raise SideOpen(f"{self.name} is left alone after its last failures")
        return self.breaker.call(search)

    def _timed(
        self, query: Query, k: int, where: Where | None, field: str, options: dict[str, Any]
    ) -> list[VectorRecord]:
        try:
            future = self._pool.submit(self._search, query, k, where, field, options)
        except RuntimeError:  # closed in this moment
            raise SideError(f"{self.name} is closed") from None
        try:
            return future.result(self.timeout)
        except CancelledError:
            raise SideError(f"{self.name} was closed before it could answer") from None
        except FutureTimeoutError:
            future.cancel()
            raise SideTimeout(f"{self.name} did not answer within {self.timeout} s") from None

    def _search(
        self, query: Query, k: int, where: Where | None, field: str, options: dict[str, Any]
    ) -> list[VectorRecord]:
        try:
            collection = self.collection()
            what = self._ask(collection, query, field)
            hits: list[VectorRecord] = collection.search(what, k, where, field=field, **options)
            asked = k
            while where is not None and len(hits) < k and asked < _MOST_ASKED:
                # A store that filters what it has found needs to find more for k to pass.
                asked = min(asked * 8, _MOST_ASKED)
                more = collection.search(what, asked, where, field=field, **options)
                if len(more) <= len(hits):
                    break
                hits = more[:k]
            return hits
        except VecferryError:
            raise
        except Exception as error:
            raise SideError(f"{self.name}: {type(error).__name__}: {error}") from error

    def _ask(self, collection: Collection, query: Query, field: str) -> Any:
        """The text, or a vector in this side's own space.

        Raises:
            SpaceMismatchError: if there is no such vector.
            SchemaMismatchError: if there is no such field.
        """
        by_vector = query.vector is not None and isinstance(collection.store, Searchable)
        if query.text is not None and self.embedder is None and not by_vector:
            return query.text  # the store embeds by itself, or says that it cannot
        stored = self.space(field)
        if query.text is not None and self.embedder is not None:
            self._same(stored, self.embedder.space, "its embedder gives")
            return query.embedded(self.embedder)
        if query.space is None:
            query.space = query.usual.space if query.usual else stored
        self._same(stored, query.space, "the query is")
        return query.vector

    def _same(self, stored: EmbeddingSpace | None, other: EmbeddingSpace | None, what: str) -> None:
        if stored and other and not stored.same_as(other):
            raise SpaceMismatchError(
                f"{self.name} holds vectors of {stored}, {what} {other}; give this side an embedder of its "
                "own space (embedders=…) and search by text"
            )

    def space(self, field: str = "") -> EmbeddingSpace | None:
        """The recorded space of a vector field; ``None`` if it is unknown."""
        if field not in self._space:
            try:
                schema = self.collection().describe()
                self._space[field] = schema.field(field).space if schema.fields else None
            except UnsupportedError:
                self._space[field] = None
            except KeyError as error:  # the caller's mistake, not a fault of this side
                raise SchemaMismatchError(f"{self.name}: {error.args[0]}") from None
        return self._space[field]


def _for_queries(embedder: Embedder | None) -> Embedder | None:
    view: Any = getattr(embedder, "for_queries", None)
    return view() if view else embedder


def _opens_later(what: Any) -> bool:
    return isinstance(what, str) or (callable(what) and not hasattr(what, "search"))


def _opened(what: Any) -> Any:
    if isinstance(what, str):
        return connect(what)
    return what()


def _collection(what: Any) -> Collection:
    return what if isinstance(what, Collection) else Collection(what)
