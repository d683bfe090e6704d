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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from vecferry.errors import RejectedRecord
from vecferry.model.batch import RecordBatch
from vecferry.model.foreign import (
    ID_NAMES,
    METADATA_NAMES,
    TEXT_NAMES,
    VECTOR_NAMES,
    join_metadata,
    pop_part,
)
from vecferry.model.ids import IdColumn, RecordId, check_id, decode_id, encode_id, id_type
from vecferry.model.json_column import JsonColumn, Types
from vecferry.model.schema import CollectionSchema, Kind, VectorField
from vecferry.model.typed import ENVELOPE, dump_json, parse_json
from vecferry.model.vectors import (
    Array,
    DenseColumn,
    MultiColumn,
    SparseColumn,
    SparseVector,
    non_finite_rows,
)

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_AMBIGUOUS = np.uint32(0x15AE43FD)
_INT64_END = 2**63
_OWN_NAMES = ("text", "vector", "vectors", "sparse_vectors", "metadata")


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
    dense = [(name, _exact(column)) for name, column in batch.vectors.items()]
    texts, metadata = batch.text_list, batch.json_metadata
    for row, id_ in enumerate(batch.ids):
        envelope: dict[str, Any] = {}
        record: dict[str, Any] = {"id": _plain_id(id_, envelope)}
        if texts[row] is not None:
            record["text"] = texts[row]
        record["metadata"] = orjson.Fragment(metadata.raw(row))
        if types := metadata.types(row):
            envelope["types"] = types
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
    if isinstance(id_, str) or (isinstance(id_, int) and -_INT64_END <= id_ < _INT64_END):
        return id_
    envelope["id"] = encode_id(id_)
    return str(id_) if id_type(id_) in ("uuid", "int") else [str(part) for part in id_]  # type: ignore[union-attr]


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
    for name, column in dense:
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


def with_header(line: bytes, header: Mapping[str, Any]) -> bytes:
    """The line with ``header`` joined to its envelope, all else as it is."""
    envelope, _ = header_of(line)
    if not envelope:
        return line.rstrip()[:-1].rstrip() + b"," + orjson.dumps({ENVELOPE: header})[1:] + b"\n"
    record = parse_json(without_mark(line))
    return dump_json({**record, ENVELOPE: {**envelope, **header}}) + b"\n"


class JsonRecord(NamedTuple):
    """The parts of one line. With ``types``, see `from_json`, the metadata is restored."""

    id: RecordId
    text: str | None
    metadata: dict[str, Any]
    types: Types
    vectors: dict[str, Any]
    sparse: dict[str, Any]


def load_row(line: bytes, names: Mapping[str, str | None], fallback: int) -> JsonRecord | None:
    """The parts of a record; ``None`` for a line that is a header.

    Args:
        names: which keys a foreign file uses for ``id``, ``text``, ``vector`` and ``metadata``.
        fallback: the id of a row that has none.

    Raises:
        ValueError: saying what is wrong with it.
    """
    record = parse_json(without_mark(line), vector=names.get("vector") or _vector_key(line))
    if not isinstance(record, dict):
        raise ValueError(f"it is a JSON {type(record).__name__}, not an object")
    envelope = record.pop(ENVELOPE, None) or {}
    if envelope and not record:
        return None
    for name in _OWN_NAMES:
        if name in record and record[name] is None:
            del record[name]  # as tools write that give every row every key
    vectors = record.pop("vectors") if isinstance(record.get("vectors"), dict) else {}
    sparse = record.pop("sparse_vectors") if isinstance(record.get("sparse_vectors"), dict) else {}
    if isinstance(record.get("payload"), dict) and "id" in record and not envelope:
        _open_point(record, vectors, sparse)
    vector = pop_part(record, names.get("vector"), VECTOR_NAMES, list)
    if vector is not None:
        vectors[""] = vector
    id_ = pop_part(record, names.get("id"), ID_NAMES, (int, str, list))
    text = pop_part(record, names.get("text"), TEXT_NAMES, str)
    return JsonRecord(
        decode_id(envelope["id"]) if "id" in envelope else check_id(fallback if id_ is None else id_),
        text,
        _metadata(record, names.get("metadata")),
        dict(envelope.get("types") or {}),
        vectors,
        sparse,
    )


def _open_point(record: dict[str, Any], vectors: dict[str, Any], sparse: dict[str, Any]) -> None:
    """A point as Qdrant dumps it: ``{"id", "vector": […] or {name: …}, "payload": {…}}``."""
    named = record.get("vector")
    for name, value in dict(named).items() if isinstance(named, dict) else ():
        side = sparse if isinstance(value, dict) and value.keys() == {"indices", "values"} else vectors
        side[name] = value
    if isinstance(named, dict):
        del record["vector"]
    payload = record.pop("payload")
    text = pop_part(payload, None, TEXT_NAMES, str)
    if text is not None:
        record.setdefault("text", text)
    nested = payload.get("metadata")
    whole = isinstance(nested, dict) and len(payload) == 1
    record["metadata"] = nested if whole else payload


_QUOTED = tuple((name, f'"{name}"'.encode()) for name in VECTOR_NAMES)


def _vector_key(line: bytes) -> str | None:
    return next((name for name, quoted in _QUOTED if quoted in line), None)


def _metadata(record: dict[str, Any], given: str | None) -> dict[str, Any]:
    if given is None:
        given = next((name for name in METADATA_NAMES if isinstance(record.get(name), dict)), None)
        if given is None:
            return record
    nested = pop_part(record, given, (), dict)
    if isinstance(nested, dict):
        return join_metadata(given, nested, record) if record else nested
    return record if nested is None else {given: nested, **record}


def metadata_of(rows: Sequence[JsonRecord]) -> JsonColumn:
    """The metadata of the rows as one column.

    Raises:
        Unkeepable: for an object that is nested too deeply, with its row.
    """
    column = JsonColumn.of_parsed([row.metadata for row in rows])
    kept = {at: row.types for at, row in enumerate(rows) if row.types}
    return column.with_types(kept) if kept else column


def columns_of(
    rows: Sequence[JsonRecord], schema: CollectionSchema, wants: Callable[[str], bool]
) -> dict[str, Any]:
    """The ids and vector columns of a `RecordBatch`, for the vector fields that ``wants`` is true for.

    Raises:
        BadRow: for a vector of another width, or one that is no vector.
    """
    fields = {f.name: f for f in schema.fields}
    names = list(dict.fromkeys([*fields, *(n for row in rows for n in row.vectors)]))
    vectors: dict[str, Any] = {}
    sparse: dict[str, Any] = {}
    for name in filter(wants, names):
        field = fields.get(name)
        if field is not None and field.kind is Kind.SPARSE:
            sparse[name] = _sparse(rows, name)
        else:
            values = [row.vectors.get(name) for row in rows]
            vectors[name] = _dense(values, field, name)
    for name in dict.fromkeys(n for row in rows for n in row.sparse):
        if name not in fields and wants(name):
            sparse[name] = _sparse(rows, name)
    for name, column in (*vectors.items(), *sparse.items()):
        for row in non_finite_rows(column):
            raise BadRow(row, f"vector {name!r} holds null, or a number beyond its type")
    return {"ids": IdColumn([row.id for row in rows]), "vectors": vectors, "sparse_vectors": sparse}


def _sparse(rows: Sequence[JsonRecord], name: str) -> SparseColumn:
    found: list[SparseVector | None] = []
    for at, row in enumerate(rows):
        pairs = row.sparse.get(name)
        try:
            found.append(None if pairs is None else SparseVector(**pairs))
        except (ValueError, TypeError, OverflowError) as error:
            raise BadRow(at, f"sparse vector {name!r} is no indices with values: {error}") from error
    return SparseColumn.from_rows(found)


def _dense(values: Sequence[Any], field: VectorField | None, name: str) -> DenseColumn | MultiColumn:
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
