"""A source and a sink that fail where a test tells them to, over `memory:` stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vecferry.errors import RejectedRecord
from vecferry.model import RecordBatch
from vecferry.ports import WriteReceipt
from vecferry.stores.jsonl import JsonlStore
from vecferry.stores.memory import MemoryStore


class BreakingSource(MemoryStore):
    """Raises ``fault()`` after every ``every`` batches, ``times`` times in all."""

    def __init__(self, name: str, fault: Callable[[], Exception], every: int = 2, times: int = 3) -> None:
        super().__init__(name)
        self.fault, self.every, self.left = fault, every, times

    def scan(self, **options: Any) -> Iterator[RecordBatch]:
        for i, batch in enumerate(super().scan(**options)):
            if options.get("partition") and i == self.every and self.left:
                self.left -= 1
                raise self.fault()
            yield batch


class PickySink(MemoryStore):
    """Refuses the ids in ``bad``, without naming them."""

    bad: frozenset[Any] = frozenset()

    def write(self, batch: RecordBatch) -> WriteReceipt:
        if any(id_ in self.bad for id_ in batch.id_list):
            raise RejectedRecord("the value is out of range")
        return super().write(batch)


class TamperingJsonl(JsonlStore):
    """Loses a record on its way to disk, and says nothing: what a verification is for."""

    def shadow(self, tag: str) -> Any:
        shadow = super().shadow(tag)
        write = shadow.write

        def lose_one(batch: RecordBatch) -> WriteReceipt:
            write(batch.slice(1, len(batch)))
            return WriteReceipt(len(batch))

        shadow.write = lose_one  # type: ignore[method-assign]
        return shadow


def lines(path: Path) -> int:
    return sum(1 for line in path.read_text().splitlines() if line.strip())
