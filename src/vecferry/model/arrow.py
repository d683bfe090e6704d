"""Batches as Arrow, and back.

| column | Arrow type | holds |
|---|---|---|
| ``id`` | ``int64``, ``string`` or ``uuid`` | the id; mixed types and tuples as text, see `encode_id` |
| ``text`` | ``string`` | the text, null where there is none |
| ``metadata`` | ``string`` | the metadata as a JSON object |
| ``_vecferry`` | ``string`` | null, or ``{"types": {pointer: type name}}`` for what JSON cannot hold |
| ``vector``, ``vector_NAME`` | ``fixed_size_list<float>[dim]`` | dense; also ``halffloat``, ``int8`` … |
| ``vector_NAME`` | ``struct<indices: list<uint32>, values: list<float>>`` | a sparse vector |
| ``vector_NAME`` | ``list<fixed_size_list<float>[dim]>`` | a multi-vector |

A missing vector is null. What a column is stands in its own Arrow metadata, and the collection's schema in
that of the table, both as JSON under the key ``vecferry``. Tables without them are read by the names and
types of their columns, see `layout_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import numpy as np
import orjson

from vecferry.errors import ConfigurationError, CorruptDataError, RejectedRecord
from vecferry.model._pyarrow import pa
from vecferry.model.arrow_layout import KEY, Layout, VectorPlace, layout_of, schema_from_arrow
from vecferry.model.batch import RecordBatch
from vecferry.model.foreign import join_metadata
from vecferry.model.ids import IdColumn, check_id, decode_id
from vecferry.model.json_column import JsonColumn, Types, Unkeepable
from vecferry.model.schema import CollectionSchema, Kind, VectorField
from vecferry.model.typed import dump_json, from_json, parse_json
from vecferry.model.vectors import Array, Column, DenseColumn, Mask, MultiColumn, SparseColumn


def column_name(name: str) -> str:
    """The column of the vector field ``name``."""
    return f"vector_{name}" if name else "vector"


def arrow_schema(schema: CollectionSchema, id_kind: str) -> pa.Schema:
    """The Arrow schema of a collection, with everything `layout_of` needs in its metadata."""
    fields = [
        _field("id", _id_arrow_type(id_kind), role="id", kind=id_kind),
        _field("text", pa.string(), role="text"),
        _field("metadata", pa.string(), role="metadata"),
        _field("_vecferry", pa.string(), role="types"),
    ]
    for f in schema.fields:
        role = {"role": "vector", "name": f.name, "kind": f.kind, "dtype": f.dtype, "dim": f.dim}
        fields.append(_field(column_name(f.name), _vector_type(f), **role))
    about = {"version": 1, "schema": schema.model_dump(mode="json", exclude_none=True)}
    return pa.schema(fields, metadata={KEY: orjson.dumps(about)})


def batch_to_arrow(
    batch: RecordBatch, schema: CollectionSchema | None = None, id_kind: str | None = None
) -> pa.RecordBatch:
    """One Arrow record batch of the rows.

    Args:
        schema: the fields wanted, in order; one that the batch lacks is null. By default its own.
        id_kind: see `IdColumn.kind`; by default that of this batch.

    Raises:
        RejectedRecord: for a text or metadata that UTF-8 or JSON cannot hold.
        ValueError: for a column of another width than the schema's.
    """
    from vecferry.model.batch import schema_of

    schema = schema or schema_of(batch)
    kind = id_kind or batch.ids.kind
    target = arrow_schema(schema, kind)
    documents, types = _documents(batch)
    arrays = [
        _ids_to_arrow(batch.ids, kind),
        _strings(batch, batch.text_list, "text"),
        documents,
        types,
    ]
    for f, arrow in zip(schema.fields, list(target)[4:], strict=True):
        column = batch.column(f.name)
        arrays.append(pa.nulls(len(batch), arrow.type) if column is None else _column(column, arrow.type))
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def _field(column: str, arrow: pa.DataType, **role: Any) -> pa.Field:
    return pa.field(column, arrow, nullable=column != "id", metadata={KEY: orjson.dumps(role)})


def _id_arrow_type(kind: str) -> pa.DataType:
    if kind == "uuid":
        return pa.uuid() if hasattr(pa, "uuid") else pa.binary(16)
    return pa.int64() if kind == "int" else pa.string()


def _vector_type(f: VectorField) -> pa.DataType:
    component = pa.from_numpy_dtype(np.dtype(f.dtype.numpy))
    if f.kind is Kind.SPARSE:
        return pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
    if not f.dim:
        return pa.list_(component if f.kind is Kind.DENSE else pa.list_(component))
    dense = pa.list_(component, f.dtype.width(f.dim))
    return dense if f.kind is Kind.DENSE else pa.list_(dense)


def _ids_to_arrow(ids: IdColumn, kind: str) -> pa.Array:
    if kind == "int":
        return arrow_numbers(np.asarray(ids, dtype=np.int64))
    if kind == "str":
        return _utf8([cast(str, i).encode() for i in ids])
    if kind == "uuid":
        joined = b"".join([cast(UUID, i).bytes for i in ids])
        storage = pa.Array.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(joined)])
        arrow = _id_arrow_type("uuid")
        return pa.ExtensionArray.from_storage(arrow, storage) if arrow != pa.binary(16) else storage
    return _utf8([text.encode() for text in ids.encoded()])


def _utf8(values: Sequence[bytes | None]) -> pa.Array:
    """A string column."""
    given = [value or b"" for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, given), np.int64, len(values)), out=offsets[1:])
    absent = None
    if None in values:
        present = np.fromiter((value is not None for value in values), np.bool_, len(values))
        absent = _bits(present)
    buffers = [absent, _offsets(offsets).buffers()[1], pa.py_buffer(b"".join(given))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def arrow_numbers(values: Array) -> pa.Array:
    """An array of numbers or truth values, not copied.

    `pyarrow.array` would first ask pandas whether it knows the array, and import it for that.
    """
    if values.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, _bits(values)])
    raw = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, raw])


def _bits(values: Array) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def _strings(batch: RecordBatch, values: Sequence[str | None], what: str) -> pa.Array:
    try:
        return _utf8([None if value is None else value.encode() for value in values])
    except (UnicodeEncodeError, AttributeError) as error:
        bad = [i for i, value in zip(batch.id_list, values, strict=True) if not _is_utf8(value)]
        raise RejectedRecord(
            f"the {what} of {bad[:3]} is not valid Unicode; clean it in transform=…", ids=bad
        ) from error


def _is_utf8(value: str | None) -> bool:
    try:
        return value is None or bool(value.encode()) or True
    except (UnicodeEncodeError, AttributeError):
        return False


def _documents(batch: RecordBatch) -> tuple[pa.Array, pa.Array]:
    """The metadata of each row as JSON, and the table of what JSON cannot hold."""
    if batch.metadata is None:
        return pa.nulls(len(batch), pa.string()), pa.nulls(len(batch), pa.string())
    column = batch.json_metadata
    if not column.typed:
        return _utf8(column.rows()), pa.nulls(len(batch), pa.string())
    types: list[bytes | None] = [None] * len(batch)
    for row, table in column.typed.items():
        types[row] = dump_json({"types": table})
    return _utf8(column.rows()), _utf8(types)


def _column(column: Column, arrow: pa.DataType) -> pa.Array:
    absent = None if column.mask is None else arrow_numbers(~column.mask)
    if isinstance(column, SparseColumn):
        offsets = _offsets(column.indptr)
        indices = pa.ListArray.from_arrays(
            offsets, arrow_numbers(column.indices.astype(np.uint32, copy=False))
        )
        values = pa.ListArray.from_arrays(
            offsets, arrow_numbers(column.values.astype(np.float32, copy=False))
        )
        return pa.StructArray.from_arrays([indices, values], fields=list(arrow), mask=absent)
    if isinstance(column, MultiColumn):
        return pa.ListArray.from_arrays(
            _offsets(column.offsets), _dense(column.values, arrow.value_type), type=arrow, mask=absent
        )
    return _dense(column.values, arrow, absent)


def _dense(values: Array, arrow: pa.DataType, absent: pa.Array | None = None) -> pa.Array:
    if pa.types.is_fixed_size_list(arrow) and arrow.list_size != values.shape[1]:
        raise ValueError(f"vectors of {values.shape[1]} components where {arrow.list_size} are due")
    wanted = arrow.value_type.to_pandas_dtype()
    flat = arrow_numbers(np.ascontiguousarray(values, dtype=wanted).reshape(-1))
    if pa.types.is_fixed_size_list(arrow):
        return pa.FixedSizeListArray.from_arrays(flat, type=arrow, mask=absent)
    offsets = _offsets(np.arange(len(values) + 1) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, flat, type=arrow, mask=absent)


def _offsets(offsets: Array) -> pa.Array:
    if len(offsets) and offsets[-1] >= 2**31:
        raise ValueError("a batch this large does not fit one Arrow list; write smaller batches")
    return arrow_numbers(offsets.astype(np.int32))


# -- from Arrow -------------------------------------------------------------------------------


def batch_from_arrow(batch: pa.RecordBatch | pa.Table, layout: Layout | None = None) -> RecordBatch:
    """A `RecordBatch` of the rows; arrays are copied only where their layout or type has to change.

    Raises:
        CorruptDataError: for a null id, a null inside a vector, vectors of several lengths, damaged JSON.
    """
    layout = layout or layout_of(batch.schema)
    have = set(batch.schema.names)
    vectors: dict[str, DenseColumn | MultiColumn] = {}
    sparse: dict[str, SparseColumn] = {}
    for place in layout.vectors:
        if place.column in have:
            _add_vectors(place, _flat(batch.column(place.column)), vectors, sparse)
    text = layout.text if layout.text in have else None
    return RecordBatch(
        ids=_ids_from_arrow(batch, layout),
        vectors=vectors,
        sparse_vectors=sparse,
        texts=None if text is None else _texts(_flat(batch.column(text))),
        metadata=_metadata_from_arrow(batch, layout, have),
    )


def _add_vectors(
    place: VectorPlace, column: pa.Array, dense: dict[str, Any], sparse: dict[str, Any]
) -> None:
    if place.kind is Kind.SPARSE:
        sparse[place.name] = _sparse_from_arrow(column)
    elif place.kind is Kind.MULTI:
        dense[place.name] = _multi_from_arrow(column, place)
    else:
        dense[place.name] = _dense_from_arrow(column, place)


def _numbers(column: pa.Array) -> Array:
    """The numbers or truth values of a column, not copied; anything where they are null.

    ``to_numpy`` would import pandas, where it is installed.
    """
    raw = column.buffers()[1]
    if pa.types.is_boolean(column.type):
        bits = np.unpackbits(np.frombuffer(raw or b"", np.uint8), bitorder="little")
        return bits[column.offset : column.offset + len(column)].astype(np.bool_)
    dtype = np.dtype(column.type.to_pandas_dtype())
    values = np.frombuffer(raw, dtype) if raw is not None else np.empty(0, dtype)
    return values[column.offset : column.offset + len(column)]


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # an empty table has no chunk to combine
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def _texts(column: pa.Array) -> list[str | None]:
    values = column.to_pylist()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return cast(list[str | None], values)
    return [None if value is None else str(value) for value in values]


def _ids_from_arrow(batch: pa.RecordBatch | pa.Table, layout: Layout) -> IdColumn:
    if layout.id is None:
        return IdColumn(np.arange(layout.numbered_from, layout.numbered_from + batch.num_rows))
    column = _flat(batch.column(layout.id))
    if column.null_count:
        raise CorruptDataError(f"{column.null_count} values of the id column {layout.id!r} are null")
    if pa.types.is_integer(column.type) and not pa.types.is_uint64(column.type):
        return IdColumn(_numbers(column))
    values = column.to_pylist()
    if layout.own and layout.id_kind == "mixed":
        return IdColumn([decode_id(value) for value in values])
    if layout.id_kind == "uuid" and values and isinstance(values[0], bytes):
        return IdColumn([UUID(bytes=value) for value in values])
    try:
        return IdColumn([check_id(value) for value in values])
    except TypeError as error:
        raise ConfigurationError(f"column {layout.id!r} cannot be the id: {error}; name another") from error


def _metadata_from_arrow(
    batch: pa.RecordBatch | pa.Table, layout: Layout, have: set[str]
) -> Sequence[dict[str, Any]] | None:
    extra = [name for name in layout.extra if name in have]
    if layout.metadata not in have and not extra:
        return None
    types = _types(_flat(batch.column(layout.types))) if layout.types in have else {}
    if layout.metadata in have and layout.own and not extra:
        column = _json_rows(_flat(batch.column(layout.metadata)), layout.metadata)
        return column.with_types(types) if types else column
    rows: list[dict[str, Any]] = [{} for _ in range(batch.num_rows)]
    if layout.metadata in have:
        rows = _objects(_flat(batch.column(layout.metadata)), layout.metadata)
    for row, table in types.items():
        rows[row] = from_json(rows[row], table)
    rest: list[dict[str, Any]] = [{} for _ in rows]
    for name in extra:
        values = _to_microseconds(_flat(batch.column(name))).to_pylist()
        for document, value in zip(rest, values, strict=True):
            document[name] = value
    if not extra:
        return rows
    nested = str(layout.metadata)
    return [join_metadata(nested, row, more) for row, more in zip(rows, rest, strict=True)]


def _types(column: pa.Array) -> dict[int, Types]:
    if column.null_count == len(column):
        return {}
    return {row: parse_json(table)["types"] for row, table in enumerate(column.to_pylist()) if table}


def _to_microseconds(column: pa.Array) -> pa.Array:
    """Of times what Python's types hold, also where pandas is not installed."""
    wanted = _microseconds(column.type)
    return column if wanted == column.type else column.cast(wanted, safe=False)


def _microseconds(kind: pa.DataType) -> pa.DataType:
    """The type with microseconds where it has nanoseconds, at any depth."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_microseconds(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_microseconds(kind.value_type)))
    if getattr(kind, "unit", "") != "ns":
        return kind
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def sub_microseconds(column: pa.Array) -> int:
    """How many values of a column, at any depth, Python's types cut to microseconds."""
    kind = column.type
    if pa.types.is_struct(kind):
        return sum(sub_microseconds(_flat(part)) for part in column.flatten())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return sub_microseconds(column.flatten())
    if getattr(kind, "unit", "") != "ns":
        return 0
    numbers = column.drop_null().view(pa.int64()).to_numpy(zero_copy_only=False)
    return int((numbers % 1000 != 0).sum())


def has_nanoseconds(kind: pa.DataType) -> bool:
    """Whether values of the type may be finer than Python's types."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return getattr(kind, "unit", "") == "ns" or any(map(has_nanoseconds, inner))


def _objects(column: pa.Array, name: Any) -> list[dict[str, Any]]:
    """The metadata of a foreign column: structs, maps, or JSON; what is no object stays under its name."""
    values = column.to_pylist()
    if pa.types.is_map(column.type):
        values = [dict(pairs or ()) for pairs in values]
    return [_object(value, name) for value in values]


def _object(value: Any, name: Any) -> dict[str, Any]:
    found = value or None
    if isinstance(found, str):
        try:
            found = parse_json(found)
        except ValueError as error:
            if not found.lstrip().startswith("{"):
                return {name: value}
            raise CorruptDataError(
                f"column {name!r} holds {found!r:.40}, which is not JSON: {error}"
            ) from error
    if found is None:
        return {}
    return found if isinstance(found, dict) else {name: value}


def _json_rows(column: pa.Array, name: Any) -> JsonColumn:
    texts = column.cast(pa.binary()) if pa.types.is_string(column.type) else column
    try:
        return JsonColumn.parse(texts.to_pylist())
    except Unkeepable as error:
        raise CorruptDataError(f"column {name!r}, row {error.row}: {error}") from error


def _mask(column: pa.Array) -> Mask | None:
    if not column.null_count:
        return None
    return _numbers(column.is_valid())


def _dense_from_arrow(column: pa.Array, place: VectorPlace) -> DenseColumn:
    mask = _mask(column)
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        flat = column.values.slice(column.offset * width, len(column) * width)
        return DenseColumn(_components(flat, place, mask).reshape(len(column), width), mask)
    lengths = _numbers(column.value_lengths().fill_null(0))
    present = lengths > 0 if mask is None else mask & (lengths > 0)
    widths = np.unique(lengths[present])
    if len(widths) > 1:
        raise CorruptDataError(
            f"column {place.column!r} holds vectors of {widths.tolist()[:5]} components; if it holds other "
            "numbers, name the column of the vectors with ?vector="
        )
    width = int(widths[0]) if len(widths) else place.dim or 0
    values = np.zeros((len(column), width), dtype=place.dtype.numpy)
    values[present] = _components(column.flatten(), place, None).reshape(-1, width or 1)
    return DenseColumn(values, None if present.all() else present)


def _components(flat: pa.Array, place: VectorPlace, mask: Mask | None) -> Array:
    """The numbers of a flat Arrow array, in the dtype of the field; nulls only where ``mask`` allows."""
    if flat.null_count:
        allowed = 0 if mask is None else (len(mask) - int(mask.sum())) * (len(flat) // len(mask))
        if flat.null_count > allowed:
            raise CorruptDataError(f"column {place.column!r} holds a vector with a null inside")
        flat = flat.fill_null(0) if not pa.types.is_float16(flat.type) else flat
    numbers: Array = _numbers(flat)
    if mask is not None and not mask.all():
        numbers = numbers.copy()
        numbers.reshape(len(mask), -1)[~mask] = 0
    return numbers.astype(place.dtype.numpy, copy=False)


def _sparse_from_arrow(column: pa.Array) -> SparseColumn:
    mask = _mask(column)
    indices, values = _flat(column.field("indices")), _flat(column.field("values"))
    lengths = _numbers(indices.value_lengths().fill_null(0))
    other = _numbers(values.value_lengths().fill_null(0))
    if not np.array_equal(lengths, other):
        raise CorruptDataError("a sparse vector has another number of indices than of values")
    indptr = np.zeros(len(column) + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    flat_indices = _numbers(indices.flatten()).astype(np.uint32, copy=False)
    flat_values = _numbers(values.flatten()).astype(np.float32, copy=False)
    return SparseColumn(indptr, flat_indices, flat_values, mask)


def _multi_from_arrow(column: pa.Array, place: VectorPlace) -> MultiColumn:
    mask = _mask(column)
    offsets = np.zeros(len(column) + 1, dtype=np.int64)
    lengths = _numbers(column.value_lengths().fill_null(0))
    np.cumsum(lengths, out=offsets[1:])
    return MultiColumn(_dense_from_arrow(column.flatten(), place).values, offsets, mask)


__all__ = [
    "Layout",
    "VectorPlace",
    "arrow_numbers",
    "arrow_schema",
    "batch_from_arrow",
    "batch_to_arrow",
    "column_name",
    "has_nanoseconds",
    "layout_of",
    "schema_from_arrow",
    "sub_microseconds",
]
