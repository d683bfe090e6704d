"""`RecordBatch` ↔ Qdrant points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import orjson

from vecferry.errors import RejectedRecord
from vecferry.layouts import Layout
from vecferry.model import (
    CollectionSchema,
    Column,
    DenseColumn,
    DType,
    IdColumn,
    Kind,
    Metric,
    MultiColumn,
    RecordBatch,
    RecordId,
    SparseColumn,
    SparseVector,
    VectorField,
    encode_id,
)
from vecferry.model.ids import ID_NAMESPACE
from vecferry.model.vectors import Array
from vecferry.ports import Fields

PointId = int | str
Norms = list[dict[str, Any]]

UINT64 = range(2**64)
# float32 vectors that are meant to have unit length miss it by less than this.
UNIT_TOLERANCE = 1e-5
# A float32 written as the shortest decimal of the double it widens to, with its comma; and in protobuf.
JSON_NUMBER, GRPC_NUMBER = 21, 4


@dataclass(frozen=True, slots=True)
class Rows:
    """Points before they take the form of a transport, column by column.

    ``records`` are the records' own ids. Dense and multi columns are float32 here, whatever they were.
    """

    ids: Sequence[PointId]
    records: Sequence[RecordId]
    payloads: Sequence[dict[str, Any]]
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop``."""
        picked = np.arange(start, stop)
        columns = {name: column.take(picked) for name, column in self.columns.items()}
        return Rows(self.ids[start:stop], self.records[start:stop], self.payloads[start:stop], columns)

    def last_of_each(self) -> Rows:
        """Without the earlier of two rows of one id: requests side by side come in any order."""
        last = {id_: row for row, id_ in enumerate(self.ids)}
        if len(last) == len(self):
            return self
        picked = sorted(last.values())
        columns = {name: column.take(np.array(picked)) for name, column in self.columns.items()}
        records, payloads = [self.records[i] for i in picked], [self.payloads[i] for i in picked]
        return Rows([self.ids[i] for i in picked], records, payloads, columns)

    def sizes(self, number_bytes: int) -> list[int]:
        """About how many bytes each row takes, when a number takes ``number_bytes``."""
        numbers = np.full(len(self), 16.0)
        for column in self.columns.values():
            if isinstance(column, DenseColumn):
                numbers += column.values.shape[1]
            elif isinstance(column, MultiColumn):
                numbers += np.diff(column.offsets) * column.values.shape[1]
            else:
                numbers += 2 * np.diff(column.indptr)
        return [int(n) * number_bytes + self._payload_bytes(i) for i, n in enumerate(numbers.tolist())]

    def _payload_bytes(self, row: int) -> int:
        try:
            return len(orjson.dumps(self.payloads[row]))
        except TypeError as error:  # half a surrogate pair: no transport carries it
            raise RejectedRecord(f"not valid Unicode: {error}", ids=[self.records[row]]) from error


# -- ids ----------------------------------------------------------------------------------------


def point_id(id_: RecordId, *, text_ids: bool) -> tuple[PointId, bool]:
    """The point's id for a record's id, and whether the payload must keep the record's.

    Integers from 0 to 2^64 − 1 are themselves, and so are UUIDs; with ``text_ids`` it is not UUIDs but
    texts that are a UUID in its usual spelling. Every other id becomes a UUIDv5 of its typed text.
    """
    if isinstance(id_, int) and id_ in UINT64:
        return id_, False
    if isinstance(id_, UUID) and not text_ids:
        return str(id_), False
    if isinstance(id_, str) and text_ids and _is_uuid(id_):
        return id_, False
    return str(uuid5(ID_NAMESPACE, encode_id(id_))), True


def candidates(id_: RecordId) -> list[PointId]:
    """Every point id under which a record of this id may lie."""
    return list(dict.fromkeys(point_id(id_, text_ids=text_ids)[0] for text_ids in (False, True)))


def record_id(point: PointId, *, text_ids: bool) -> RecordId:
    """The record's id where the payload keeps none."""
    return point if isinstance(point, int) or text_ids else UUID(point)


def after(point: PointId) -> PointId | None:
    """The least id behind ``point`` in Qdrant's order: integers first, then UUIDs; ``None`` if none is."""
    if isinstance(point, int):
        return point + 1 if point + 1 in UINT64 else str(UUID(int=0))
    number = UUID(point).int + 1
    return str(UUID(int=number)) if number < 2**128 else None


def order(point: PointId) -> tuple[int, int]:
    """Sorts point ids as Qdrant does."""
    return (0, point) if isinstance(point, int) else (1, UUID(point).int)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


# -- batch → rows -------------------------------------------------------------------------------


def rows_of(
    batch: RecordBatch, schema: CollectionSchema, layout: Layout, *, text_ids: bool, keep_norms: bool
) -> Rows:
    """The batch as rows.

    Raises:
        RejectedRecord: for NaN and infinite components, and for metadata that cannot be kept, with the ids.
    """
    ids = batch.id_list
    if bad := batch.non_finite():
        raise RejectedRecord("vectors hold NaN or infinite numbers", ids=[ids[row] for row in bad])
    points = [point_id(id_, text_ids=text_ids) for id_ in ids]
    norms = _norms(batch, schema) if keep_norms else None
    payloads = _payloads(batch, ids, layout, [foreign for _, foreign in points], norms)
    return Rows([point for point, _ in points], ids, payloads, dict(_wire_columns(batch)))


def _wire_columns(batch: RecordBatch) -> Iterator[tuple[str, Column]]:
    for name, column in batch.columns():
        if isinstance(column, SparseColumn) or column.values.dtype == np.float32:
            yield name, column
        elif isinstance(column, MultiColumn):
            yield name, MultiColumn(column.values.astype(np.float32), column.offsets, column.mask)
        else:
            yield name, DenseColumn(column.values.astype(np.float32), column.mask)


def _payloads(
    batch: RecordBatch, ids: list[RecordId], layout: Layout, foreign: list[bool], norms: Norms | None
) -> list[dict[str, Any]]:
    texts, metadata = batch.text_list, batch.metadata_list
    try:
        return layout.encode(ids, texts, metadata, foreign=foreign, norms=norms)
    except TypeError:
        pass
    bad, reason = [], ""
    for id_, text, meta in zip(ids, texts, metadata, strict=True):
        try:
            layout.encode([id_], [text], [meta])
        except TypeError as error:
            bad.append(id_)
            reason = str(error)
    raise RejectedRecord(reason, ids=bad)


def _norms(batch: RecordBatch, schema: CollectionSchema) -> Norms | None:
    """The lengths that a cosine collection would forget, by row; ``None`` if all are 1."""
    found: Norms = [{} for _ in range(len(batch))]
    known = {f.name: f for f in schema.fields}
    for name, column in batch.vectors.items():
        if name not in known or known[name].metric is not Metric.COSINE:
            continue
        lengths = np.linalg.norm(column.values.astype(np.float64), axis=1)
        odd = (np.abs(lengths - 1.0) > UNIT_TOLERANCE) & (lengths > 0)
        if isinstance(column, MultiColumn):
            for row in range(len(batch)):
                span = slice(column.offsets[row], column.offsets[row + 1])
                if odd[span].any():
                    found[row][name] = lengths[span].tolist()
            continue
        for row in np.flatnonzero(odd & column.present).tolist():
            found[row][name] = float(lengths[row])
    return found if any(found) else None


def chunks(rows: Rows, *, points: int, max_bytes: int, number_bytes: int) -> Iterator[Rows]:
    """Consecutive pieces of at most ``points`` rows and about ``max_bytes``, one row at least."""
    start, total = 0, 0
    for i, size in enumerate(rows.sizes(number_bytes)):
        total += size
        if i > start and (i - start >= points or total > max_bytes):
            yield rows.slice(start, i)
            start, total = i, size
    if start < len(rows):
        yield rows.slice(start, len(rows))


# -- rows → the forms of the transports -----------------------------------------------------------


def as_models(rows: Rows) -> list[Any]:
    """``models.PointStruct`` for REST and the local mode. Built without validating what is known to fit."""
    from qdrant_client import models

    make = models.PointStruct.model_construct
    columns = {name: _plain(column) for name, column in rows.columns.items()}
    points = []
    for i, (id_, payload) in enumerate(zip(rows.ids, rows.payloads, strict=True)):
        vectors: Any = {name: values[i] for name, values in columns.items() if values[i] is not None}
        vectors = vectors[""] if len(vectors) == 1 and "" in vectors else vectors
        points.append(make(id=id_, vector=vectors, payload=payload))
    return points


def _plain(column: Column) -> list[Any]:
    from qdrant_client import models

    if isinstance(column, DenseColumn):
        rows = column.values.tolist()
        return (
            rows
            if column.mask is None
            else [r if ok else None for r, ok in zip(rows, column.mask, strict=True)]
        )
    if isinstance(column, MultiColumn):
        return [None if (m := column[i]) is None else m.tolist() for i in range(len(column))]
    vectors = [column[i] for i in range(len(column))]
    make = models.SparseVector.model_construct
    return [
        None if v is None else make(indices=v.indices.tolist(), values=v.values.tolist()) for v in vectors
    ]


def as_messages(rows: Rows) -> list[Any]:
    """gRPC ``PointStruct`` messages; dense vectors are handed over as bytes, not number by number."""
    from qdrant_client import grpc
    from qdrant_client.conversions.conversion import payload_to_grpc

    named = list(rows.columns) != [""]
    columns = [(name, _serialized(column, named)) for name, column in rows.columns.items()]
    messages = []
    for i, (id_, payload) in enumerate(zip(rows.ids, rows.payloads, strict=True)):
        point = grpc.PointId(num=id_) if isinstance(id_, int) else grpc.PointId(uuid=id_)
        message = grpc.PointStruct(id=point, payload=payload_to_grpc(payload))
        if named:
            message.vectors.vectors.SetInParent()
        for name, vectors in columns:
            vector = vectors[i]
            if vector is not None and named:
                message.vectors.vectors.vectors[name].MergeFromString(vector)
            elif vector is not None:
                message.vectors.MergeFromString(vector)
        if not message.HasField("vectors"):
            message.vectors.vectors.SetInParent()
        messages.append(message)
    return messages


def _serialized(column: Column, named: bool) -> list[bytes | None]:
    """Each row as a serialised ``Vector``, or, for an unnamed one, as the ``Vectors`` around it."""
    if isinstance(column, DenseColumn):
        width = 4 * column.values.shape[1]
        head = _head(column.values.shape[1], named)
        body = column.values.astype("<f4", copy=False).tobytes()
        rows: list[bytes | None] = [head + body[at : at + width] for at in range(0, len(body), width)]
        return (
            rows
            if column.mask is None
            else [r if ok else None for r, ok in zip(rows, column.mask, strict=True)]
        )
    return [None if (v := column[i]) is None else _serialized_one(v, named) for i in range(len(column))]


def _head(dim: int, named: bool) -> bytes:
    """What protobuf writes before the floats of a dense vector of ``dim``: they stand last, packed."""
    from qdrant_client import grpc

    vector = grpc.Vector(dense=grpc.DenseVector(data=[0.0] * dim))
    whole: bytes = (vector if named else grpc.Vectors(vector=vector)).SerializeToString()
    return whole[: len(whole) - 4 * dim]


def _serialized_one(value: Array | SparseVector, named: bool) -> bytes:
    from qdrant_client import grpc

    if isinstance(value, SparseVector):
        sparse = grpc.SparseVector(indices=value.indices.tolist(), values=value.values.tolist())
        vector = grpc.Vector(sparse=sparse)
    else:
        dense = [grpc.DenseVector(data=row) for row in value.tolist()]
        vector = grpc.Vector(multi_dense=grpc.MultiDenseVector(vectors=dense))
    whole: bytes = (vector if named else grpc.Vectors(vector=vector)).SerializeToString()
    return whole


# -- points → batch -----------------------------------------------------------------------------


def batch_of(
    points: Sequence[Any],
    schema: CollectionSchema,
    layout: Layout,
    fields: Fields,
    *,
    text_ids: bool,
    restore: bool,
) -> RecordBatch:
    """A batch of ``models.Record`` (or scored points). ``restore`` gives vectors their lengths back."""
    columns = layout.decode([point.payload or {} for point in points])
    ids = [
        record_id(point.id, text_ids=text_ids) if known is None else known
        for point, known in zip(points, columns.ids, strict=True)
    ]
    stored = [_named(point.vector) for point in points]
    norms = columns.norms if restore and any(columns.norms) else None
    dense: dict[str, DenseColumn | MultiColumn] = {}
    sparse: dict[str, SparseColumn] = {}
    for field_ in schema.fields:
        if not fields.wants(field_.name):
            continue
        values = [vectors.get(field_.name) for vectors in stored]
        if field_.kind is Kind.SPARSE:
            sparse[field_.name] = SparseColumn.from_rows([_sparse(value) for value in values])
        else:
            dense[field_.name] = _dense(field_, values, norms)
    return RecordBatch(
        ids=IdColumn(ids),
        vectors=dense,
        sparse_vectors=sparse,
        texts=columns.texts if fields.text else None,
        metadata=columns.metadata if fields.metadata else None,
    )


def _named(vector: Any) -> Mapping[str, Any]:
    if isinstance(vector, dict):
        return vector
    return {} if vector is None else {"": vector}


def _sparse(value: Any) -> SparseVector | None:
    return None if value is None else SparseVector(value.indices, value.values)


def _dense(
    field_: VectorField, values: list[Any], norms: Sequence[Mapping[str, Any]] | None
) -> DenseColumn | MultiColumn:
    make: Callable[..., Any] = MultiColumn.from_rows if field_.kind is Kind.MULTI else DenseColumn.from_rows
    rows = [None if value is None else np.asarray(value, dtype=np.float32) for value in values]
    for i, row in enumerate(rows):
        length = norms[i].get(field_.name) if norms else None
        if length is not None and row is not None:
            rows[i] = _lengthened(row, np.asarray(length, dtype=np.float64))
    if field_.dtype in (DType.INT8, DType.UINT8):
        rows = [None if row is None else np.rint(row) for row in rows]
    column: DenseColumn | MultiColumn = make(rows, field_.dim, np.dtype(field_.dtype.numpy))
    return column


def _lengthened(row: Array, length: Array) -> Array:
    """``row`` (or each of its rows) at its old length. What never lost it stays as it is, to the bit."""
    now = np.linalg.norm(row.astype(np.float64), axis=-1)
    if now.shape != length.shape:
        return row  # the app has replaced the vector since
    scale = np.divide(length, now, out=np.ones_like(now), where=now > 0)
    if np.all(np.abs(scale - 1.0) < 1e-6):
        return row
    longer: Array = (row.astype(np.float64) * scale[..., None]).astype(np.float32)
    return longer
