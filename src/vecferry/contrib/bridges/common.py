"""What both bridges do alike: ask for a search, write, delete, find by id."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from vecferry.connecting import Collection, connect
from vecferry.errors import UnsupportedError
from vecferry.model import RecordBatch, RecordId, VectorRecord, Where
from vecferry.serving.fallback import FallbackCollection


class Backend:
    """A collection, the field searched in, and who takes the writes."""

    def __init__(self, collection: Any, field: str = "", writer: Any = None) -> None:
        ready = isinstance(collection, FallbackCollection)
        self.collection: Any = collection if ready else connect(collection)
        self.field, self._writer = field, writer

    def search(self, query: Any, k: int, where: Where | None) -> list[VectorRecord]:
        hits: list[VectorRecord] = self.collection.search(query, k, where, field=self.field)
        return hits

    async def asearch(self, query: Any, k: int, where: Where | None) -> list[VectorRecord]:
        if isinstance(self.collection, FallbackCollection):
            return list(await self.collection.asearch(query, k, where, field=self.field))
        return await asyncio.to_thread(self.search, query, k, where)

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


def _readings(text: str) -> list[RecordId]:
    ways: list[RecordId] = [text]
    if text.lstrip("-").isdigit() and str(int(text)) == text:
        ways.append(int(text))
    with suppress(ValueError):
        ways.append(UUID(text))
    return ways
