"""Scans: selects in key order, streamed by binary COPY, turned into batches.

A partition is ``[low, high]``: the key range ``low < key ≤ high``, each a list with the key's values as
Postgres writes them as text, or ``None`` for no bound. A cursor is such a list: the key of the last row. So
both are JSON, exact for every type, and there is no OFFSET anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg.adapt import Transformer

from vecferry.errors import CorruptDataError
from vecferry.layouts import open_envelope
from vecferry.model import ENVELOPE, Kind, RecordBatch, decode_id, encode_id, id_type
from vecferry.model.ids import RecordId
from vecferry.ports import Fields
from vecferry.stores.pgvector import decode
from vecferry.stores.pgvector.columns import VECTOR_TYPES, RowMap
from vecferry.stores.pgvector.compiled import as_sql
from vecferry.stores.pgvector.copy_read import copy_rows
from vecferry.stores.pgvector.frameworks import CODECS
from vecferry.stores.pgvector.reflect import Relation

_CODED = ("i:", "s:", "u:", "t:")


class RowReader:
    """Selects the columns that ``fields`` want, and makes batches of the rows."""

    def __init__(self, relation: Relation, rows: RowMap, fields: Fields) -> None:
        self.relation, self.map = relation, rows
        self.vectors = {name: column for name, column in rows.vectors.items() if fields.wants(name)}
        values = [rows.text] if fields.text and rows.text else []
        if fields.metadata:
            values += [rows.json] if rows.json else []
            values += rows.typed.values()
        self.text = fields.text and rows.text is not None
        self.metadata = fields.metadata and bool(rows.json or rows.typed)
        self._codec = CODECS[rows.layout]() if rows.layout in CODECS else None
        # Keys and ids travel under names of their own: a timestamp may be a key (as text) and metadata.
        self.keys = {f"key {name}": relation.columns[name] for name in (*rows.key, *rows.id)}
        self.values = [relation.columns[n] for n in dict.fromkeys([*self.vectors.values(), *values])]
        self.names = [*self.keys, *(column.name for column in self.values)]

    def select(self) -> sa.Select[Any]:
        """The columns, those without a known binary form as text."""
        c = self.relation.clause.c
        keys = [
            _as_text(c[k.name], k.id_kind == "str" and not k.is_text, label)
            for label, k in self.keys.items()
        ]
        values = [_as_text(c[v.name], not v.native and not v.is_vector, v.name) for v in self.values]
        return sa.select(*keys, *values)

    def stream(
        self,
        connection: psycopg.Connection[Any],
        select: sa.Select[Any],
        batch_size: int,
        extra: tuple[str, list[float]] | None = None,
    ) -> Iterator[RecordBatch]:
        """Batches of at most ``batch_size`` rows, and where a row's dimension changes a new one.

        ``extra`` names a further float8 column at the end of the select, and the list it is put into.
        """
        statement, values = as_sql(select)
        transformer = Transformer(connection)
        for buffer, ends in copy_rows(connection, statement, values, batch_size):
            yield from self._batches(buffer, ends, transformer, extra)

    def _batches(
        self,
        buffer: bytearray,
        ends: list[int],
        transformer: Any,
        extra: tuple[str, list[float]] | None,
    ) -> Iterator[RecordBatch]:
        """One batch, or several where an undimensioned column varies."""
        names = [*self.names, extra[0]] if extra else self.names
        found = dict(zip(names, decode.split_rows(buffer, ends, len(names)), strict=True))
        if extra:
            extra[1].extend(found.pop(extra[0]).numbers(">f8").tolist())
        edges = self._edges(found)
        if len(edges) == 2:
            yield self._batch(found, transformer)
            return
        for a, b in pairwise(edges):
            part = {n: decode.Field(f.buffer, f.starts[a:b], f.lengths[a:b]) for n, f in found.items()}
            yield self._batch(part, transformer)

    def _edges(self, found: dict[str, decode.Field]) -> list[int]:
        """Row numbers at which a dense column without a fixed dimension changes its width."""
        n = len(found[self.names[0]])
        edges = {0, n}
        for column in (self.relation.columns[name] for name in self.vectors.values()):
            if column.dim is None and VECTOR_TYPES[column.type][0] is Kind.DENSE:
                widths = decode.widths(found[column.name], column.type)
                there = np.flatnonzero(widths)
                edges.update((there[1:][np.diff(widths[there]) != 0]).tolist())
        return sorted(edges)

    def _batch(self, found: dict[str, decode.Field], transformer: Any) -> RecordBatch:
        dense, sparse = {}, {}
        for name, column_name in self.vectors.items():
            column, field = self.relation.columns[column_name], found[column_name]
            if VECTOR_TYPES[column.type][0] is Kind.SPARSE:
                sparse[name] = decode.sparse(field)
            else:
                width = column.dim or int(decode.widths(field, column.type).max(initial=0))
                dense[name] = decode.dense(field, column.type, width)
        batch = RecordBatch(
            ids=self._ids(found),
            vectors=dense,
            sparse_vectors=sparse,
            texts=decode.texts(found[self.map.text]) if self.text and self.map.text else None,
            metadata=self._metadata(found, transformer) if self.metadata else None,
            cursor=self._cursor(found),
        )
        return self._codec.decode(batch) if self._codec else batch

    def empty(self) -> RecordBatch:
        """A batch of no rows with this reader's columns."""
        nothing = np.empty(0, np.int64)
        columns = [*self.names]
        return next(
            iter([self._batch({n: decode.Field(b"", nothing, nothing) for n in columns}, Transformer())])
        ).replace(cursor=None)

    # -- ids ----------------------------------------------------------------------------------

    def _ids(self, found: dict[str, decode.Field]) -> Any:
        parts = [self._id_part(name, found[f"key {name}"]) for name in self.map.id]
        if len(parts) == 1:
            return parts[0]
        return list(zip(*(p.tolist() if isinstance(p, np.ndarray) else p for p in parts), strict=True))

    def _id_part(self, name: str, field: decode.Field) -> Any:
        column = self.relation.columns[name]
        if field.mask is not None:
            raise CorruptDataError(
                f"{name!r} is NULL in some rows; an id must not be: name another with id=…"
            )
        if column.id_kind == "int":
            return field.numbers({"int2": ">i2", "int4": ">i4", "int8": ">i8"}[column.type]).astype(
                np.int64
            )
        if column.id_kind == "uuid":
            return [UUID(bytes=bytes(part or b"")) for part in field.slices()]
        texts = decode.texts(field)
        native = self.map.coded_ids
        return [uncode_id(text, native) for text in texts] if native else texts

    def _cursor(self, found: dict[str, decode.Field]) -> list[str]:
        """The key of the last row, as text; empty if there is none."""
        if not all(len(field.starts) for field in found.values()):
            return []
        last = {n: decode.Field(f.buffer, f.starts[-1:], f.lengths[-1:]) for n, f in found.items()}
        cursor = []
        for name in self.map.key:
            field = last[f"key {name}"]
            if self.relation.columns[name].id_kind == "str":
                cursor.append(decode.texts(field)[0])
            else:
                cursor.append(str(self._id_part(name, field)[0]))
        return cursor

    # -- metadata -----------------------------------------------------------------------------

    def _metadata(self, found: dict[str, decode.Field], transformer: Any) -> list[dict[str, Any]]:
        json = self.map.json
        if json:
            column = self.relation.columns[json]
            documents = decode.json_values(found[json], binary=column.type == "jsonb")
            rows = [_object(document, json) for document in documents]
            if self._codec is None:
                rows = [opened(row) for row in rows]
        else:
            rows = [{} for _ in range(len(found[self.names[0]]))]
        for key, name in self.map.typed.items():
            column = self.relation.columns[name]
            values = decode.decoder(column, transformer)(found[name])
            for row, value in zip(rows, values, strict=True):
                if value is not None:
                    if key in row:  # the object has a key of the same name: both are kept
                        row[f"{json}.{key}"] = row[key]
                    row[key] = value
        return rows


def _object(document: Any, column: str) -> dict[str, Any]:
    """Metadata of a stored JSON value; a value that is no object stands under the column's name."""
    if isinstance(document, dict):
        return document
    return {} if document is None else {column: document}


def opened(document: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the envelope, types restored."""
    if ENVELOPE not in document:
        return document
    envelope = document[ENVELOPE]
    body = {key: value for key, value in document.items() if key != ENVELOPE}
    return open_envelope(body, envelope)[1] if isinstance(envelope, dict) else document


def code_id(value: RecordId, native: str) -> str:
    """An id in a text column: ids of the ``native`` type as they are, others typed (`encode_id`).

    A string is written typed if it looks typed, or if the native type is another.
    """
    if isinstance(value, str):
        return value if native == "str" and not value.startswith(_CODED) else encode_id(value)
    return str(value) if id_type(value) == native else encode_id(value)


def uncode_id(text: str, native: str) -> RecordId:
    """The inverse of `code_id`; a string that only looks coded is itself."""
    try:
        if text.startswith(_CODED):
            return decode_id(text)
        return int(text) if native == "int" else UUID(text) if native == "uuid" else text
    except ValueError:
        return text


def _as_text(clause: Any, cast: bool, label: str) -> Any:
    return (sa.cast(clause, sa.Text) if cast else clause).label(label)
