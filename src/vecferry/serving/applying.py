"""The target of a sync: in its own fields and space, one acknowledged batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vecferry.core.retry import RetryPolicy
from vecferry.errors import RetryableError, SchemaMismatchError, SpaceMismatchError, UnsupportedError
from vecferry.model import CollectionSchema, RecordBatch, RecordId, SparseVector, VectorField, encode_id
from vecferry.model.vectors import Array, DenseColumn
from vecferry.ports import Deletable, Embedder, Fetchable, Fields, Sink, WriteMode
from vecferry.serving.dual import DualWriter
from vecferry.serving.syncstate import content_bytes

Change = Callable[[RecordBatch], RecordBatch]


class Target:
    """Writes what changed.

    Args:
        store: an existing collection that can be read and written.
        have: the source's schema.
        embedder: embeds the texts for the target's field, if its space is another one.
        writer: goes through this `DualWriter`, so that live writes are not overtaken.

    Raises:
        SpaceMismatchError, SchemaMismatchError: if the records do not fit. Nothing was written.
    """

    def __init__(
        self,
        store: Any,
        have: CollectionSchema,
        *,
        embedder: Embedder | None = None,
        writer: DualWriter | None = None,
        retry: RetryPolicy,
    ) -> None:
        if not isinstance(store, Sink) or not hasattr(store, "describe"):
            raise UnsupportedError(
                "the target cannot be both read and written, so it cannot be kept in step"
            )
        self.store: Any = store
        self.writer, self._embedder, self._retry = writer, embedder, retry
        self.schema: CollectionSchema = store.describe()
        self._names = _pair(have, self.schema, embedder)
        self._begun = False

    def adapt(self, batch: RecordBatch) -> RecordBatch:
        """The batch under the target's field names."""
        dense = {self._names[n]: c for n, c in batch.vectors.items() if n in self._names}
        sparse = {self._names[n]: c for n, c in batch.sparse_vectors.items() if n in self._names}
        return batch.replace(vectors=dense, sparse_vectors=sparse)

    def differing(self, batch: RecordBatch) -> tuple[list[int], list[int]]:
        """Rows that the target lacks, and rows that it holds otherwise."""
        if not isinstance(self.store, Fetchable):
            return list(range(len(batch))), []
        fetchable = self.store
        found = self._retry.call(lambda: fetchable.fetch(batch.id_list))
        there = {encode_id(id_): row for row, id_ in enumerate(found.id_list)}
        added, changed = [], []
        for row, id_ in enumerate(batch.id_list):
            at = there.get(encode_id(id_))
            if at is None:
                added.append(row)
            elif not _same(batch, row, found, at):
                changed.append(row)
        return added, changed

    def upsert(self, batch: RecordBatch) -> None:
        """Write; acknowledged when it returns."""
        if not len(batch):
            return
        if self.writer is not None:
            self.writer.mirror(batch.id_list)
            return
        ready = self._embedded(batch)
        self._begin()
        self._retry.call(lambda: self.store.write(ready))

    def delete(self, ids: Sequence[RecordId]) -> None:
        """Delete; unknown ids are no error.

        Raises:
            UnsupportedError: if the target cannot.
        """
        if self.writer is not None:
            self.writer.mirror(ids)
            return
        if not isinstance(self.store, Deletable):
            raise UnsupportedError(
                "the target cannot delete; pass deletes=False to leave what is gone there"
            )
        self.finish()  # a store that stages its writes deletes from what is published
        deletable = self.store
        self._retry.call(lambda: deletable.delete(ids))

    def finish(self) -> None:
        """Let it be read and searched."""
        if self._begun:
            self._retry.call(self.store.finish)
            self._begun = False

    def _begin(self) -> None:
        if not self._begun:
            schema = self.schema.model_copy(update={"losses": ()})
            self._retry.call(lambda: self.store.prepare(schema, WriteMode.UPSERT))
            self._begun = True

    def _embedded(self, batch: RecordBatch) -> RecordBatch:
        if self._embedder is None:
            return batch
        texts = batch.text_list
        rows = [row for row, text in enumerate(texts) if text]
        embedder, some = self._embedder, [texts[row] or "" for row in rows]
        vectors = self._retry.call(lambda: embedder.embed(some)) if rows else None
        values = np.zeros((len(batch), embedder.space.dim), np.float32)
        mask = np.zeros(len(batch), np.bool_)
        if vectors is not None:
            values[rows], mask[rows] = vectors, True
        column = DenseColumn(values, None if mask.all() else mask)
        return batch.replace(vectors={**batch.vectors, _embedded_field(self.schema).name: column})


def scan(
    source: Any, retry: RetryPolicy, *, fields: Fields = Fields.ALL, **how: Any
) -> Iterator[RecordBatch]:
    """All batches of a source, re-opened at the last good cursor after a passing fault."""
    stream, cursor = source.scan(fields=fields, **how), None

    def following() -> RecordBatch | None:
        nonlocal stream
        try:
            batch: RecordBatch | None = next(stream, None)
        except RetryableError:
            stream = source.scan(after=cursor, fields=fields, **how)  # for the next attempt
            raise
        return batch

    while (batch := retry.call(following)) is not None:
        cursor = batch.cursor
        yield batch


def _pair(have: CollectionSchema, want: CollectionSchema, embedder: Embedder | None) -> dict[str, str]:
    """Source field → target field."""
    if embedder is not None:
        _check_space(embedder.space, _embedded_field(want), "the embedder gives")
        return {}
    names = {field.name: field.name for field in have.fields if field.name in {f.name for f in want.fields}}
    if not names and len(have.fields) == len(want.fields) == 1:
        names = {have.fields[0].name: want.fields[0].name}
    for field in want.fields:
        source = next((old for old, new in names.items() if new == field.name), None)
        if source is None:
            raise SchemaMismatchError(
                f"the source has no vectors for the target's field {field.name!r}; pass embedder="
            )
        old = have.field(source)
        if old.dim and field.dim and old.dim != field.dim:
            raise SchemaMismatchError(
                f"the source has {old.dim} dimensions, the target {field.dim} in {field.name!r}"
            )
        _check_space(old.space, field, "the source holds")
    return names


def _check_space(space: Any, field: VectorField, what: str) -> None:
    if space and field.space and space.fingerprint != field.space.fingerprint:
        raise SpaceMismatchError(
            f"{what} vectors of {space}, the target holds {field.space}; pass an embedder of that space"
        )


def _embedded_field(schema: CollectionSchema) -> VectorField:
    if len(schema.fields) != 1:
        raise SchemaMismatchError(
            f"an embedder fills one field, and the target has {[f.name for f in schema.fields]}"
        )
    return schema.fields[0]


def _same(a: RecordBatch, i: int, b: RecordBatch, j: int) -> bool:
    """Text and metadata equal, every vector of ``a`` the same within what a store may do to it."""
    if content_bytes(a.text_list[i], a.metadata_list[i]) != content_bytes(
        b.text_list[j], b.metadata_list[j]
    ):
        return False
    theirs = dict(b.columns())
    for name, column in a.columns():
        mine, other = column[i], theirs[name][j] if name in theirs else None
        if (mine is None) is not (other is None):
            return False
        if mine is not None and not _close(mine, other):
            return False
    return True


def _close(mine: Any, other: Any) -> bool:
    """Equal up to float16 rounding, and up to length where the store keeps unit length."""
    if isinstance(mine, SparseVector) and not np.array_equal(mine.indices, other.indices):
        return False
    left, right = _numbers(mine), _numbers(other)
    if left.shape != right.shape:
        return False
    long, short = float(np.linalg.norm(left)), float(np.linalg.norm(right))
    if not long or not short:
        return bool(long == short)
    if abs(long - short) > 1e-2 * long and abs(short - 1) > 1e-2:
        return False
    return bool(np.abs(left / long - right / short).max() <= 2e-3)


def _numbers(value: Any) -> Array:
    return np.asarray(value.values if isinstance(value, SparseVector) else value, np.float64).ravel()
