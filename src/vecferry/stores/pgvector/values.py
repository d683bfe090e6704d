"""Which Python value a typed column can take, and its binary form."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq import Format

from vecferry.stores.pgvector.columns import PgColumn
from vecferry.stores.pgvector.decode import BEYOND, EPOCH_ENDS, beyond_bytes
from vecferry.stores.pgvector.encode import exact_json

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
    return isinstance(value, UUID if column.id_kind == "uuid" else str)


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
