"""`RecordBatch`: the columnar cargo of every stream. No object per record on the hot path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from vecferry.errors import RejectedRecord
from vecferry.model.ids import IdColumn, RecordId
from vecferry.model.json_column import JsonColumn, Unkeepable
from vecferry.model.record import VectorRecord
from vecferry.model.schema import CollectionSchema, DType, Kind, Metric, VectorField
from vecferry.model.vectors import (
    Array,
    Column,
    DenseColumn,
    MultiColumn,
    SparseColumn,
    SparseVector,
    non_finite_rows,
)

if TYPE_CHECKING:
    import pyarrow as pa

Metadata: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class RecordBatch:
    """n records, column by column.

    Attributes:
        ids: an `IdColumn`; it may be given as a list of ids or an array of integers.
        vectors: field name → `DenseColumn` ``(n, dim)`` or `MultiColumn`.
        sparse_vectors: field name → `SparseColumn`.
        texts: n strings or ``None``; ``None`` as a whole when the store keeps no text.
        metadata: n dicts, or a `JsonColumn`, which is the same as bytes; ``None`` as a whole when the
            store keeps no metadata.
        cursor: JSON value: where the scan stands *after* this batch, to be given back as ``after=``.
    """

    ids: IdColumn
    vectors: Mapping[str, DenseColumn | MultiColumn] = field(default_factory=dict)
    sparse_vectors: Mapping[str, SparseColumn] = field(default_factory=dict)
    texts: Sequence[str | None] | None = None
    metadata: Sequence[Metadata] | None = None
    cursor: Any = None

    if TYPE_CHECKING:

        def __init__(
            self,
            ids: IdColumn | Sequence[RecordId] | Array,
            vectors: Mapping[str, DenseColumn | MultiColumn] = ...,
            sparse_vectors: Mapping[str, SparseColumn] = ...,
            texts: Sequence[str | None] | None = None,
            metadata: Sequence[Metadata] | None = None,
            cursor: Any = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not isinstance(self.ids, IdColumn):
            object.__setattr__(self, "ids", IdColumn(self.ids))
        n = len(self.ids)
        for name, column in self.columns():
            if len(column) != n:
                raise ValueError(f"field {name!r} has {len(column)} rows where there are {n} ids")
        for name, values in (("texts", self.texts), ("metadata", self.metadata)):
            if values is not None and len(values) != n:
                raise ValueError(f"{len(values)} {name} for {n} ids")

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> Iterator[tuple[str, DenseColumn | MultiColumn | SparseColumn]]:
        """Every vector column, dense and multi first."""
        yield from self.vectors.items()
        yield from self.sparse_vectors.items()

    def column(self, name: str) -> Column | None:
        """The column of a field, dense, multi or sparse; ``None`` if there is none."""
        column = self.vectors.get(name)
        return self.sparse_vectors.get(name) if column is None else column

    @property
    def id_list(self) -> list[RecordId]:
        """The ids as Python values; not to be changed."""
        return self.ids.values

    @property
    def text_list(self) -> Sequence[str | None]:
        return [None] * len(self) if self.texts is None else self.texts

    @property
    def metadata_list(self) -> Sequence[Metadata]:
        return [{} for _ in range(len(self))] if self.metadata is None else self.metadata

    @property
    def json_metadata(self) -> JsonColumn:
        """The metadata as JSON bytes; as it is where it already is a `JsonColumn`.

        Raises:
            RejectedRecord: for a value that cannot be kept, naming the record.
        """
        try:
            return JsonColumn.of(self.metadata_list)
        except Unkeepable as error:
            id_ = self.id_list[error.row]
            raise RejectedRecord(
                f"the metadata of {id_!r} cannot be written: {error}; change it in transform=…", ids=[id_]
            ) from error

    @property
    def nbytes(self) -> int:
        """A close guess of the bytes this batch takes on the wire."""
        vectors = sum(column.nbytes for _, column in self.columns())
        texts = sum(len(text) for text in self.texts or () if text)
        metadata = self.metadata or ()
        documents = metadata.nbytes if isinstance(metadata, JsonColumn) else 100 * len(metadata)
        return vectors + texts + 16 * len(self) + documents

    # -- rows ---------------------------------------------------------------------------------

    def take(self, rows: Sequence[int] | Array) -> RecordBatch:
        """The given rows, in the given order; the cursor stays."""
        where = np.asarray(rows, dtype=np.int64)
        picked = where.tolist()
        return RecordBatch(
            ids=self.ids.take(where),
            vectors={name: column.take(where) for name, column in self.vectors.items()},
            sparse_vectors={name: c.take(where) for name, c in self.sparse_vectors.items()},
            texts=None if self.texts is None else [self.texts[i] for i in picked],
            metadata=_taken(self.metadata, picked),
            cursor=self.cursor,
        )

    def slice(self, start: int, stop: int) -> RecordBatch:
        """Rows ``start`` to ``stop``."""
        if start <= 0 and stop >= len(self):
            return self
        return self.take(np.arange(max(start, 0), min(stop, len(self))))

    def split(self, size: int) -> Iterator[RecordBatch]:
        """Pieces of at most ``size`` rows, in order."""
        for start in range(0, len(self), size):
            yield self.slice(start, start + size)

    @classmethod
    def concat(cls, batches: Sequence[RecordBatch]) -> RecordBatch:
        """One batch of all rows; a field that one batch lacks is missing in its rows."""
        batches = [batch for batch in batches if len(batch)] or list(batches[:1])
        if len(batches) == 1:
            return batches[0]
        return cls(
            ids=IdColumn.concat([batch.ids for batch in batches]),
            vectors={name: _concat(batches, name) for name in _names(batches, "vectors")},
            sparse_vectors={
                name: _concat(batches, name, sparse=True) for name in _names(batches, "sparse_vectors")
            },
            texts=None
            if all(b.texts is None for b in batches)
            else [text for b in batches for text in b.text_list],
            metadata=_joined(batches),
            cursor=batches[-1].cursor,
        )

    def replace(self, **changes: Any) -> RecordBatch:
        """A copy with some columns changed."""
        return replace(self, **changes)

    # -- records ------------------------------------------------------------------------------

    def records(self) -> Iterator[VectorRecord]:
        """The rows as `VectorRecord`, without validating again."""
        texts, metadata = self.text_list, self.metadata_list
        for row, id_ in enumerate(self.id_list):
            vectors = {name: column[row] for name, column in self.vectors.items()}
            sparse = {name: column[row] for name, column in self.sparse_vectors.items()}
            yield VectorRecord.model_construct(
                id=id_,
                text=texts[row],
                vectors={name: value for name, value in vectors.items() if value is not None},
                sparse_vectors={name: value for name, value in sparse.items() if value is not None},
                metadata=dict(metadata[row]),
                score=None,
            )

    @classmethod
    def from_records(
        cls,
        records: Iterable[VectorRecord | Mapping[str, Any]],
        schema: CollectionSchema | None = None,
    ) -> RecordBatch:
        """Columns of the given records (or dicts with the same keys).

        Raises:
            ValueError: when two vectors of one field differ in dimension, naming the record.
            pydantic.ValidationError: when a dict is not a record.
        """
        rows = [r if isinstance(r, VectorRecord) else VectorRecord(**r) for r in records]
        known = {f.name: f for f in schema.fields} if schema else {}
        names = list(dict.fromkeys(name for row in rows for name in row.vectors))
        sparse = list(dict.fromkeys(name for row in rows for name in row.sparse_vectors))
        return cls(
            ids=IdColumn([row.id for row in rows]),
            vectors={name: _dense_or_multi(rows, name, known.get(name)) for name in names},
            sparse_vectors={
                name: SparseColumn.from_rows([row.sparse_vectors.get(name) for row in rows])
                for name in sparse
            },
            texts=[row.text for row in rows],
            metadata=[row.metadata for row in rows],
        )

    def non_finite(self) -> list[int]:
        """Rows in which some vector holds a NaN or an infinity, ascending."""
        return sorted({row for _, column in self.columns() for row in non_finite_rows(column)})

    # -- arrow --------------------------------------------------------------------------------

    def to_arrow(self, schema: CollectionSchema | None = None) -> pa.RecordBatch:
        """As Arrow; see `vecferry.model.arrow` for the columns."""
        from vecferry.model.arrow import batch_to_arrow

        return batch_to_arrow(self, schema)

    @classmethod
    def from_arrow(cls, batch: pa.RecordBatch | pa.Table) -> RecordBatch:
        """The inverse of `to_arrow`; also reads plain tables with an ``id`` column."""
        from vecferry.model.arrow import batch_from_arrow

        return batch_from_arrow(batch)


def schema_of(batch: RecordBatch, name: str = "", **known: Any) -> CollectionSchema:
    """The schema that a batch implies: its fields with dimension, kind and dtype, cosine metric."""
    fields = []
    for field_name, column in batch.columns():
        if isinstance(column, SparseColumn):
            fields.append(VectorField(name=field_name, kind=Kind.SPARSE, metric=Metric.IP))
            continue
        kind = Kind.MULTI if isinstance(column, MultiColumn) else Kind.DENSE
        width = column.values.shape[1] or None
        fields.append(
            VectorField(name=field_name, kind=kind, dim=width, dtype=DType(str(column.values.dtype)))
        )
    return CollectionSchema(name=name, fields=tuple(fields), **known)


def _taken(metadata: Sequence[Metadata] | None, rows: list[int]) -> Sequence[Metadata] | None:
    if metadata is None or isinstance(metadata, JsonColumn):
        return metadata.take(rows) if metadata is not None else None
    return [metadata[row] for row in rows]


def _joined(batches: Sequence[RecordBatch]) -> Sequence[Metadata] | None:
    given = [batch.metadata for batch in batches]
    if all(metadata is None for metadata in given):
        return None
    columns = [metadata for metadata in given if isinstance(metadata, JsonColumn)]
    if len(columns) == len(given):
        return JsonColumn.concat(columns)
    return [document for batch in batches for document in batch.metadata_list]


def _names(batches: Sequence[RecordBatch], attribute: str) -> list[str]:
    return list(dict.fromkeys(name for batch in batches for name in getattr(batch, attribute)))


def _concat(batches: Sequence[RecordBatch], name: str, *, sparse: bool = False) -> Any:
    have = [(batch.sparse_vectors if sparse else batch.vectors).get(name) for batch in batches]
    example = next(column for column in have if column is not None)
    columns: list[Any] = [
        column if column is not None else example.absent(len(batch))
        for column, batch in zip(have, batches, strict=True)
    ]
    return type(example).concat(columns)


def _dense_or_multi(
    rows: Sequence[VectorRecord], name: str, known: VectorField | None
) -> DenseColumn | MultiColumn:
    values = [row.vectors.get(name) for row in rows]
    first = next(value for value in values if value is not None)
    multi = known.kind is Kind.MULTI if known else first.ndim == 2
    width = known.dtype.width(known.dim) if known and known.dim else None
    dtype = known.dtype.numpy if known else None
    column: type[MultiColumn] | type[DenseColumn] = MultiColumn if multi else DenseColumn
    try:
        return column.from_rows(values, width, dtype)
    except ValueError as error:
        raise ValueError(f"vector field {name!r}: {error}") from None


__all__ = ["RecordBatch", "SparseVector", "schema_of"]
