"""Rows of binary COPY → columns of a batch, without a Python object per component.

Formats: PostgreSQL documentation, COPY, "Binary Format" (a row is an int16 field count, then for each field
an int32 length, −1 for NULL, and its bytes; all big-endian); pgvector ``vector.c``, ``halfvec.c`` and
``sparsevec.c``, the ``…_send`` functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import orjson
import psycopg
from psycopg.pq import Format

from vecferry.errors import CorruptDataError
from vecferry.model import DenseColumn, SparseColumn
from vecferry.model.vectors import Array, Mask
from vecferry.stores.pgvector.columns import PgColumn

_LONG_NUMBER = re.compile(rb"[0-9]{16}")
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
    if _LONG_NUMBER.search(joined) or b"e" in joined or b"E" in joined:
        return [None if part is None else _exact_json(bytes(part)) for part in parts]
    return orjson.loads(joined)  # type: ignore[no-any-return]


def _exact_json(document: bytes) -> Any:
    """As orjson, but for the rare document with numbers beyond 64 bits or beyond a float."""
    if not _LONG_NUMBER.search(document):
        return json.loads(document)
    return json.loads(document, parse_float=_float_or_decimal)


def _float_or_decimal(text: str) -> float | Decimal:
    number = float(text)
    exact = Decimal(text)
    return number if number - number == 0.0 and Decimal(repr(number)) == exact else exact


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
