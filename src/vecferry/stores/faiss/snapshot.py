"""A collection on disk, open for reading: the index, the records beside it, and how they fit together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock, Timer
from typing import Any

import numpy as np
from pydantic import ValidationError

from vecferry.core.wall import reading_foreign
from vecferry.errors import CorruptDataError
from vecferry.layouts.folders import Entry, Found, Numbering, Sidecar, find, read_simple
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    DType,
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
from vecferry.stores.faiss.vectors import Selected, Vectors
from vecferry.stores.kit.checks import filtered
from vecferry.stores.kit.keys import KeyIndex, keys_of

_SAMPLE = 100
_KEPT_SECONDS = 30.0
_BLOCK = 4096


@dataclass(frozen=True)
class _Stamp:
    """Tells whether files are still those that were opened."""

    parts: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, found: Found) -> _Stamp:
        stats = [(path, path.stat()) for path in sorted(found.files())]
        return cls(tuple((str(p), s.st_ino, s.st_size, s.st_mtime_ns) for p, s in stats))


class _Recent:
    """The sidecar that was closed last, for a while: parsing it is most of the work of opening it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: tuple[Any, Sidecar] | None = None
        self._timer: Timer | None = None

    def keep(self, key: Any, sidecar: Sidecar) -> None:
        """Hold a sidecar instead of closing it; the one held before is let go."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._held, self._timer = (key, sidecar), Timer(_KEPT_SECONDS, self._let_go, [sidecar])
            self._timer.daemon = True
            self._timer.start()

    def take(self, key: Any) -> Sidecar | None:
        """The sidecar held under the key. Reading is stateless, so that several may share it."""
        with self._lock:
            return self._held[1] if self._held is not None and self._held[0] == key else None

    def _let_go(self, sidecar: Sidecar) -> None:
        # Its files close when the last snapshot that shares it goes.
        with self._lock:
            if self._held is not None and self._held[1] is sidecar:
                self._held = None


_RECENT = _Recent()


class Snapshot:
    """One state of a collection. It stays readable while another is published over it.

    Attributes:
        found: which files it is made of.
        index: the index file.
    """

    def __init__(
        self, found: Found, *, metric: Metric | None = None, id: str | None = None, live: bool = False
    ) -> None:
        self.found = found
        self._id_key = id
        self._live_only = live
        self.stamp = _Stamp.of(found)
        self._given_metric = metric
        self._simple: Sidecar | None = None
        if found.layout == "llamaindex-simple":
            self.index, self._simple = _open_simple(found)
        else:
            self.index = IndexFile(found.index, metric=metric)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        layout: str | None,
        index_name: str,
        metric: Metric | None,
        sidecar: str | None = None,
        id: str | None = None,
        live: bool = False,
    ) -> Snapshot:
        found = find(path, layout=layout, index_name=index_name, sidecar=sidecar)
        return cls(found, metric=metric, id=id, live=live)

    def is_current(self) -> bool:
        """Whether the files are still the ones that were opened."""
        try:
            return _Stamp.of(self.found) == self.stamp
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self.index.close()
        if "sidecar" in self.__dict__ and self.sidecar is not None and self._simple is None:
            # A job opens its source again and again: to plan, to stream, to prove.
            key = (self.stamp, self.found.layout, self._id_key, self._live_only)
            _RECENT.keep(key, self.sidecar)

    def __len__(self) -> int:
        return len(self.stored)

    @cached_property
    def stored(self) -> Vectors:
        """The vectors by position: all of the index, or its live part."""
        live = self._live
        return self.index.vectors if live is None else Selected(self.index.vectors, live)

    @property
    def _live(self) -> Array | None:
        """Positions in the index that are read; ``None`` for all."""
        return self.sidecar.live if self._live_only and self.sidecar is not None else None

    @property
    def is_whole(self) -> bool:
        """Whether positions here are positions in the index."""
        return self._live is None

    @cached_property
    def numbers(self) -> Array | None:
        """The index's own ids by position; ``None`` where they are the positions."""
        return self.stored.ids()

    @cached_property
    def sidecar(self) -> Sidecar | None:
        if self._simple is not None:
            return self._simple
        index = self.index
        key = (self.stamp, self.found.layout, self._id_key, self._live_only)
        known = _RECENT.take(key)
        if known is not None:
            return known
        numbering = Numbering(len(index), index.vectors.ids(), index.in_order, self._live_only)
        with reading_foreign(self.found.sidecar or self.found.folder):
            return self.found.open_sidecar(numbering, id=self._id_key)

    # -- what it is ---------------------------------------------------------------------------

    @cached_property
    def manifest(self) -> CollectionSchema | None:
        """What vecferry noted when it wrote the collection, if that still fits the index."""
        content = self.found.manifest.get("schema")
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
        if self.manifest is not None:
            known = self.manifest.fields[0]
            changes: dict[str, Any] = {"index": {**known.index, **index.settings}}
            if not self._are_all(known.dtype, self.manifest.count):
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
        last = self.stored.read(len(self) - 1, len(self))
        return len(self) == count and np.array_equal(last.astype(dtype.numpy), last)

    def schema(self, name: str) -> CollectionSchema:
        """Everything known, from the manifest, the index, and the first records."""
        manifest = self.manifest or CollectionSchema()
        first = self.entries(np.arange(min(_SAMPLE, len(self)))) if self.sidecar else None
        loss = self.index.loss
        losses: tuple[Loss, ...] = self.found.foreign_files()
        if loss:
            losses = (Loss(kind="vector", detail=loss, count=len(self), where="source"), *losses)
        if self.sidecar is not None:
            losses += self.sidecar.losses
        return manifest.model_copy(
            update={
                "name": name,
                "fields": (self.field,),
                "id_type": self._id_type(first),
                # Measured by whoever asks, but for the numbers of rows.
                "ids_unique": self.sidecar is None and self.numbers is None,
                "has_text": any(entry.text is not None for entry in first or ()),
                "metadata_types": {**manifest.metadata_types, **_types_of(first or [])},
                "layout": self.found.layout,
                "count": len(self),
                "losses": losses,
                "notes": self._notes(),
            }
        )

    def _notes(self) -> tuple[str, ...]:
        """Which file was taken for the records, where that was recognised from its name alone."""
        sidecar = self.found.sidecar
        raw = sidecar is not None and self.found.layout.startswith("raw")
        return (f"the records are those of {sidecar.name}",) if raw and sidecar else ()

    def _id_type(self, first: list[Entry] | None) -> str:
        if first is None:
            return "int"
        types = {id_type(entry.id) for entry in first}
        if self.manifest is not None and self.manifest.id_type in types:
            return self.manifest.id_type
        settled = len(self) <= _SAMPLE or (
            self.manifest is None and not self.found.layout.startswith("raw")
        )
        return types.pop() if len(types) == 1 and settled else "mixed"

    # -- what is in it ------------------------------------------------------------------------

    def entries(self, positions: Array) -> list[Entry]:
        """The records at ``positions`` without vectors. Only with a sidecar."""
        assert self.sidecar is not None
        return self.sidecar.read(positions)

    def vectors(self, low: int, high: int) -> Array:
        """The vectors at positions ``low`` to ``high``, in the field's own dtype."""
        rows = self.stored.read(low, high)
        return rows.astype(self.field.dtype.numpy, copy=False)

    def batch(self, low: int, high: int, fields: Fields, where: Where | None = None) -> RecordBatch:
        """The records at positions ``low`` to ``high`` that pass the filter; the cursor is ``high``."""
        if self.sidecar is None:
            return self._bare(low, high, fields, where)
        with reading_foreign(self.found.index, where=f"vector {low}"):
            read = self.sidecar.columns(
                np.arange(low, high), text=fields.text, metadata=fields.metadata or where is not None
            )
            columns = {}
            if fields.wants(self.field.name) and high > low:
                columns[self.field.name] = DenseColumn(self.vectors(low, high))
        batch = RecordBatch(
            ids=read.ids, vectors=columns, texts=read.texts, metadata=read.metadata, cursor=high
        )
        return batch if where is None else filtered(batch, where, fields)

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
        read = self.sidecar.columns(positions, text=fields.text, metadata=fields.metadata)
        return RecordBatch(ids=read.ids, vectors=columns, texts=read.texts, metadata=read.metadata)

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
