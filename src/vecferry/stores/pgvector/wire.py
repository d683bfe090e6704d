"""Postgres's binary COPY format, both ways, without a Python object per component.

Formats: PostgreSQL documentation, COPY, "Binary Format" (a row is an int16 field count, then for each field
an int32 length, −1 for NULL, and its bytes; all big-endian); pgvector ``vector.c``, ``halfvec.c`` and
``sparsevec.c``, the ``…_send`` functions.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import orjson
import psycopg
from psycopg.pq import Format

from vecferry.errors import CorruptDataError
from vecferry.layouts import seal
from vecferry.model import ENVELOPE, DenseColumn, MultiColumn, SparseColumn, dump_json, parse_json
from vecferry.model.vectors import Array, Mask
from vecferry.stores.pgvector.introspection import PgColumn

# More digits than a float or a 64-bit integer holds, an exponent of three digits, half a surrogate pair.
_UNUSUAL = re.compile(rb"[0-9][0-9.]{17}|[0-9][eE][-+]?[0-9]{3}|\\u[dD][89a-fA-F]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
BEYOND = re.compile(r"2000-01-01 \+ -?\d+ (days|microseconds)")
EPOCH_ENDS = {  # the binary forms of infinity and -infinity
    "timestamptz": (b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7),
    "timestamp": (b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7),
    "date": (b"\x7f\xff\xff\xff", b"\x80\0\0\0"),
}


class Field:
    """One column of n rows, still in the bytes as sent."""

    def __init__(self, buffer: bytes | bytearray, starts: Array, lengths: Array) -> None:
        self.buffer, self.starts, self.lengths = buffer, starts, lengths

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def mask(self) -> Mask | None:
        """True where not NULL; ``None`` if there is no NULL."""
        present: Mask = self.lengths >= 0
        return None if present.all() else present

    def slices(self, skip: int = 0) -> list[memoryview | None]:
        """The bytes of each row without the first ``skip``."""
        view = memoryview(self.buffer)
        spans = zip((self.starts + skip).tolist(), (self.starts + self.lengths).tolist(), strict=True)
        if self.mask is None:
            return [view[a:b] for a, b in spans]
        return [
            view[a:b] if size >= 0 else None
            for (a, b), size in zip(spans, self.lengths.tolist(), strict=True)
        ]

    def numbers(self, dtype: str) -> Array:
        """``(n,)`` of a fixed big-endian type in native order; zero where NULL."""
        width = np.dtype(dtype).itemsize
        view: Array = np.ndarray((max(len(self.buffer) - width + 1, 0),), dtype, self.buffer, strides=(1,))
        starts = self.starts if self.mask is None else np.where(self.lengths >= 0, self.starts, 0)
        values: Array = view[starts].astype(np.dtype(dtype).newbyteorder("="))
        if self.mask is not None:
            values[self.lengths < 0] = 0
        return values

    def matrix(self, skip: int, dtype: str, width: int) -> Array:
        """``(n, width)`` of a fixed big-endian type in native order; zeros where NULL. Owns its data."""
        size = np.dtype(dtype).itemsize * width
        native = np.dtype(dtype).newbyteorder("=")
        n = len(self)
        steps = np.diff(self.starts)
        if self.mask is None and n and (n == 1 or (steps == steps[0]).all()):
            stride = int(steps[0]) if n > 1 else size
            at = int(self.starts[0]) + skip
            strides = (stride, np.dtype(dtype).itemsize)
            even: Array = np.ndarray((n, width), dtype, self.buffer, at, strides)
            owned: Array = even.astype(native)
            return owned
        joined = b"".join([part if part is not None else bytes(size) for part in self.slices(skip)])
        values: Array = np.frombuffer(joined, dtype).reshape(n, width).astype(native)
        return values


def split_rows(buffer: bytes | bytearray, ends: Sequence[int], fields: int) -> list[Field]:
    """Find the fields of whole rows, as COPY sends them. ``ends[i]`` is where row i ends."""
    at = np.zeros(len(ends), np.int64)
    at[1:] = ends[:-1]
    at += 2
    lengths_at: Array = np.ndarray((max(len(buffer) - 3, 0),), ">i4", buffer, strides=(1,))
    found = []
    for _ in range(fields):
        lengths = lengths_at[at].astype(np.int64)
        at += 4
        found.append(Field(buffer, at.copy(), lengths))
        at += np.maximum(lengths, 0)
    return found


# -- vectors ------------------------------------------------------------------------------------


def widths(field: Field, type_: str) -> Array:
    """The dimension of each row's dense vector; 0 where NULL."""
    if type_ == "bit":
        return field.numbers(">i4")
    sizes = (field.lengths - 4) // (4 if type_ == "vector" else 2)
    floored: Array = np.maximum(sizes, 0)
    return floored


def dense(field: Field, type_: str, width: int) -> DenseColumn:
    """A column of vectors that all have the dimension ``width``."""
    if type_ == "bit":
        values = field.matrix(4, "u1", (width + 7) // 8)
    else:
        values = field.matrix(4, ">f4" if type_ == "vector" else ">f2", width)
    return DenseColumn(values, field.mask)


def multi(field: Field, type_: str, width: int | None) -> MultiColumn:
    """A column of arrays of vectors: int32 dimensions, flags and element type, the bounds, the elements."""
    number = ">f4" if type_ == "vector" else ">f2"
    lines, counts, size = [], [], np.dtype(number).itemsize
    for part in field.slices():
        found = [] if part is None else _elements(part)
        counts.append(len(found))
        lines += [np.frombuffer(element[4:], number) for element in found]
    widths = {len(line) for line in lines}
    if len(widths) > 1:
        raise CorruptDataError(
            f"an array of vectors holds several dimensions ({sorted(widths)}); leave it out with vector="
        )
    values = np.array(lines, dtype=f"=f{size}").reshape(len(lines), width or (widths or {0}).pop())
    offsets = np.zeros(len(field) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return MultiColumn(values, offsets, field.mask)


def _elements(array: memoryview) -> list[memoryview]:
    """Of a one-dimensional array in its binary form, without those that are NULL."""
    dimensions = int.from_bytes(array[:4], "big")
    at, found = 12 + 8 * dimensions, []
    while at < len(array):
        size = int.from_bytes(array[at : at + 4], "big", signed=True)
        at += 4
        if size >= 0:
            found.append(array[at : at + size])
            at += size
    return found


def sparse(field: Field) -> SparseColumn:
    """int32 dimension, count and zero; then the indices (0-based), then the values."""
    counts = np.where(field.lengths >= 0, (field.lengths - 12) // 8, 0)
    indptr = np.zeros(len(field) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices, values = np.empty(indptr[-1], np.uint32), np.empty(indptr[-1], np.float32)
    for row, part in enumerate(field.slices(12)):
        if part is None:
            continue
        span, half = slice(indptr[row], indptr[row + 1]), 4 * int(counts[row])
        indices[span] = np.frombuffer(part[:half], ">i4")
        values[span] = np.frombuffer(part[half:], ">f4")
    return SparseColumn(indptr, indices, values, field.mask)


# -- values -------------------------------------------------------------------------------------

Decoder: TypeAlias = Callable[[Field], list[Any]]


def texts(field: Field) -> list[Any]:
    """Strings, ``None`` where NULL."""
    return [None if part is None else str(part, "utf-8") for part in field.slices()]


def integers(field: Field, dtype: str) -> list[Any]:
    values = field.numbers(dtype).tolist()
    if field.mask is None:
        return values  # type: ignore[no-any-return]
    return [
        value if size >= 0 else None for value, size in zip(values, field.lengths.tolist(), strict=True)
    ]


def json_values(field: Field, *, binary: bool = True) -> list[Any]:
    """JSON documents; ``binary`` skips jsonb's version byte. Exact: numbers keep every digit."""
    parts = field.slices(1 if binary else 0)
    joined = b"[" + b",".join([b"null" if part is None else part for part in parts]) + b"]"
    if _UNUSUAL.search(joined) is None:
        return orjson.loads(joined)  # type: ignore[no-any-return]
    return [None if part is None else parse_json(bytes(part)) for part in parts]


def decoder(column: PgColumn, transformer: Any) -> Decoder:
    """How the values of a column become Python values; ``None`` for NULL."""
    if column.is_text or not column.native:
        return texts
    if column.is_json:
        return partial(json_values, binary=column.type == "jsonb")
    if column.type in _NUMPY:
        return partial(integers, dtype=_NUMPY[column.type])
    load = transformer.get_loader(column.oid, Format.BINARY).load
    return partial(_loaded, load=load, column=column)


_NUMPY = {"int2": ">i2", "int4": ">i4", "int8": ">i8", "oid": ">u4", "float4": ">f4", "float8": ">f8"}


def _loaded(field: Field, *, load: Callable[[Any], Any], column: PgColumn) -> list[Any]:
    return [None if part is None else _load_one(load, bytes(part), column) for part in field.slices()]


def _load_one(load: Callable[[Any], Any], data: bytes, column: PgColumn) -> Any:
    try:
        return load(data)
    except psycopg.DataError as error:
        ends = EPOCH_ENDS.get(column.type, ())
        if data in ends:  # Python has no infinite date: its text is kept
            return ("infinity", "-infinity")[ends.index(data)]
        if column.type in ("timestamptz", "timestamp", "date"):
            return _beyond(data, column.type)
        raise CorruptDataError(
            f"column {column.name!r}: {error}; read it as text in a select of your own"
        ) from None


def _beyond(data: bytes, type_: str) -> str:
    """A date outside Python's years 1 to 9999, as days since 2000-01-01: exact, and clearly no date."""
    number = int.from_bytes(data, "big", signed=True)
    unit = "days" if type_ == "date" else "microseconds"
    return f"2000-01-01 + {number} {unit}"


def beyond_bytes(text: str, size: int) -> bytes:
    """The inverse of `_beyond`, in ``size`` bytes.

    Raises:
        OverflowError: if it does not fit.
    """
    return int(text.split()[2]).to_bytes(size, "big", signed=True)


HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

Cells: TypeAlias = Sequence[bytes | memoryview]
"""One column: for each row its length prefix and its bytes, joined."""

_NESTED = frozenset({str, int, bool, type(None), float, list, dict})
_length = struct.Struct(">i").pack


def rows(columns: Sequence[Cells], count: int) -> bytes:
    """Whole rows of the given columns, to be put between `HEADER` and `TRAILER`."""
    head = struct.pack(">h", len(columns))
    return b"".join(chain.from_iterable(zip([head] * count, *columns, strict=True)))


def fixed_rows(ids: Array, column: DenseColumn) -> memoryview:
    """The fast way for an int64 key and one float32 (float16) vector a row, none missing."""
    n, dim = column.values.shape
    number = ">f4" if column.values.dtype == np.float32 else ">f2"
    layout = [("fields", ">i2"), ("id_size", ">i4"), ("id", ">i8"), *_vector_layout(number, dim)]
    out = np.empty(n, np.dtype(layout))
    out["fields"], out["id_size"], out["id"] = 2, 8, ids
    _put_vectors(out, column.values, np.dtype(number).itemsize * dim)
    return memoryview(out.view(np.uint8).data)


def _vector_layout(number: str, dim: int) -> list[Any]:
    return [("size", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("values", number, (dim,))]


def _put_vectors(out: Array, values: Array, size: int) -> None:
    out["size"], out["dim"], out["unused"] = 4 + size, values.shape[1], 0
    out["values"] = values


# -- vectors ------------------------------------------------------------------------------------


def dense_cells(column: DenseColumn, type_: str, dim: int | None) -> Cells:
    """Cells of a vector, halfvec or bit column; ``dim`` is the number of bits of a bit column."""
    values = column.values
    if type_ == "bit":
        layout: list[Any] = [("size", ">i4"), ("bits", ">i4"), ("values", "u1", (values.shape[1],))]
        out = np.empty(len(values), np.dtype(layout))
        out["size"], out["bits"], out["values"] = 4 + values.shape[1], dim or 8 * values.shape[1], values
    else:
        number = ">f4" if type_ == "vector" else ">f2"
        out = np.empty(len(values), np.dtype(_vector_layout(number, values.shape[1])))
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the server refuses
            _put_vectors(out, values, np.dtype(number).itemsize * values.shape[1])
    return _nulled(_even_slices(out), column)


def _even_slices(out: Array) -> list[memoryview]:
    view, size = memoryview(out.view(np.uint8).data), out.dtype.itemsize
    return [view[a : a + size] for a in range(0, size * len(out), size)]


def _nulled(cells: Cells, column: DenseColumn | SparseColumn) -> Cells:
    if column.mask is None:
        return cells
    return [cell if there else NULL for cell, there in zip(cells, column.mask.tolist(), strict=True)]


def multi_cells(column: MultiColumn, type_: str, element: int) -> Cells:
    """Cells of an array of vectors; ``element`` is the oid of the vector type."""
    number = ">f4" if type_ == "vector" else ">f2"
    values, cells = column.values.astype(number), []
    head = struct.pack(">hh", values.shape[1], 0)
    size = _length(4 + values.shape[1] * np.dtype(number).itemsize)
    for a, b in zip(column.offsets[:-1].tolist(), column.offsets[1:].tolist(), strict=True):
        bounds = (
            struct.pack(">iiiii", 1, 0, element, b - a, 1) if b > a else struct.pack(">iii", 0, 0, element)
        )
        body = bounds + b"".join([size + head + line.tobytes() for line in values[a:b]])
        cells.append(_length(len(body)) + body)
    if column.mask is None:
        return cells
    return [cell if there else NULL for cell, there in zip(cells, column.mask.tolist(), strict=True)]


def sparse_cells(column: SparseColumn, dim: int) -> Cells:
    """Cells of a sparsevec column of ``dim`` dimensions."""
    cells = []
    for a, b in zip(column.indptr[:-1].tolist(), column.indptr[1:].tolist(), strict=True):
        # pgvector keeps no zeros: they are left out, as its own text form does.
        keep = column.values[a:b] != 0
        indices, values = column.indices[a:b][keep], column.values[a:b][keep]
        body = struct.pack(">iii", dim, len(indices), 0) + indices.astype(">i4").tobytes()
        body += values.astype(">f4").tobytes()
        cells.append(_length(len(body)) + body)
    return _nulled(cells, column)


# -- values -------------------------------------------------------------------------------------


def int_cells(values: Iterable[int | None] | Array, width: int = 8) -> Cells:
    """Cells of an integer column of 2, 4 or 8 bytes."""
    if isinstance(values, np.ndarray):
        out = np.empty(len(values), np.dtype([("size", ">i4"), ("value", f">i{width}")]))
        out["size"], out["value"] = width, values
        return _even_slices(out)
    prefix = _length(width)
    return [NULL if v is None else prefix + int(v).to_bytes(width, "big", signed=True) for v in values]


def text_cells(values: Iterable[str | None]) -> Cells:
    """Cells of a text column.

    Raises:
        UnicodeEncodeError: for a lone surrogate.
    """
    encoded = [NULL if value is None else value.encode() for value in values]
    return [cell if cell is NULL else _length(len(cell)) + cell for cell in encoded]


def json_cells(documents: Iterable[bytes | None], *, binary: bool) -> Cells:
    """Cells of a jsonb (``binary``) or json column."""
    version, extra = (b"\x01", 1) if binary else (b"", 0)
    return [NULL if d is None else _length(len(d) + extra) + version + d for d in documents]


def value_cells(values: Iterable[Any], dump: Callable[[Any], Any]) -> Cells:
    """Cells of any other type through psycopg's own binary dumpers."""
    out: list[bytes] = []
    for value in values:
        data = None if value is None else dump(value)
        out.append(NULL if data is None else _length(len(data)) + bytes(data))
    return out


def sealed_document(row: Mapping[str, Any]) -> bytes:
    """Metadata as one JSON document, with an envelope of what JSON cannot hold (`vecferry.layouts.seal`).

    Raises:
        TypeError: for a value that cannot be kept at all.
        UnicodeEncodeError: for a lone surrogate.
    """
    body, envelope = seal(row)
    if envelope:
        body[ENVELOPE] = envelope
    document = dump_json(body)
    if _SURROGATE.search(document):
        json.dumps(body, ensure_ascii=False).encode()
    return document


def exact_json(value: Any) -> bytes:
    """A value of a json column of its own as bytes; numbers keep every digit, as they do when read.

    Raises:
        TypeError, ValueError: for what is no JSON value.
    """
    return orjson.dumps(_fragments(value))


def _fragments(value: Any) -> Any:
    """With the numbers that orjson would refuse or round written out."""
    kind = type(value)
    if kind is dict:
        return {key: _fragments(item) for key, item in value.items()}
    if kind in (list, tuple):
        return [_fragments(item) for item in value]
    if (kind is float and not math.isfinite(value)) or (kind is Decimal and not value.is_finite()):
        raise ValueError(f"{value!r}, which JSON does not hold")
    if kind is Decimal or (kind is int and not -(2**63) <= value < 2**64):
        return orjson.Fragment(str(value))
    if kind not in _NESTED:
        raise TypeError(f"a {kind.__name__}, which JSON does not hold")
    return value


INT_RANGES = {"int2": 2**15, "int4": 2**31, "int8": 2**63}
_SAME: dict[str, type] = {
    "bool": bool,
    "numeric": Decimal,
    "uuid": UUID,
    "bytea": bytes,
    "date": date,
    "text": str,
    "varchar": str,
    "float8": float,
}


def fits_id(value: Any, column: PgColumn) -> bool:
    """Whether a part of an id can stand in a key column of the application."""
    if column.id_kind == "int":
        return type(value) is int and _in_range(value, column)
    return uuid_of(value) is not None if column.id_kind == "uuid" else isinstance(value, str)


def uuid_of(value: Any) -> UUID | None:
    """A UUID, also one that is given as text in the usual form; ``None`` for anything else."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and len(value) == 36:
        with suppress(ValueError):
            found = UUID(value)
            return found if str(found) == value else None
    return None


def text_fault(text: str | None) -> str:
    """What keeps a text from Postgres, if anything does."""
    if text and "\0" in text:
        return "a NUL character"
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        return "a lone surrogate"
    return ""


def writable_binary(column: PgColumn) -> bool:
    """Types that are written in binary; all others travel as text through the staging table."""
    if column.is_text:
        return column.category == "S"
    return column.is_json or column.id_kind != "str" or (column.native and column.category != "A")


def exactly(value: Any, column: PgColumn) -> bool:
    """Whether the column gives back the very same value, type included."""
    if column.type in INT_RANGES:
        return type(value) is int and _in_range(value, column)
    if column.type in ("timestamptz", "timestamp"):
        aware = isinstance(value, datetime) and value.tzinfo is not None
        return type(value) is datetime and aware == (column.type == "timestamptz") and not value.utcoffset()
    if column.type == "time":
        return type(value) is time and value.tzinfo is None
    return type(value) is _SAME.get(column.type)


def loosely(value: Any, column: PgColumn) -> bool:
    """Whether the column of an application is meant for such a value."""
    if column.category == "A":
        return isinstance(value, list | tuple) or (isinstance(value, str) and not column.native)
    if column.is_json:
        return _is_json(value)
    if column.type in INT_RANGES:
        return isinstance(value, int) and not isinstance(value, bool) and _in_range(value, column)
    if column.type == "oid":
        return type(value) is int and 0 <= value < 2**32
    if column.type in ("float4", "float8", "numeric"):
        return isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if column.type in ("timestamptz", "timestamp"):
        aware = isinstance(value, datetime) and value.tzinfo is not None
        return (isinstance(value, datetime) and aware == (column.type == "timestamptz")) or _is_beyond(
            value
        )
    if column.type == "date":
        return (isinstance(value, date) and not isinstance(value, datetime)) or _is_beyond(value)
    if column.type in ("time", "timetz"):
        return isinstance(value, time)
    return isinstance(value, _SAME.get(column.type, str))


_ENDS = ("infinity", "-infinity")


def _is_beyond(value: Any) -> bool:
    """Whether it is the text of a date that Python lacks, as it is read."""
    return isinstance(value, str) and (value in _ENDS or BEYOND.fullmatch(value) is not None)


def _is_json(value: Any) -> bool:
    try:
        exact_json(value)
    except (TypeError, ValueError):
        return False
    return True


def _in_range(value: int, column: PgColumn) -> bool:
    limit = INT_RANGES[column.type]
    return -limit <= value < limit


def binary_dumper(column: PgColumn, transformer: Any) -> Callable[[Any], Any]:
    """The binary form of values for a column, by psycopg's own dumper for its type."""
    dumper = psycopg.adapters.get_dumper_by_oid(column.oid, Format.BINARY)(object, transformer)
    ends = EPOCH_ENDS.get(column.type)

    def dump(value: Any) -> Any:
        if ends and _is_beyond(value):
            return ends[_ENDS.index(value)] if value in _ENDS else beyond_bytes(value, len(ends[0]))
        if column.type == "numeric" and not isinstance(value, Decimal):
            value = Decimal(repr(value))
        elif column.type in ("float4", "float8"):
            value = float(value)
        return dumper.dump(value)

    return dump
