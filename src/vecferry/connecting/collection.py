"""`Collection`: what a user opens with ``vecferry.connect(url)``. A thin, friendly face of a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from vecferry.core.registry import find
from vecferry.errors import PlanError, RejectedRecord, SchemaMismatchError, UnsupportedError
from vecferry.model import (
    CollectionSchema,
    QueryVector,
    RecordBatch,
    RecordId,
    SparseVector,
    VectorRecord,
    Where,
    check_where,
    schema_of,
)
from vecferry.model.ids import check_id
from vecferry.ports.abilities import Deletable, Fetchable, Searchable, TextSearchable
from vecferry.ports.embedder import Question
from vecferry.ports.sink import Sink, WriteMode
from vecferry.ports.source import Cursor, Fields, Partition, Source

_WRITE_CHUNK = 1024
T = TypeVar("T")


class Collection:
    """A collection of vectors in some store.

    Use it as a context manager, or call `close`. Abilities differ from store to store; one that is
    missing raises `UnsupportedError`.

    Attributes:
        store: the adapter itself.
        url: how it was opened, without secrets.
    """

    def __init__(self, store: Any, url: str = "") -> None:
        self.store: Any = store
        self.url = url or getattr(store, "url", "") or type(store).__name__

    def __repr__(self) -> str:
        return f"<Collection {self.url}>"

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release connections and files."""
        if hasattr(self.store, "close"):
            self.store.close()

    # -- reading ------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        """Fields, dimensions, metric, layout, count."""
        return self.able(Source, "be read").describe()

    def count(self) -> int:
        """The exact number of records."""
        return self.able(Source, "be read").count()

    def __len__(self) -> int:
        return self.count()

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        """All records in batches; see `vecferry.ports.Source.scan`."""
        return self.able(Source, "be read").scan(
            partition=partition, after=after, batch_size=batch_size, fields=fields, where=where
        )

    def records(self, *, where: Where | None = None) -> Iterator[VectorRecord]:
        """All records, one by one."""
        for batch in self.scan(where=where):
            yield from batch.records()

    def fetch(self, ids: Sequence[RecordId]) -> list[VectorRecord]:
        """The records with these ids, in this order; unknown ids are left out."""
        return list(self.able(Fetchable, "fetch by id").fetch([check_id(id_) for id_ in ids]).records())

    def search(
        self,
        query: QueryVector | VectorRecord | Question | str,
        k: int = 10,
        where: Where | None = None,
        *,
        field: str = "",
        **options: Any,
    ) -> list[VectorRecord]:
        """The ``k`` nearest records, best first, with ``score`` (higher is better).

        Args:
            query: a vector, a `SparseVector`, or a `VectorRecord` whose vector is used. A text works
                only where the store embeds by itself; else embed it first. Of a `Question` the store
                takes what it can.
            field: the vector field to search in.
            options: passed on to the store, such as ``ef_search``.
        """
        where = check_where(where) if isinstance(where, Mapping) else where
        if isinstance(query, Question):
            by_vector = query.vector is not None and isinstance(self.store, Searchable)
            query = query.vector if by_vector or query.text is None else query.text
        if isinstance(query, str):
            if not isinstance(self.store, TextSearchable):
                raise UnsupportedError(
                    f"{self.url} cannot search by text, since it does not embed; embed the text first "
                    "(vecferry search … --embed MODEL) and search with the vector"
                )
            return self.store.search_text(query, k, where=where)
        searchable: Any = self.able(Searchable, "search")
        vector = _query_vector(query, field)
        hits: list[VectorRecord] = searchable.search(vector, max(k, 0), field=field, where=where, **options)
        return hits

    def as_langchain_vector_store(self, embedder: Any = None, **options: Any) -> Any:
        """This collection as a LangChain ``VectorStore``; see `vecferry.contrib.bridges`."""
        return find("vecferry.bridges", "langchain")(self, embedder, **options)

    def as_llama_index_vector_store(self, embedder: Any = None, **options: Any) -> Any:
        """This collection as a LlamaIndex vector store; see `vecferry.contrib.bridges`."""
        return find("vecferry.bridges", "llama-index")(self, embedder, **options)

    # -- writing ------------------------------------------------------------------------------

    def write(
        self,
        records: Iterable[VectorRecord | Mapping[str, Any]] | RecordBatch,
        *,
        schema: CollectionSchema | None = None,
    ) -> int:
        """Upsert records and return how many. The collection is made if it is not there.

        Args:
            schema: needed only when the collection is new and its metric or space matters; else it is
                taken from the first records, with the cosine metric.
        """
        sink = self.able(Sink, "be written")
        written = 0
        for batch in _batches(records, schema):
            if not written:
                sink.prepare(schema or self._schema_for(sink, batch), WriteMode.UPSERT)
            receipt = sink.write(batch)
            if receipt.refused:
                ids, reasons = zip(*receipt.refused, strict=True)
                raise RejectedRecord(f"{self.url} refused {ids[:3]!r}: {reasons[0]}", ids=ids)
            written += receipt.written
        if written:
            sink.finish()
        return written

    def delete(self, ids: Sequence[RecordId]) -> int:
        """Delete by id and return how many there were."""
        return self.able(Deletable, "delete").delete([check_id(id_) for id_ in ids])

    # -- helpers ------------------------------------------------------------------------------

    def _schema_for(self, sink: Sink, batch: RecordBatch) -> CollectionSchema:
        if sink.exists() and isinstance(sink, Source):
            return sink.describe()
        return schema_of(batch)

    def able(self, ability: type[T], verb: str) -> T:
        """The store, as one that has an ability (a protocol of `vecferry.ports`).

        Raises:
            UnsupportedError: if it cannot ``verb``.
        """
        if not isinstance(self.store, ability):
            raise UnsupportedError(
                f"{self.url} cannot {verb}; migrate it to a store that can, such as memory: or faiss:"
            )
        return self.store


def _query_vector(query: QueryVector | VectorRecord, field: str) -> QueryVector:
    if isinstance(query, SparseVector):
        return query
    if not isinstance(query, VectorRecord):
        return np.asarray(query)
    found: QueryVector | None = query.sparse_vectors.get(field, query.vectors.get(field))
    found = query.vector if found is None and not field else found
    if found is None:
        raise SchemaMismatchError(f"the record {query.id!r} has no vector {field!r} to search with")
    return found


def _batches(
    records: Iterable[VectorRecord | Mapping[str, Any]] | RecordBatch,
    schema: CollectionSchema | None,
) -> Iterator[RecordBatch]:
    if isinstance(records, RecordBatch):
        yield records
        return
    if isinstance(records, VectorRecord | Mapping):
        raise PlanError("write() takes an iterable of records; put the single record into a list")
    iterator = iter(records)
    while chunk := list(islice(iterator, _WRITE_CHUNK)):
        yield RecordBatch.from_records(chunk, schema)
