"""Scans: selects in key order, streamed by binary COPY, turned into batches.

A partition is ``[low, high]``: the key range ``low < key ≤ high``, each a list with the key's values as
Postgres writes them as text, or ``None`` for no bound. A cursor is such a list: the key of the last row. So
both are JSON, exact for every type, and there is no OFFSET anywhere.

The scans of one read see one state of the database, also across connections and threads: a connection of
its own holds a REPEATABLE READ transaction open and exports its snapshot; every scan of a partition takes
that snapshot on. (PostgreSQL documentation, "Snapshot Synchronization Functions".)
"""

from __future__ import annotations

import select
import selectors
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg import pq, sql
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from vecferry.errors import CorruptDataError, RetryableError
from vecferry.layouts import open_envelope
from vecferry.model import (
    ENVELOPE,
    DenseColumn,
    JsonColumn,
    Kind,
    MultiColumn,
    RecordBatch,
    SparseColumn,
    decode_id,
    encode_id,
    id_type,
)
from vecferry.model.ids import RecordId
from vecferry.model.vectors import Array
from vecferry.ports import Fields
from vecferry.stores.pgvector import wire
from vecferry.stores.pgvector.frameworks import CODECS
from vecferry.stores.pgvector.introspection import as_sql
from vecferry.stores.pgvector.server import Server, translated
from vecferry.stores.pgvector.table import PLACE, Table

# What the text forms of values depend on is fixed, so that cursors and metadata mean the same everywhere.
# A scan of a whole table begins with its first row, and is one.
_SESSION = """
    SET LOCAL synchronize_seqscans = off; SET LOCAL max_parallel_workers_per_gather = 0;
    SET LOCAL TIME ZONE 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'iso_8601';
    SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'
"""


def begin_read(connection: psycopg.Connection[Any], snapshot: str | None = None) -> None:
    """Begin a read-only transaction on one state of the database."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    if snapshot:
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
    connection.execute(_SESSION)


class Snapshot:
    """The shared snapshot of one store: taken at the first use, given up by `release`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._keeper: psycopg.Connection[Any] | None = None
        self._name = ""

    def name(self) -> str:
        """The snapshot's name; a new one if the old was lost with its connection."""
        with self._lock, translated(self._server.url):
            if self._keeper is not None and not self._alive(self._keeper):
                self._keeper.close()
                self._keeper = None
            if self._keeper is None:
                keeper = self._server.connect()
                try:
                    begin_read(keeper)
                    keeper.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                    row = keeper.execute("SELECT pg_export_snapshot()").fetchone()
                except BaseException:
                    keeper.close()
                    raise
                assert row is not None
                self._keeper, self._name = keeper, row[0]
            return self._name

    def release(self) -> None:
        """Let the server forget the snapshot. Twice is as once."""
        with self._lock:
            if self._keeper is not None:
                self._keeper.close()
                self._keeper = None

    @staticmethod
    def _alive(keeper: psycopg.Connection[Any]) -> bool:
        try:
            keeper.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True


_TRAILER = 2  # bytes: the field count −1 that ends the stream


def copy_rows(
    connection: psycopg.Connection[Any], statement: sql.Composable, values: dict[str, Any], size: int
) -> Iterator[tuple[bytearray, list[int]]]:
    """The rows of a select in COPY's binary format, ``size`` at a time.

    Yields the rows' bytes, each row from its field count on, one after the other, and where each row ends.
    The caller ends the transaction. When the iterator is left early the connection is still busy and
    must be thrown away.

    Raises:
        psycopg.Error: as the server reports it, also in the middle of the stream.
    """
    copy = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(statement)
    bound = psycopg.ClientCursor(connection).mogrify(copy, values)
    pgconn = connection.pgconn
    pgconn.send_query(bound.encode())
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        _await_copy(pgconn, selector)
        first = _first_message(pgconn, selector)
        if not first:  # the server gave up before the first row, and says why
            _finish(pgconn, selector)
            return
        buffer = _without_header(first)
        ends = [len(buffer)] if len(buffer) > _TRAILER else []
        get, wait, consume = pgconn.get_copy_data, _waiter(pgconn, selector), pgconn.consume_input
        while True:  # one turn a row: nothing else may stand in it
            length, data = get(1)
            if length > _TRAILER:
                if len(ends) == size:
                    yield buffer, ends
                    buffer, ends = bytearray(), []
                buffer += data
                ends.append(len(buffer))
            elif length == 0:
                wait()
                consume()
            elif length < 0:
                break
        if ends:
            yield buffer, ends
        _finish(pgconn, selector)


def _waiter(pgconn: Any, selector: selectors.BaseSelector) -> Callable[[], Any]:
    """Wait for data. Some rows come with each wait, so the thinnest way is taken where there is one."""
    if not hasattr(select, "poll"):
        return selector.select
    poller = select.poll()
    poller.register(pgconn.socket, select.POLLIN)
    return poller.poll


def _first_message(pgconn: Any, selector: selectors.BaseSelector) -> bytes:
    while True:
        length, data = pgconn.get_copy_data(1)
        if length > 0:
            return bytes(data)
        if length < 0:
            return b""
        selector.select()
        pgconn.consume_input()


def _without_header(message: bytes) -> bytearray:
    """The first message begins with a signature (11 bytes), flags (4) and an extension with its length."""
    return bytearray(message[19 + int.from_bytes(message[15:19], "big") :])


def _await_copy(pgconn: Any, selector: selectors.BaseSelector) -> None:
    """Until the server begins to copy, or says why not."""
    while pgconn.flush():
        selector.modify(pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
        selector.select()
        pgconn.consume_input()
    selector.modify(pgconn.socket, selectors.EVENT_READ)
    result = _next_result(pgconn, selector)
    if result is None or result.status != pq.ExecStatus.COPY_OUT:
        _finish(pgconn, selector, result)


def _finish(pgconn: Any, selector: selectors.BaseSelector, result: Any = None) -> None:
    """Take the results up to the end of the command; the first failure is raised."""
    failed = None
    while (result := result or _next_result(pgconn, selector)) is not None:
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK) and failed is None:
            failed = result
        result = None
    if failed is not None:
        raise error_from_result(failed, "utf-8")


def _next_result(pgconn: Any, selector: selectors.BaseSelector) -> Any:
    while pgconn.is_busy():
        selector.select()
        pgconn.consume_input()
    return pgconn.get_result()


_CODED = ("i:", "s:", "u:", "t:")


class RowReader:
    """Selects the columns that ``fields`` want, and makes batches of the rows."""

    def __init__(self, table: Table, fields: Fields) -> None:
        self.table = table
        self.vectors = {name: column for name, column in table.vectors.items() if fields.wants(name)}
        values = [table.text] if fields.text and table.text else []
        if fields.metadata:
            values += [table.json] if table.json else []
            values += table.typed.values()
        self.text = fields.text and table.text is not None
        self.metadata = fields.metadata and bool(table.json or table.typed)
        self._codec = CODECS[table.layout]() if table.layout in CODECS else None
        # Keys and ids travel under names of their own: a timestamp may be a key (as text) and metadata.
        self.keys = {f"key {name}": table.columns[name] for name in (*table.key, *table.id)}
        self.values = [table.columns[n] for n in dict.fromkeys([*self.vectors.values(), *values])]
        self.names = [*self.keys, *(column.name for column in self.values)]

    def select(self) -> sa.Select[Any]:
        """The columns, those without a known binary form as text."""
        c = self.table.clause.c
        keys = [
            _as_text(c[k.name], k.id_kind == "str" and not k.is_text and k.type != "tid", label)
            for label, k in self.keys.items()
        ]
        values = [
            self.table.vector(v.name).label(v.name)
            if v.is_vector
            else _as_text(c[v.name], not v.native, v.name)
            for v in self.values
        ]
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
        found = dict(zip(names, wire.split_rows(buffer, ends, len(names)), strict=True))
        if extra:
            extra[1].extend(found.pop(extra[0]).numbers(">f8").tolist())
        edges = self._edges(found)
        if len(edges) == 2:
            yield self._batch(found, transformer)
            return
        for a, b in pairwise(edges):
            part = {n: wire.Field(f.buffer, f.starts[a:b], f.lengths[a:b]) for n, f in found.items()}
            yield self._batch(part, transformer)

    def _edges(self, found: dict[str, wire.Field]) -> list[int]:
        """Row numbers at which a dense column without a fixed dimension changes its width."""
        n = len(found[self.names[0]])
        edges = {0, n}
        for column in (self.table.columns[name] for name in self.vectors.values()):
            if column.dim is None and column.kind_and_dtype[0] is Kind.DENSE:
                widths = wire.widths(found[column.name], column.vector_type)
                there = np.flatnonzero(widths)
                edges.update((there[1:][np.diff(widths[there]) != 0]).tolist())
        return sorted(edges)

    def _batch(self, found: dict[str, wire.Field], transformer: Any) -> RecordBatch:
        dense: dict[str, DenseColumn | MultiColumn] = {}
        sparse: dict[str, SparseColumn] = {}
        for name, column_name in self.vectors.items():
            column, field = self.table.columns[column_name], found[column_name]
            kind, type_ = column.kind_and_dtype[0], column.vector_type
            if kind is Kind.SPARSE:
                sparse[name] = wire.sparse(field)
            elif kind is Kind.MULTI:
                dense[name] = wire.multi(field, type_, column.dim)
            else:
                width = column.dim or int(wire.widths(field, type_).max(initial=0))
                dense[name] = wire.dense(field, type_, width)
        batch = RecordBatch(
            ids=self._ids(found),
            vectors=dense,
            sparse_vectors=sparse,
            texts=wire.texts(found[self.table.text]) if self.text and self.table.text else None,
            metadata=self._documents(found) if self.metadata else None,
            cursor=self._cursor(found),
        )
        batch = self._codec.decode(batch) if self._codec else batch
        return self._with_columns(batch, found, transformer) if self.metadata else batch

    def empty(self) -> RecordBatch:
        """A batch of no rows with this reader's columns."""
        nothing = np.empty(0, np.int64)
        columns = [*self.names]
        return next(
            iter([self._batch({n: wire.Field(b"", nothing, nothing) for n in columns}, Transformer())])
        ).replace(cursor=None)

    # -- ids ----------------------------------------------------------------------------------

    def _ids(self, found: dict[str, wire.Field]) -> Any:
        parts = [self._id_part(name, found[f"key {name}"]) for name in self.table.id]
        if len(parts) == 1:
            return parts[0]
        return list(zip(*(p.tolist() if isinstance(p, np.ndarray) else p for p in parts), strict=True))

    def _id_part(self, name: str, field: wire.Field) -> Any:
        column = self.table.columns[name]
        if field.mask is not None:
            raise CorruptDataError(
                f"{name!r} is NULL in some rows; an id must not be: name another with id=…"
            )
        if column.id_kind == "int":
            return field.numbers({"int2": ">i2", "int4": ">i4", "int8": ">i8"}[column.type]).astype(
                np.int64
            )
        if column.type == "tid":
            return [f"({place >> 16},{place & 0xFFFF})" for place in _places(field).tolist()]
        if column.id_kind == "uuid":
            return [UUID(bytes=bytes(part or b"")) for part in field.slices()]
        texts = wire.texts(field)
        native = self.table.coded_ids
        return [uncode_id(text, native) for text in texts] if native else texts

    def _cursor(self, found: dict[str, wire.Field]) -> list[str]:
        """The key of the last row, as text; empty if there is none."""
        if not all(len(field.starts) for field in found.values()):
            return []
        if self.table.key == (PLACE,):
            places = _places(found[f"key {PLACE}"])
            if (np.diff(places) <= 0).any():
                raise RetryableError(f"{self.table.shown}: rows came out of the order of their places")
        last = {n: wire.Field(f.buffer, f.starts[-1:], f.lengths[-1:]) for n, f in found.items()}
        cursor = []
        for name in self.table.key:
            field = last[f"key {name}"]
            column = self.table.columns[name]
            if column.id_kind == "str" and column.type != "tid":
                cursor.append(wire.texts(field)[0])
            else:
                cursor.append(str(self._id_part(name, field)[0]))
        return cursor

    # -- metadata -----------------------------------------------------------------------------

    def _documents(self, found: dict[str, wire.Field]) -> Sequence[dict[str, Any]]:
        """What stands in the json column."""
        json = self.table.json
        if json is None:
            return [{} for _ in range(len(found[self.names[0]]))]
        column = self.table.columns[json]
        documents = wire.json_values(found[json], binary=column.type == "jsonb")
        plain = self._codec is None
        if plain and not self.table.typed and all(type(d) is dict for d in documents):
            return _as_json(documents)
        rows = [_object(document, json) for document in documents]
        return [opened(row) for row in rows] if plain else rows

    def _with_columns(
        self, batch: RecordBatch, found: dict[str, wire.Field], transformer: Any
    ) -> RecordBatch:
        """With the metadata that has columns of its own."""
        if not self.table.typed or batch.metadata is None:
            return batch
        rows = list(batch.metadata)
        for key, name in self.table.typed.items():
            values = self._values(name, found, transformer)
            for row, value in zip(rows, values, strict=True):
                if value is not None:
                    if key in row:  # the object has a key of the same name: both are kept
                        row[f"{self.table.json}.{key}"] = row[key]
                    row[key] = value
        return batch.replace(metadata=rows)

    def _values(self, name: str, found: dict[str, wire.Field], transformer: Any) -> list[Any]:
        if name in found:
            return wire.decoder(self.table.columns[name], transformer)(found[name])
        part: list[Any] = list(self._id_part(name, found[f"key {name}"]))  # a part of the key
        return part


def _places(field: wire.Field) -> Array:
    """int64: block and offset of each row's ctid."""
    found = field.matrix(0, "u1", 6).astype(np.int64)
    weights = 256 ** np.arange(5, -1, -1, dtype=np.int64)
    places: Array = found @ weights
    return places


def _as_json(documents: list[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Documents that a JSON parser returned, as bytes again, each without its envelope."""
    if any(ENVELOPE in document for document in documents):
        return [opened(document) for document in documents]
    return JsonColumn.of_parsed(documents)


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
