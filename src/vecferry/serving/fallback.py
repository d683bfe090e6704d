"""`FallbackCollection`: one collection to search, several that can answer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecferry.connecting import Collection
from vecferry.core.registry import find
from vecferry.core.retry import CircuitBreaker
from vecferry.errors import ConfigurationError, FatalStoreError, PlanError, RetryableError, VecferryError
from vecferry.model import CollectionSchema, EmbeddingSpace, VectorRecord, Where, check_where
from vecferry.ports import Embedder, Question
from vecferry.serving.counters import Counters, Listener
from vecferry.serving.replicas import Query, Replica, cause_of

ENVIRONMENT = "VECFERRY_PRIMARY"
_log = logging.getLogger("vecferry.serving")


class Hit(VectorRecord):
    """A search hit that knows which side it came from."""

    origin: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A side that was passed over: ``cause`` is the label of the figures, ``reason`` the message."""

    side: str
    cause: str
    reason: str


class Hits(list[Hit]):
    """The hits of one search, best first.

    Attributes:
        origin: the side that answered.
        attempts: the sides passed over before it, in order; empty if the first one answered.
        seconds: how long the whole search took.
    """

    def __init__(
        self,
        hits: Sequence[Hit] = (),
        origin: str = "",
        attempts: Sequence[Attempt] = (),
        seconds: float = 0.0,
    ) -> None:
        super().__init__(hits)
        self.origin, self.attempts, self.seconds = origin, tuple(attempts), seconds

    @property
    def fell_back(self) -> bool:
        """Whether the side that should have answered did not."""
        return bool(self.attempts)


class FallbackCollection:
    """Searches the first side that can answer.

    A side is passed over when it fails in any way (an error, a missing index or key, a timeout, an open
    circuit breaker), when the query cannot be brought into its embedding space, or, if asked for, when it
    finds too few hits. Each side gets the query in *its own* space: a text is embedded by that side's
    embedder; a vector goes only to sides of its space.

    Which side comes first is decided at every search: by `primary` if it was set, else by ``switch``,
    else by the environment variable ``VECFERRY_PRIMARY``, else by the order given. So a rollback needs
    no deploy.

    Args:
        sides: collections, stores, URLs, or callables that open one (then at the first search).
        names: one a side; by default ``primary``, ``secondary``, ``third``, ….
        embedder: for every side that ``embedders`` leaves out.
        embedders: by side name; ``None`` for a side that embeds by itself.
        timeout: seconds for each side; one number, or by name. ``None`` waits.
        min_hits: fewer hits than this (and than ``k``) count as a failure; the best answer so far is
            kept in case no other side does better.
        breaker: makes the circuit breaker of each side.
        switch: a callable, or the path of a small text file, that gives the name of the first side.
        listeners: see `Counters`.

    >>> from vecferry.stores.memory import MemoryStore
    >>> kb = FallbackCollection(MemoryStore("local"), MemoryStore("cloud"), names=("local", "cloud"))
    >>> kb.primary = "cloud"
    """

    def __init__(
        self,
        *sides: Any,
        names: Sequence[str] | None = None,
        embedder: Embedder | None = None,
        embedders: Mapping[str, Embedder | None] | None = None,
        timeout: float | Mapping[str, float | None] | None = None,
        min_hits: int = 0,
        breaker: Callable[[], CircuitBreaker] = CircuitBreaker,
        switch: Callable[[], str | None] | str | Path | None = None,
        listeners: Sequence[Listener] = (),
        workers: int = 8,
        reopen_after: float = 15.0,
    ) -> None:
        names = names or _default_names(len(sides))
        if not sides or len(names) != len(sides) or len(set(names)) != len(names):
            raise ConfigurationError(f"{len(sides)} sides need as many different names, not {list(names)}")
        embedders = embedders or {}
        limits = timeout if isinstance(timeout, Mapping) else dict.fromkeys(names, timeout)
        for unknown in [*embedders, *limits]:
            _check_name(unknown, names)
        self.figures = Counters(*listeners)
        self.min_hits = min_hits
        self._switch = Path(switch) if isinstance(switch, str) else switch
        self._primary: str | None = None
        self._warned: str | None = None
        self._sides = {
            name: Replica(
                name,
                what,
                embedders.get(name, embedder),
                timeout=limits.get(name),
                breaker=breaker(),
                figures=self.figures,
                workers=workers,
                reopen_after=reopen_after,
            )
            for name, what in zip(names, sides, strict=True)
        }

    def __repr__(self) -> str:
        return f"<FallbackCollection {' → '.join(side.name for side in self.order())}>"

    def __enter__(self) -> FallbackCollection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release threads and collections."""
        for side in self._sides.values():
            side.close()

    # -- the switch -----------------------------------------------------------------------------

    @property
    def primary(self) -> str:
        """The name of the side that is asked first now."""
        return self.order()[0].name

    @primary.setter
    def primary(self, name: str | None) -> None:
        """Ask this side first from now on; ``None`` gives the choice back to switch and environment."""
        if name is not None:
            _check_name(name, list(self._sides))
        self._primary = name

    def order(self) -> list[Replica]:
        """The sides in the order in which they are asked now."""
        wanted = self._primary or self._switched() or os.environ.get(ENVIRONMENT)
        if wanted and wanted not in self._sides:
            self._warn(f"no side is called {wanted!r}; there are {', '.join(self._sides)}")
        first = [self._sides[wanted]] if wanted in self._sides else []
        return first + [side for side in self._sides.values() if side not in first]

    def _switched(self) -> str | None:
        """What the switch says; one that cannot be asked says nothing, and the searches go on."""
        try:
            if isinstance(self._switch, Path):
                return self._switch.read_text("utf-8-sig").strip() or None
            return self._switch() if self._switch else None
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - somebody else's function
            self._warn(f"the switch cannot be asked: {type(error).__name__}: {error}")
            return None

    def _warn(self, what: str) -> None:
        if self._warned != what:
            _log.warning("%s", what)
            self._warned = what

    # -- searching ------------------------------------------------------------------------------

    def search(
        self,
        query: Any,
        k: int = 10,
        where: Where | None = None,
        *,
        field: str = "",
        space: EmbeddingSpace | None = None,
        **options: Any,
    ) -> Hits:
        """The ``k`` nearest records of the first side that can answer.

        Args:
            query: a text, a vector, a `VectorRecord` whose vector is used, or a `Question` with both:
                a side with an embedder embeds the text, one of vectors gets the vector, one that embeds
                by itself the text.
            space: the space of a vector; by default that of the first side's embedder, else that
                recorded with the first side that can be opened.

        Raises:
            PlanError: if the call itself is wrong for every side.
            RetryableError: if no side answered, and some may later.
            FatalStoreError: if no side answered.
        """
        search = Search(self, query, k, where, field, space, options)
        for side in search.sides():
            search.ask(side)
        return search.answer()

    async def asearch(
        self,
        query: Any,
        k: int = 10,
        where: Where | None = None,
        *,
        field: str = "",
        space: EmbeddingSpace | None = None,
        **options: Any,
    ) -> Hits:
        """As `search`, for event loops."""
        search = Search(self, query, k, where, field, space, options)
        for side in search.sides():
            await search.aask(side)
        return search.answer()

    def search_text(self, text: str, k: int = 10, *, where: Where | None = None) -> list[VectorRecord]:
        """As `search`, so that this object can stand where a store does."""
        return list(self.search(text, k, where))

    def as_langchain_vector_store(self, embedder: Any = None, **options: Any) -> Any:
        """This as a LangChain ``VectorStore``; ``writer=`` takes the writes."""
        return find("vecferry.bridges", "langchain")(self, embedder, **options)

    def as_llama_index_vector_store(self, embedder: Any = None, **options: Any) -> Any:
        """This as a LlamaIndex vector store; ``writer=`` takes the writes."""
        return find("vecferry.bridges", "llama-index")(self, embedder, **options)

    # -- what a collection can say --------------------------------------------------------------

    @property
    def collection(self) -> Collection:
        """The collection that is asked first now."""
        return self.order()[0].collection()

    def describe(self) -> CollectionSchema:
        """The schema of the side that is asked first now."""
        return self.collection.describe()

    def count(self) -> int:
        """The records of the side that is asked first now."""
        return self.collection.count()


class Search:
    """One search on its way from side to side."""

    def __init__(
        self,
        owner: FallbackCollection,
        query: Any,
        k: int,
        where: Where | None,
        field: str,
        space: EmbeddingSpace | None,
        options: dict[str, Any],
    ) -> None:
        self.figures, self.least = owner.figures, min(owner.min_hits, k)
        self.order = owner.order()
        self.args = (k, None if where is None else check_where(where), field, options)
        asked = query if isinstance(query, Question) else None
        if asked is None:
            asked = Question(text=query) if isinstance(query, str) else Question(vector=query)
        self.query = Query(asked.text, asked.vector, asked.space or space, self.order[0].embedder)
        self.attempts: list[Attempt] = []
        self.errors: list[VecferryError] = []
        self.best: tuple[Replica, list[VectorRecord], float, int] | None = None
        self.done = False
        self.start = time.perf_counter()

    def sides(self) -> Iterator[Replica]:
        for side in self.order:
            if self.done:
                return
            yield side

    def ask(self, side: Replica) -> None:
        began = time.perf_counter()
        try:
            hits = side.search(self.query, *self.args)
        except VecferryError as error:
            self._failed(side, error)
        else:
            self._answered(side, hits, time.perf_counter() - began)

    async def aask(self, side: Replica) -> None:
        began = time.perf_counter()
        try:
            hits = await side.asearch(self.query, *self.args)
        except VecferryError as error:
            self._failed(side, error)
        else:
            self._answered(side, hits, time.perf_counter() - began)

    def answer(self) -> Hits:
        """The best answer there is.

        Raises:
            VecferryError: if there is none.
        """
        if self.best is None:
            raise self._no_answer()
        side, found, seconds, before = self.best
        self.figures.count("searches", side=side.name)
        self.figures.time(side.name, seconds)
        hits = [Hit.model_construct(**{**dict(record), "origin": side.name}) for record in found]
        return Hits(hits, side.name, self.attempts[:before], time.perf_counter() - self.start)

    def _answered(self, side: Replica, hits: list[VectorRecord], seconds: float) -> None:
        if self.best is None or len(hits) > len(self.best[1]):
            self.best = (side, hits, seconds, len(self.attempts))
        if len(hits) >= self.least:
            self.done = True
            return
        self._pass(side, "few_hits", f"{len(hits)} hits where {self.least} are wanted")

    def _failed(self, side: Replica, error: VecferryError) -> None:
        self.errors.append(error)
        self.figures.count("errors", side=side.name, error=type(error).__name__)
        self._pass(side, cause_of(error), str(error))

    def _pass(self, side: Replica, cause: str, reason: str) -> None:
        self.attempts.append(Attempt(side.name, cause, reason))
        self.figures.count("fallbacks", side=side.name, cause=cause)

    def _no_answer(self) -> VecferryError:
        self.figures.count("unanswered")
        if all(isinstance(error, PlanError) for error in self.errors):
            return self.errors[0]
        reasons = "; ".join(f"{a.side}: {a.reason}" for a in self.attempts)
        passing = any(isinstance(error, RetryableError) for error in self.errors)
        kind = RetryableError if passing else FatalStoreError
        error = kind(f"no side could answer: {reasons}")
        error.__cause__ = self.errors[-1]
        return error


def _default_names(n: int) -> list[str]:
    words = ["primary", "secondary", "third", "fourth", "fifth"]
    return words[:n] if n <= len(words) else [f"side{i}" for i in range(1, n + 1)]


def _check_name(name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ConfigurationError(f"no side is called {name!r}; there are {', '.join(names)}")
