"""A collection on disk, open for reading: the index, the records beside it, and how they fit together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from vecferry.errors import CorruptDataError
from vecferry.layouts.folders import Entry, Found, Numbering, Sidecar, find, read_simple
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    DType,
    IdColumn,
    Loss,
    Metric,
    RecordBatch,
    RecordId,
    VectorField,
    Where,
    id_type,
    matches,
    type_name,
)
from vecferry.model.vectors import Array
from vecferry.ports import Fields
from vecferry.stores.faiss.building import index_metric
from vecferry.stores.faiss.flat import flat_header
from vecferry.stores.faiss.readers import IndexFile
from vecferry.stores.kit.keys import KeyIndex, keys_of

_SAMPLE = 100
_BLOCK = 4096


@dataclass(frozen=True)
class _Stamp:
    """Tells whether files are still those that were opened."""

    parts: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, found: Found) -> _Stamp:
        stats = [(path, path.stat()) for path in (found.index, found.sidecar) if path and path.exists()]
        return cls(tuple((str(p), s.st_ino, s.st_size, s.st_mtime_ns) for p, s in stats))


class Snapshot:
    """One state of a collection. It stays readable while another is published over it.

    Attributes:
        found: which files it is made of.
        index: the index file.
    """

    def __init__(self, found: Found, *, metric: Metric | None = None) -> None:
        self.found = found
        self.stamp = _Stamp.of(found)
        self._given_metric = metric
        self._simple: Sidecar | None = None
        if found.layout == "llamaindex-simple":
            self.index, self._simple = _open_simple(found)
        else:
            self.index = IndexFile(found.index, metric=metric)

    @classmethod
    def open(cls, path: Path, *, layout: str | None, index_name: str, metric: Metric | None) -> Snapshot:
        return cls(find(path, layout=layout, index_name=index_name), metric=metric)

    def is_current(self) -> bool:
        """Whether the files are still the ones that were opened."""
        try:
            return _Stamp.of(self.found) == self.stamp
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self.index.close()
        if "sidecar" in self.__dict__ and self.sidecar is not None:
            self.sidecar.close()

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def numbers(self) -> Array | None:
        """The index's own ids by position; ``None`` where they are the positions."""
        return self.index.vectors.ids()

    @cached_property
    def sidecar(self) -> Sidecar | None:
        return self._simple or self.found.open_sidecar(
            Numbering(len(self), self.numbers, self.index.in_order)
        )

    # -- what it is ---------------------------------------------------------------------------

    @cached_property
    def card(self) -> CollectionSchema | None:
        """What vecferry noted when it wrote the collection, if that still fits the index."""
        content = self.found.card.get("schema")
        if not isinstance(content, dict):
            return None
        try:
            schema = CollectionSchema.model_validate(content)
        except ValidationError as error:
            raise CorruptDataError(
                f"{self.found.folder}/vecferry.json is damaged; restore or remove it"
            ) from error
        return schema if self._made_from(schema) else None

    def _made_from(self, schema: CollectionSchema) -> bool:
        """Whether the index may be the one of that schema; an app may have put another in its place."""
        if [field.dim for field in schema.fields] != [self.index.dim or None]:
            return False
        settled = self._given_metric or self._simple
        return (
            bool(settled) or index_metric(schema.fields[0].metric, self.found.layout) == self.index.metric
        )

    @cached_property
    def field(self) -> VectorField:
        """The one vector field."""
        index = self.index
        if self.card is not None:
            known = self.card.fields[0]
            changes: dict[str, Any] = {"index": {**known.index, **index.settings}}
            if not self._are_all(known.dtype, self.card.count):
                changes["dtype"] = DType.FLOAT32
            if self._given_metric:
                changes["metric"] = self._given_metric
            return known.model_copy(update=changes)
        dtype = DType.BIT if index.bits else DType.FLOAT32
        return VectorField(dim=index.dim or None, dtype=dtype, metric=index.metric, index=index.settings)

    def _are_all(self, dtype: DType, count: int | None) -> bool:
        """Whether the vectors still are of the type noted, which an app that goes on does not know."""
        if self.index.bits or dtype is DType.FLOAT32 or self.index.loss or not len(self):
            return True
        last = self.index.vectors.read(len(self) - 1, len(self))
        return len(self) == count and np.array_equal(last.astype(dtype.numpy), last)

    def schema(self, name: str) -> CollectionSchema:
        """Everything known, from the card, the index, and the first records."""
        card = self.card or CollectionSchema()
        first = self.entries(np.arange(min(_SAMPLE, len(self)))) if self.sidecar else None
        loss = self.index.loss
        losses = (Loss(kind="vector", detail=loss, count=len(self), where="source"),) if loss else ()
        return card.model_copy(
            update={
                "name": name,
                "fields": (self.field,),
                "id_type": self._id_type(first),
                "ids_unique": self._ids_unique(),
                "has_text": any(entry.text is not None for entry in first or ()),
                "metadata_types": {**card.metadata_types, **_types_of(first or [])},
                "layout": self.found.layout,
                "count": len(self),
                "losses": losses,
            }
        )

    def _id_type(self, first: list[Entry] | None) -> str:
        if first is None:
            return "int"
        types = {id_type(entry.id) for entry in first}
        if self.card is not None and self.card.id_type in types:
            return self.card.id_type
        settled = len(self) <= _SAMPLE or (self.card is None and not self.found.layout.startswith("raw"))
        return types.pop() if len(types) == 1 and settled else "mixed"

    def _ids_unique(self) -> bool:
        if self.sidecar is None:
            return self.numbers is None
        return self.card is not None or not self.found.layout.startswith("raw")

    # -- what is in it ------------------------------------------------------------------------

    def entries(self, positions: Array) -> list[Entry]:
        """The records at ``positions`` without vectors. Only with a sidecar."""
        assert self.sidecar is not None
        return self.sidecar.read(positions)

    def vectors(self, low: int, high: int) -> Array:
        """The vectors at positions ``low`` to ``high``, in the field's own dtype."""
        rows = self.index.vectors.read(low, high)
        return rows.astype(self.field.dtype.numpy, copy=False)

    def batch(self, low: int, high: int, fields: Fields, where: Where | None = None) -> RecordBatch:
        """The records at positions ``low`` to ``high`` that pass the filter; the cursor is ``high``."""
        if self.sidecar is None:
            return self._bare(low, high, fields, where)
        positions = np.arange(low, high)
        entries = self.entries(positions)
        rows = [i for i, entry in enumerate(entries) if where is None or matches(where, entry.metadata)]
        columns = {}
        if fields.wants(self.field.name) and rows:
            values = self.vectors(low, high)
            columns[self.field.name] = DenseColumn(values if len(rows) == len(values) else values[rows])
        return _batch([entries[i] for i in rows], columns, fields, cursor=high)

    def _bare(self, low: int, high: int, fields: Fields, where: Where | None) -> RecordBatch:
        """Without a sidecar: numbers and vectors, no text, no metadata."""
        ids = np.arange(low, high) if self.numbers is None else self.numbers[low:high].copy()
        wanted = fields.wants(self.field.name)
        columns = {self.field.name: DenseColumn(self.vectors(low, high))} if wanted else {}
        batch = RecordBatch(ids=ids, vectors=columns, cursor=high)
        return batch if where is None or matches(where, {}) else batch.take([])

    def pick(self, positions: Array, fields: Fields = Fields.ALL) -> RecordBatch:
        """The records at single positions, in that order."""
        columns = {}
        if fields.wants(self.field.name) and len(positions):
            rows = [self.vectors(at, at + 1) for at in positions.tolist()]
            columns[self.field.name] = DenseColumn(np.concatenate(rows))
        if self.sidecar is None:
            ids = positions if self.numbers is None else self.numbers[positions]
            return RecordBatch(ids=ids, vectors=columns)
        return _batch(self.entries(positions), columns, fields)

    # -- by id --------------------------------------------------------------------------------

    def positions_of(self, ids: list[RecordId]) -> list[int]:
        """Where the records with these ids stand, in this order; the unknown are left out."""
        if self.sidecar is None and self.numbers is None:
            return [i for i in ids if type(i) is int and 0 <= i < len(self)]
        found = self._table.positions(keys_of(ids))
        return [int(position) for position in found if position >= 0]

    @cached_property
    def _table(self) -> KeyIndex:
        """Where each id stands: 24 bytes a record."""
        spans = blocks(0, len(self), _BLOCK)
        ids = ((low, self.batch(low, high, Fields.IDS).ids) for low, high in spans)
        return KeyIndex((keys_of(block), np.arange(low, low + len(block))) for low, block in ids)

    def positions_at(self, numbers: Array) -> Array:
        """Where the vectors with these numbers of the index stand."""
        if self.numbers is None:
            return np.asarray(numbers, dtype=np.int64)
        ordered, order = self._ordered_numbers
        return np.asarray(order[np.searchsorted(ordered, numbers)], dtype=np.int64)

    @cached_property
    def _ordered_numbers(self) -> tuple[Array, Array]:
        assert self.numbers is not None
        order = np.argsort(self.numbers, kind="stable")
        return self.numbers[order], order


def _batch(
    entries: list[Entry], columns: dict[str, DenseColumn], fields: Fields, *, cursor: int | None = None
) -> RecordBatch:
    return RecordBatch(
        ids=IdColumn([entry.id for entry in entries]),
        vectors=columns,
        texts=[entry.text for entry in entries] if fields.text else None,
        metadata=[entry.metadata for entry in entries] if fields.metadata else None,
        cursor=cursor,
    )


def _types_of(entries: list[Entry]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        for key, value in entry.metadata.items():
            if found.get(key, "null") == "null":
                found[key] = type_name(value)
    return found


def _open_simple(found: Found) -> tuple[IndexFile, Sidecar]:
    """A SimpleVectorStore, its vectors in a temporary Flat file. LlamaIndex compares them by cosine."""
    with tempfile.NamedTemporaryFile(prefix="vecferry-", suffix=".faiss") as file:
        file.write(flat_header(0, Metric.IP, 0))
        sidecar, dim, count = read_simple(found.folder, found.index, file)
        file.seek(0)
        file.write(flat_header(dim or 0, Metric.IP, count))
        file.flush()
        # Open file handles outlive the name.
        return IndexFile(Path(file.name), metric=Metric.COSINE), sidecar


def blocks(low: int, high: int, size: int) -> Iterator[tuple[int, int]]:
    """Spans of at most ``size`` from ``low`` to ``high``."""
    for start in range(low, high, size):
        yield start, min(start + size, high)
