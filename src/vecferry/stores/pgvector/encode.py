"""Columns of a batch → rows of binary COPY (formats: see `decode`)."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import orjson

from vecferry.layouts import seal
from vecferry.model import ENVELOPE, DenseColumn, SparseColumn
from vecferry.model.typed import survives_json
from vecferry.model.vectors import Array

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

Cells: TypeAlias = Sequence[bytes | memoryview]
"""One column: for each row its length prefix and its bytes, joined."""

_PLAIN = frozenset({str, int, bool, type(None)})
_NESTED = frozenset({*_PLAIN, float, list, dict})
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


def metadata_documents(metadata: Sequence[dict[str, Any]]) -> list[bytes]:
    """Each dict as JSON bytes; what JSON cannot hold goes in a reversible form (`vecferry.model.typed`).

    Raises:
        TypeError: for a value that cannot be kept at all.
        UnicodeEncodeError: for a lone surrogate.
    """
    kinds = {type(value) for row in metadata for value in row.values()}
    if kinds <= _PLAIN:
        try:
            return [orjson.dumps(row) for row in metadata]
        except TypeError:  # an integer beyond 64 bits, or a lone surrogate: the careful way finds out
            pass
    return [_document(row) for row in metadata]


def _document(row: dict[str, Any]) -> bytes:
    if ENVELOPE not in row and _plain(row):
        try:
            return orjson.dumps(row)
        except TypeError:
            pass
    body, envelope = seal(row)
    if envelope:
        body[ENVELOPE] = envelope
    return json_document(body)


def json_document(value: Any) -> bytes:
    """Pure JSON as bytes; integers of any size.

    Raises:
        UnicodeEncodeError: for a lone surrogate.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


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


def _plain(value: Any) -> bool:
    """Whether orjson writes it such that reading gives the same back."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is float:
        return survives_json(value)
    if kind is list:
        return all(map(_plain, value))
    return kind is dict and all(type(key) is str for key in value) and all(map(_plain, value.values()))
