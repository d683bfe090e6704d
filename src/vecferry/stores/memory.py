"""``memory:NAME``: records in this process. The adapter to copy: everything, in the fixed order.

Two stores of one name share their records while the process lives; ``memory:`` alone is private.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vecferry.errors import (
    NotFoundError,
    TargetExistsError,
)
from vecferry.model import (
    CollectionSchema,
    DType,
    Kind,
    Metric,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
    encode_id,
    predicate,
)
from vecferry.model.metrics import score
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Partition,
    StoreURL,
    Version,
    WriteMode,
    WriteReceipt,
    check_fits,
)
from vecferry.stores.kit.checks import check_columns, check_query, field_named
from vecferry.stores.kit.versions import before, surplus


@dataclass
class Shelf:
    """One state of a collection: its schema and its records by typed id, in order of arrival."""

    schema: CollectionSchema | None = None
    records: dict[str, VectorRecord] = field(default_factory=dict)


@dataclass
class Cabinet:
    """All states of a collection: the live one, those under construction, those kept."""

    live: str | None = None
    shelves: dict[str, Shelf] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)


_CABINETS: dict[str, Cabinet] = {}


class MemoryStore:
    """Source, sink and every ability, in plain Python."""

    def __init__(self, name: str = "", *, tag: str | None = None) -> None:
        self.url = f"memory:{name}"
        self.name = name
        self._cabinet = _CABINETS.setdefault(name, Cabinet()) if name else Cabinet()
        self._tag = tag

    @classmethod
    def from_url(cls, url: StoreURL) -> MemoryStore:
        return cls(url.path or url.fragment)

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        shelf = self._shelf()
        schema = (shelf and shelf.schema) or CollectionSchema(name=self.name)
        return schema.model_copy(update={"count": self.count(), "ids_unique": True})

    def count(self) -> int:
        shelf = self._shelf()
        return len(shelf.records) if shelf else 0

    def partitions(self, want: int) -> Sequence[Partition]:
        n = self.count()
        edges = [n * i // want for i in range(want + 1)]
        spans = [(a, b) for a, b in pairwise(edges) if b > a] or [(0, n)]
        return [Partition(str(i), [a, b], b - a) for i, (a, b) in enumerate(spans)]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        shelf = self._shelf() or Shelf()
        records = list(shelf.records.values())
        start, stop = partition.bounds if partition else (0, len(records))
        start = start if after is None else int(after)
        passes = None if where is None else predicate(where)
        for low in range(start, stop, batch_size):
            high = min(low + batch_size, stop)
            chosen = [r for r in records[low:high] if passes is None or passes(r.metadata)]
            yield _batch(chosen, shelf.schema, fields).replace(cursor=high)

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        return Capabilities(kinds=frozenset(Kind), metrics=frozenset(Metric), dtypes=frozenset(DType))

    def exists(self) -> bool:
        shelf = self._shelf()
        return shelf is not None and shelf.schema is not None

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        if mode is WriteMode.CREATE and self.exists() and self.count():
            raise TargetExistsError(f'{self.url} holds records; pass mode="upsert" or mode="replace"')
        shelf = self._shelf(create=True)
        assert shelf is not None
        if mode is WriteMode.REPLACE:
            shelf.records.clear()
            shelf.schema = None
        if shelf.schema is None:
            shelf.schema = schema.model_copy(update={"name": self.name, "losses": ()})
        check_fits(shelf.schema, schema, self.url)

    def write(self, batch: RecordBatch) -> WriteReceipt:
        shelf = self._shelf()
        if shelf is None or shelf.schema is None:
            raise NotFoundError(f"{self.url} was not prepared; call prepare() first")
        check_columns(batch, shelf.schema, self.url)
        for record in batch.records():
            # Rows are views of the batch's arrays: copied, so that the batch can be freed.
            vectors = {name: value.copy() for name, value in record.vectors.items()}
            shelf.records[encode_id(record.id)] = record.model_copy(update={"vectors": vectors})
        return WriteReceipt(len(batch), batch.nbytes)

    def finish(self) -> None:
        """Nothing to build."""

    def close(self) -> None:
        """Nothing to release."""

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        shelf = self._shelf() or Shelf()
        found = [shelf.records[key] for key in map(encode_id, ids) if key in shelf.records]
        return _batch(found, shelf.schema, fields)

    def search(
        self, vector: Any, k: int = 10, *, field: str = "", where: Where | None = None
    ) -> list[VectorRecord]:
        shelf = self._shelf() or Shelf()
        target = field_named(field, self.describe(), self.url)
        check_query(vector, target)
        hits = []
        passes = None if where is None else predicate(where)
        for record in list(shelf.records.values()):  # others may write meanwhile
            side = record.sparse_vectors if target.kind is Kind.SPARSE else record.vectors
            stored = side.get(target.name)
            if stored is not None and (passes is None or passes(record.metadata)):
                hits.append((score(target.metric, target.kind, vector, stored), record))
        hits.sort(key=lambda hit: -hit[0])
        return [record.model_copy(update={"score": s}) for s, record in hits[:k]]

    def delete(self, ids: Sequence[RecordId]) -> int:
        shelf = self._shelf() or Shelf()
        return sum(shelf.records.pop(encode_id(id_), None) is not None for id_ in ids)

    def stages(self, mode: WriteMode) -> bool:
        return mode is WriteMode.REPLACE

    def shadow(self, tag: str) -> MemoryStore:
        store = MemoryStore(self.name, tag=tag)
        store._cabinet = self._cabinet
        return store

    def publish(self, tag: str) -> Version:
        cabinet = self._cabinet
        if tag not in cabinet.shelves:
            raise NotFoundError(f"{self.url} has no shadow {tag!r} to publish")
        if cabinet.live != tag:
            cabinet.history = [t for t in cabinet.history if t != tag] + [tag]
            cabinet.live = tag
        return self.versions()[0]

    def discard(self, tag: str) -> None:
        if tag not in self._cabinet.history:
            self._cabinet.shelves.pop(tag, None)

    def versions(self) -> list[Version]:
        cabinet = self._cabinet
        return [
            Version(tag, tag == cabinet.live, count=len(cabinet.shelves[tag].records))
            for tag in reversed(cabinet.history)
        ]

    def rollback(self) -> Version:
        cabinet = self._cabinet
        cabinet.live = before(cabinet.history, cabinet.live, self.url)
        return next(version for version in self.versions() if version.live)

    def roll_to(self, tag: str) -> Version:
        if tag not in self._cabinet.history:
            raise NotFoundError(f"{self.url} keeps no version {tag!r}")
        self._cabinet.live = tag
        return next(version for version in self.versions() if version.live)

    def prune(self, keep: int = 0) -> list[str]:
        cabinet = self._cabinet
        gone = surplus(cabinet.history, cabinet.live, keep)
        for tag in gone:
            cabinet.history.remove(tag)
            del cabinet.shelves[tag]
        return gone

    # -- helpers ------------------------------------------------------------------------------

    def _shelf(self, *, create: bool = False) -> Shelf | None:
        tag = self._tag or self._cabinet.live
        if tag is None and create:
            tag = self._cabinet.live = "first"
            self._cabinet.history.append(tag)
        if tag is None:
            return None
        if create:
            return self._cabinet.shelves.setdefault(tag, Shelf())
        return self._cabinet.shelves.get(tag)


def _batch(records: Sequence[VectorRecord], schema: CollectionSchema | None, fields: Fields) -> RecordBatch:
    batch = RecordBatch.from_records(records, schema)
    return batch.replace(
        vectors={k: v for k, v in batch.vectors.items() if fields.wants(k)},
        sparse_vectors={k: v for k, v in batch.sparse_vectors.items() if fields.wants(k)},
        texts=batch.texts if fields.text else None,
        metadata=batch.metadata if fields.metadata else None,
    )
