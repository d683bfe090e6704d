"""One record as one JSON object, and back.

    {"id": 7, "text": "…", "metadata": {…}, "vector": [0.1, …], "vectors": {"title": […]},
     "sparse_vectors": {"bm25": {"indices": […], "values": […]}}, "_vecferry": {…}}

``vector`` is the unnamed field. ``_vecferry`` is there only where it is needed: ``id`` (an id that JSON
cannot hold, see `encode_id`), ``types`` (metadata that JSON cannot hold, see `to_json`), and ``schema`` in
the first record of a file.

A float32 is written with the fewest digits that name it. Parsed as a double and rounded, they give the
same float32 for every one of the 2³² bit patterns but ±7.038531e-26 (0x15ae43fd; the double nearest to
those digits lies exactly half-way to the next float32), which is written as a double instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from vecferry.errors import RejectedRecord
from vecferry.model import (
    ENVELOPE,
    CollectionSchema,
    DenseColumn,
    IdColumn,
    Kind,
    MultiColumn,
    RecordBatch,
    RecordId,
    SparseColumn,
    SparseVector,
    decode_id,
    encode_id,
    from_json,
    id_type,
    to_json,
)
from vecferry.model.ids import check_id
from vecferry.model.typed import parse_json
from vecferry.model.vectors import Array, non_finite_rows

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_AMBIGUOUS = np.uint32(0x15AE43FD)
_INT64 = range(-(2**63), 2**63)
_ID_NAMES = ("id", "_id", "ID", "doc_id", "chunk_id", "uuid", "key")
_TEXT_NAMES = ("text", "content", "document", "page_content", "chunk", "body")
_OWN_NAMES = ("text", "vector", "vectors", "sparse_vectors", "metadata")
_VECTOR_NAMES = ("vector", "embedding", "embeddings", "emb", "dense_vector", "values")


# -- writing ----------------------------------------------------------------------------------


def dump_rows(batch: RecordBatch, header: Mapping[str, Any] | None = None) -> Iterator[bytes]:
    """A line a row, each with its line feed. ``header`` joins the envelope of the first one.

    Raises:
        RejectedRecord: for what JSON cannot hold: NaN and infinities in vectors, lone surrogates.
    """
    if bad := batch.non_finite():
        ids = [batch.id_list[row] for row in bad]
        raise RejectedRecord(
            f"the vectors of {ids[:3]} hold NaN or infinity, which JSON cannot; write to parquet:", ids=ids
        )
    dense = [(name, _exact(column), column.mask) for name, column in batch.vectors.items()]
    texts, metadata = batch.text_list, batch.metadata_list
    for row, id_ in enumerate(batch.id_list):
        envelope: dict[str, Any] = {}
        record: dict[str, Any] = {"id": _plain_id(id_, envelope)}
        if texts[row] is not None:
            record["text"] = texts[row]
        record["metadata"] = _plain_metadata(id_, metadata[row], envelope)
        _put_vectors(record, dense, batch.sparse_vectors, row)
        if header and row == 0:
            envelope.update(header)
        if envelope:
            record[ENVELOPE] = envelope
        yield _dumps(record, id_)


def _dumps(record: dict[str, Any], id_: RecordId) -> bytes:
    try:
        return orjson.dumps(record, option=_OPTIONS)
    except (TypeError, ValueError) as error:
        raise RejectedRecord(
            f"record {id_!r} cannot be written as JSON: {error}; change it in transform=…", ids=[id_]
        ) from error


def _plain_id(id_: RecordId, envelope: dict[str, Any]) -> Any:
    if isinstance(id_, str) or (isinstance(id_, int) and id_ in _INT64):
        return id_
    envelope["id"] = encode_id(id_)
    return str(id_) if id_type(id_) in ("uuid", "int") else [str(part) for part in id_]  # type: ignore[union-attr]


def _plain_metadata(id_: RecordId, metadata: Mapping[str, Any], envelope: dict[str, Any]) -> Any:
    try:
        plain, types = to_json(metadata)
    except TypeError as error:
        raise RejectedRecord(f"record {id_!r}: {error}; change it in transform=…", ids=[id_]) from error
    if types:
        envelope["types"] = types
    return plain


def _exact(column: DenseColumn | MultiColumn) -> DenseColumn | MultiColumn:
    values = column.values
    if values.dtype != np.float32:
        return column
    bits = values.view(np.uint32) & np.uint32(0x7FFFFFFF)
    if not (bits == _AMBIGUOUS).any():
        return column
    wide = values.astype(np.float64)
    if isinstance(column, MultiColumn):
        return MultiColumn(wide, column.offsets, column.mask)
    return DenseColumn(wide, column.mask)


def _put_vectors(
    record: dict[str, Any], dense: Sequence[Any], sparse: Mapping[str, SparseColumn], row: int
) -> None:
    for name, column, _ in dense:
        value = column[row]
        if value is None:
            continue
        if name == "":
            record["vector"] = value if value.ndim == 1 else list(value)
        else:
            record.setdefault("vectors", {})[name] = value if value.ndim == 1 else list(value)
    for name, sparse_column in sparse.items():
        pairs = sparse_column[row]
        if pairs is not None:
            both = {"indices": pairs.indices, "values": _exact_values(pairs.values)}
            record.setdefault("sparse_vectors", {})[name] = both


def _exact_values(values: Array) -> Array:
    wide: Array = _exact(DenseColumn(values[None, :])).values[0]
    return wide


# -- reading ----------------------------------------------------------------------------------


class BadRow(ValueError):
    """What is wrong with a vector of the row number ``row``; ``relative`` if only beside other rows."""

    def __init__(self, row: int, reason: str, *, relative: bool = False) -> None:
        super().__init__(reason)
        self.row = row
        self.relative = relative


def without_mark(line: bytes) -> bytes:
    """The line without the byte order mark that some editors put before the first one."""
    return line.removeprefix(b"\xef\xbb\xbf")


def header_of(line: bytes) -> tuple[dict[str, Any], bool]:
    """The envelope of a line, and whether the line is nothing but that."""
    record = orjson.loads(without_mark(line))
    envelope = record.get(ENVELOPE) if isinstance(record, dict) else None
    return (envelope, len(record) == 1) if isinstance(envelope, dict) else ({}, False)


def load_row(line: bytes, names: Mapping[str, str | None], fallback: int) -> dict[str, Any] | None:
    """The parts of a record: id, text, metadata, vectors, sparse; ``None`` for a line that is a header.

    Args:
        names: which keys a foreign file uses for ``id``, ``text``, ``vector`` and ``metadata``.
        fallback: the id of a row that has none.

    Raises:
        ValueError: saying what is wrong with it.
    """
    record = parse_json(without_mark(line))
    if not isinstance(record, dict):
        raise ValueError(f"it is a JSON {type(record).__name__}, not an object")
    envelope = record.pop(ENVELOPE, None) or {}
    if envelope and not record:
        return None
    for name in _OWN_NAMES:
        if name in record and record[name] is None:
            del record[name]  # as tools write that give every row every key
    vectors = dict(record.pop("vectors", None) or {}) if isinstance(record.get("vectors"), dict) else {}
    sparse = record.pop("sparse_vectors") if isinstance(record.get("sparse_vectors"), dict) else {}
    vector = _pop(record, names.get("vector"), _VECTOR_NAMES, list)
    if vector is not None:
        vectors[""] = vector
    id_ = _pop(record, names.get("id"), _ID_NAMES, (int, str, list))
    text = _pop(record, names.get("text"), _TEXT_NAMES, str)
    metadata = _pop(record, names.get("metadata"), ("metadata",), dict)
    metadata = {**(metadata or {}), **record}
    return {
        "id": decode_id(envelope["id"]) if "id" in envelope else check_id(fallback if id_ is None else id_),
        "text": text,
        "metadata": from_json(metadata, envelope["types"]) if "types" in envelope else metadata,
        "vectors": vectors,
        "sparse": sparse,
    }


def _pop(record: dict[str, Any], given: str | None, known: Sequence[str], kind: Any) -> Any:
    if given is not None:
        if given not in record:
            raise ValueError(f"it has no key {given!r}")
        return record.pop(given)
    for name in known:
        value = record.get(name)
        if isinstance(value, kind) and not isinstance(value, bool):
            return record.pop(name)
    return None


def columns_of(rows: Sequence[Mapping[str, Any]], schema: CollectionSchema, wants: Any) -> dict[str, Any]:
    """The columns of a `RecordBatch`, for the vector fields that ``wants`` is true for.

    Raises:
        BadRow: for a vector of another width, or one that is no vector.
    """
    fields = {f.name: f for f in schema.fields}
    names = list(dict.fromkeys([*fields, *(n for row in rows for n in row["vectors"])]))
    vectors: dict[str, Any] = {}
    sparse: dict[str, Any] = {}
    for name in filter(wants, names):
        field = fields.get(name)
        if field is not None and field.kind is Kind.SPARSE:
            sparse[name] = _sparse(rows, name)
        else:
            values = [row["vectors"].get(name) for row in rows]
            vectors[name] = _dense(values, field, name)
    for name in dict.fromkeys(n for row in rows for n in row["sparse"]):
        if name not in fields and wants(name):
            sparse[name] = _sparse(rows, name)
    for name, column in (*vectors.items(), *sparse.items()):
        for row in non_finite_rows(column):
            raise BadRow(row, f"vector {name!r} holds null, or a number beyond its type")
    return {"ids": IdColumn([row["id"] for row in rows]), "vectors": vectors, "sparse_vectors": sparse}


def _sparse(rows: Sequence[Mapping[str, Any]], name: str) -> SparseColumn:
    found: list[SparseVector | None] = []
    for at, row in enumerate(rows):
        pairs = row["sparse"].get(name)
        try:
            found.append(None if pairs is None else SparseVector(**pairs))
        except (ValueError, TypeError, OverflowError) as error:
            raise BadRow(at, f"sparse vector {name!r} is no indices with values: {error}") from error
    return SparseColumn.from_rows(found)


def _dense(values: Sequence[Any], field: Any, name: str) -> DenseColumn | MultiColumn:
    width = field.dtype.width(field.dim) if field and field.dim else None
    dtype = np.dtype(field.dtype.numpy) if field else np.dtype(np.float32)
    first = next((v for v in values if v), None)
    nested = isinstance(first, list) and isinstance(first[0], list)
    try:
        if field.kind is Kind.MULTI if field else nested:
            return MultiColumn.from_rows(_matrices(values, width, dtype, name), width, dtype)
        if None not in values and values:
            matrix = np.array(values, dtype=dtype)
            if matrix.ndim == 2 and (width is None or matrix.shape[1] == width):
                return DenseColumn(matrix)
        return DenseColumn.from_rows(values, width, dtype)
    except BadRow:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise _which(values, width, name, error) from None


def _matrices(values: Sequence[Any], width: int | None, dtype: Any, name: str) -> list[Array | None]:
    found: list[Array | None] = []
    relative = width is None
    for row, value in enumerate(values):
        try:
            matrix = None if value is None else np.array(value, dtype=dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise BadRow(row, f"multi-vector {name!r} is no matrix of numbers: {error}") from error
        if matrix is not None:
            width = width or matrix.shape[-1]
            if matrix.ndim != 2 or matrix.shape[1] != width:
                reason = f"multi-vector {name!r} has shape {matrix.shape} where (n, {width}) is due"
                raise BadRow(row, reason, relative=relative)
        found.append(matrix)
    return found


def _which(values: Sequence[Any], width: int | None, name: str, error: Exception) -> BadRow:
    due = width
    for row, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, list):
            return BadRow(row, f"vector {name!r} is no list of numbers")
        due = due or len(value)
        if not all(isinstance(x, int | float) for x in value):
            return BadRow(row, f"vector {name!r} holds something that is no number")
        if len(value) != due:
            reason = f"vector {name!r} has {len(value)} components where {due} are due"
            return BadRow(row, reason, relative=width is None)
    return BadRow(0, f"vector {name!r}: {error}")
