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
from vecferry.ports import Fields
from vecferry.records import (
    CollectionSchema,
    Column,
    DenseColumn,
    DType,
    Kind,
    Metric,
    MultiColumn,
    RecordBatch,
    RecordId,
    SparseColumn,
    SparseVector,
    VectorField,
    encode_id,
    ids_column,
)
from vecferry.records.ids import ID_NAMESPACE
from vecferry.records.vectors import Array

PointId = int | str
Norms = list[dict[str, Any]]

UINT64 = range(2**64)
# float32 vectors that are meant to have unit length miss it by less than this.
UNIT_TOLERANCE = 1e-5
_FLOAT_AS_JSON = 21


@dataclass(frozen=True, slots=True)
class Row:
    """One point before it takes the form of a transport. ``size`` is a guess of its bytes as JSON."""

    id: PointId
    vectors: dict[str, Array | SparseVector]
    payload: dict[str, Any]

    @property
    def size(self) -> int:
        numbers = sum(v.size if isinstance(v, np.ndarray) else 2 * len(v) for v in self.vectors.values())
        return _FLOAT_AS_JSON * int(numbers) + len(orjson.dumps(self.payload, default=str)) + 64


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
) -> list[Row]:
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
    columns = dict(_wire_columns(batch))
    rows = []
    for i, (point, _) in enumerate(points):
        vectors = {name: column[i] for name, column in columns.items()}
        present = {name: vector for name, vector in vectors.items() if vector is not None}
        rows.append(Row(point, present, payloads[i]))
    return rows


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


def chunks(rows: Sequence[Row], *, points: int, max_bytes: int) -> Iterator[Sequence[Row]]:
    """Consecutive pieces of at most ``points`` rows and about ``max_bytes``, one row at least."""
    start, size = 0, 0
    for i, row in enumerate(rows):
        size += row.size
        if i > start and (i - start >= points or size > max_bytes):
            yield rows[start:i]
            start, size = i, row.size
    if start < len(rows):
        yield rows[start:]


# -- rows → the forms of the transports -----------------------------------------------------------


def as_models(rows: Sequence[Row]) -> list[Any]:
    """``models.PointStruct`` for REST and the local mode. Built without validating what is known to fit."""
    from qdrant_client import models

    def plain(vector: Array | SparseVector) -> Any:
        if isinstance(vector, SparseVector):
            return models.SparseVector.model_construct(
                indices=vector.indices.tolist(), values=vector.values.tolist()
            )
        return vector.tolist()

    points = []
    for row in rows:
        vectors: Any = {name: plain(vector) for name, vector in row.vectors.items()}
        vectors = vectors[""] if list(vectors) == [""] else vectors
        points.append(models.PointStruct.model_construct(id=row.id, vector=vectors, payload=row.payload))
    return points


def as_messages(rows: Sequence[Row]) -> list[Any]:
    """gRPC ``PointStruct`` messages; dense vectors are handed over as bytes, not number by number."""
    from qdrant_client import grpc
    from qdrant_client.conversions.conversion import payload_to_grpc

    messages = []
    for row in rows:
        id_ = grpc.PointId(num=row.id) if isinstance(row.id, int) else grpc.PointId(uuid=row.id)
        message = grpc.PointStruct(id=id_, payload=payload_to_grpc(row.payload))
        if list(row.vectors) == [""]:
            _fill(message.vectors.vector, row.vectors[""])
        else:
            message.vectors.vectors.SetInParent()
            for name, vector in row.vectors.items():
                _fill(message.vectors.vectors.vectors[name], vector)
        messages.append(message)
    return messages


def _fill(target: Any, vector: Array | SparseVector) -> None:
    if isinstance(vector, SparseVector):
        target.sparse.indices.extend(vector.indices.tolist())
        target.sparse.values.extend(vector.values.tolist())
    elif vector.ndim == 1:
        target.dense.MergeFromString(_packed_floats(vector))
    else:
        target.multi_dense.SetInParent()
        for part in vector:
            target.multi_dense.vectors.add().MergeFromString(_packed_floats(part))


def _packed_floats(vector: Array) -> bytes:
    """``DenseVector.data`` (field 1, packed) as protobuf writes it; see "Encoding" in its documentation."""
    body = vector.astype("<f4", copy=False).tobytes()
    length, size = bytearray(), len(body)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"\x0a" + bytes(length) + body


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
        ids=ids_column(ids),
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
