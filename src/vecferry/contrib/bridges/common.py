"""What both bridges do alike: ask for a search, write, delete, find by id."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from vecferry.connecting import Collection, connect
from vecferry.embedding import canonical, resolve
from vecferry.embedding.providers.callables import model_of
from vecferry.embedding.space import known
from vecferry.errors import ConfigurationError, SpaceMismatchError, UnsupportedError, VecferryError
from vecferry.model import RecordBatch, RecordId, VectorRecord, Where
from vecferry.ports import Question
from vecferry.serving.fallback import FallbackCollection


class Backend:
    """A collection, the field searched in, and who takes the writes."""

    def __init__(self, collection: Any, field: str = "", writer: Any = None) -> None:
        ready = isinstance(collection, FallbackCollection)
        self.collection: Any = collection if ready else connect(collection)
        self.field, self._writer = field, writer

    def search(
        self, query: Question, k: int, where: Where | None, options: Mapping[str, Any] | None = None
    ) -> list[VectorRecord]:
        """Ask the whole question; ``options`` go on to the store.

        Raises:
            UnsupportedError: naming an option that the store does not have.
        """
        with known_options(options):
            hits = self.collection.search(query, k, where, **{"field": self.field, **(options or {})})
            return list(hits)

    async def asearch(
        self, query: Question, k: int, where: Where | None, options: Mapping[str, Any] | None = None
    ) -> list[VectorRecord]:
        if isinstance(self.collection, FallbackCollection):
            with known_options(options):
                asked = {"field": self.field, **(options or {})}
                return list(await self.collection.asearch(query, k, where, **asked))
        return await asyncio.to_thread(self.search, query, k, where, options)

    def check_model(self, embedder: Any) -> None:
        """The model of the questions must be that of the vectors, as far as both are known.

        Raises:
            SpaceMismatchError: naming both.
        """
        space = None if embedder is None else getattr(embedder, "space", None)
        model = space.model if space else _model_of(embedder)
        if model is None:
            return
        try:
            stored = self.collection.describe().field(self.field).space
        except (VecferryError, KeyError):
            return  # a side that is away, or one without vectors
        if stored is None:
            return
        if space is not None and not stored.same_as(space):
            raise SpaceMismatchError(
                f"the collection holds vectors of {stored}, the questions are embedded by {space}; "
                "pass the collection's own model"
            )
        if space is None and known(model) and canonical(model) != stored.model:
            raise SpaceMismatchError(
                f"the collection holds vectors of {stored}, the questions are embedded by {model}; "
                "pass the collection's own model"
            )

    def write(self, batch: RecordBatch) -> None:
        """Upsert.

        Raises:
            UnsupportedError: where there is nobody to take it.
        """
        self._writing("write").write(batch)

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete by id; raises as `write`."""
        return int(self._writing("delete").delete(list(ids)))

    def fetch(self, ids: Sequence[str]) -> list[VectorRecord]:
        """The records of these ids, which a framework knows as text only: ``"7"`` also finds ``7``."""
        reading = self._reading()
        found: list[VectorRecord] = []
        for id_ in ids:
            hits = (reading.fetch([way]) for way in _readings(id_))
            found += next((hit for hit in hits if hit), [])
        return found

    def where(self, where: Where) -> list[VectorRecord]:
        """All records that match."""
        return list(self._reading().records(where=where))

    def _reading(self) -> Collection:
        fallback = isinstance(self.collection, FallbackCollection)
        reading: Collection = self.collection.collection if fallback else self.collection
        return reading

    def _writing(self, verb: str) -> Any:
        if self._writer is not None:
            return self._writer
        if isinstance(self.collection, FallbackCollection):
            raise UnsupportedError(
                f"a FallbackCollection only searches; pass writer=DualWriter(…) to {verb}"
            )
        return self.collection


def one_embedder(embedder: Any, embed: Any) -> Any:
    """``embed=`` is the name everywhere; ``embedder=`` goes on to work.

    Raises:
        ConfigurationError: if both are given.
    """
    if embedder is not None and embed is not None:
        raise ConfigurationError("pass embed= only; embedder= is its former name")
    return resolve(embed) if isinstance(embed, str) else embedder if embed is None else embed


def refuse_unknown(kwargs: Mapping[str, Any], what: str) -> None:
    """Nothing that is asked for is dropped in silence.

    Raises:
        UnsupportedError: naming what is not known.
    """
    if kwargs:
        raise UnsupportedError(f"{what} does not know {', '.join(sorted(kwargs))}; leave it out")


@contextmanager
def known_options(options: Mapping[str, Any] | None) -> Iterator[None]:
    """Name an option that a store's search does not have."""
    try:
        yield
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not found or found[1] not in (options or {}):
            raise
        raise UnsupportedError(
            f"the search of this collection does not know {found[1]!r}; leave it out"
        ) from error


def _model_of(embedder: Any) -> str | None:
    try:
        return model_of(embedder)
    except ConfigurationError:
        return None


def _readings(text: str) -> list[RecordId]:
    ways: list[RecordId] = [text]
    if text.lstrip("-").isdigit() and str(int(text)) == text:
        ways.append(int(text))
    with suppress(ValueError):
        ways.append(UUID(text))
    return ways
