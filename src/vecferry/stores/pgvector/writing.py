"""Writing a batch in one transaction: straight COPY into a new table, or staging and one upsert.

Straight COPY is two to three times faster and refuses a key that is there already, as a whole. So it is
tried while a table is being filled for the first time; a replayed batch after a crash meets the unique key,
is rolled back, and goes through staging, which is idempotent.

A table that this adapter made holds exactly what a record brings. A table of the application is updated in
place: rows, columns, keys and references that the records do not speak of stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer

from vecferry.errors import RejectedRecord, SchemaMismatchError
from vecferry.model import (
    ENVELOPE,
    DenseColumn,
    JsonColumn,
    Kind,
    Loss,
    MultiColumn,
    RecordBatch,
    dump_json,
    encode_id,
)
from vecferry.model.ids import RecordId
from vecferry.ports import WriteReceipt
from vecferry.stores.pgvector import wire
from vecferry.stores.pgvector.ddl import MAX_SPARSE_DIM
from vecferry.stores.pgvector.frameworks import CODECS
from vecferry.stores.pgvector.introspection import VECTOR_TYPES, PgColumn
from vecferry.stores.pgvector.reading import code_id, uncode_id
from vecferry.stores.pgvector.server import Server, TableName, translated
from vecferry.stores.pgvector.table import Table
from vecferry.stores.pgvector.wire import (
    Cells,
    binary_dumper,
    exactly,
    fits_id,
    loosely,
    text_fault,
    uuid_of,
    writable_binary,
)

_TRIES = 3  # straight copies that may meet known keys before staging is used throughout
_INT_BYTES = {"int2": 2, "int4": 4, "int8": 8}
_STAGE = sql.Identifier("pg_temp", "vecferry_stage")
_SHARE = "vecferry share"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"


@dataclass(frozen=True, slots=True)
class Share:
    """Rows that fill the same columns; ``cleared`` columns of known rows become NULL."""

    columns: tuple[str, ...]
    cleared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows: all columns they fill, COPY's bytes, and the shares, to which a last column points."""

    columns: tuple[str, ...]
    data: bytes | memoryview
    count: int
    shares: tuple[Share, ...]


class TableWriter:
    """Upserts batches into one table over one connection of its own.

    Args:
        known: metadata keys that have columns in the source.
        straight: whether the table is new, so that most keys will be new.
    """

    def __init__(self, server: Server, table: Table, known: Collection[str], *, straight: bool) -> None:
        assert table.name is not None
        self.table = table
        self._server, self._name = server, table.name
        self._encoder = RowEncoder(table, known)
        merge = Merge(table, self._encoder.as_text)
        self._merge_sql = merge
        self._tries = _TRIES if straight and not self._encoder.as_text and merge.by_index else 0
        self._connection: psycopg.Connection[Any] | None = None
        self._staged: tuple[str, ...] = ()
        if not merge.by_index and not merge.by_lock:
            key = ", ".join(table.id)
            raise SchemaMismatchError(
                f"{self._name} has no unique index on ({key}), so records cannot be upserted; "
                "create one, or write to a new table"
            )
        held = [name for name in table.vectors.values() if table.columns[name].held_as]
        if held:
            raise SchemaMismatchError(
                f"{self._name}: column {held[0]!r} holds vectors as {table.columns[held[0]].sql_type}, "
                "which is read and not written; add a vector column, or write to a new table"
            )

    def write(self, batch: RecordBatch) -> WriteReceipt:
        """All of the batch in one transaction; see `vecferry.ports.Sink.write`."""
        if not len(batch):
            return WriteReceipt(0)
        rows = _last_of_each(batch)
        encoded = self._encoder.encode(rows if self._tries else _in_order(rows))
        with translated(str(self._name)):
            try:
                self._send(encoded)
            except (
                psycopg.DataError,
                psycopg.IntegrityError,
                psycopg.errors.ProgramLimitExceeded,
            ) as error:
                self._rollback()
                reason = error.diag.message_primary or type(error).__name__
                raise self._encoder.rejected(batch, reason) from error
            except BaseException:
                self.close()
                raise
        return WriteReceipt(len(batch), len(encoded.data))

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back. Idempotent."""
        connection, self._connection, self._staged = self._connection, None, ()
        if connection is not None:
            connection.close()

    # -- the two ways -------------------------------------------------------------------------

    def _send(self, rows: Rows) -> None:
        connection = self._connected()
        if self._tries and len(rows.shares) == 1:
            try:
                self._copy(connection, self._name.quoted, rows)
                connection.commit()
            except psycopg.errors.UniqueViolation:
                connection.rollback()
                self._tries -= 1
            else:
                return
        self._merge(connection, rows)
        connection.commit()

    def _merge(self, connection: psycopg.Connection[Any], rows: Rows) -> None:
        merge = self._merge_sql
        self._stage(connection, rows.columns)
        self._copy(connection, _STAGE, rows)
        if not merge.by_index:
            connection.execute(_LOCK, [f"vecferry {self._name}"])
        merged = 0
        for number, share in enumerate(rows.shares):
            only = number if len(rows.shares) > 1 else None
            for statement in merge.statements(share, only):
                merged += connection.execute(statement).rowcount
        if merged < rows.count and self.table.fixed:
            raise self._of_others(connection)

    def _copy(self, connection: psycopg.Connection[Any], into: sql.Identifier, rows: Rows) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, rows.columns))
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(into, columns)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(wire.HEADER)
            copy.write(rows.data)
            copy.write(wire.TRAILER)

    def _stage(self, connection: psycopg.Connection[Any], columns: tuple[str, ...]) -> None:
        if self._staged != columns:
            for statement in self._merge_sql.make_stage(columns):
                connection.execute(statement)
            self._staged = columns

    def _of_others(self, connection: psycopg.Connection[Any]) -> RejectedRecord:
        """LangChain keeps all collections in one table with one key: a foreign row is never taken over."""
        rows = connection.execute(self._merge_sql.ids_of_others()).fetchall()
        native = self.table.coded_ids
        taken = [uncode_id(row[0], native) if native else row[0] for row in rows]
        return RejectedRecord(
            f"ids such as {taken[:1]} belong to another collection in {self._name}, where ids are unique; "
            "give these records other ids",
            ids=taken,
        )

    # -- the connection -----------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._staged = ()
            self._connection = self._server.connect()
            self._connection.autocommit = False
            # As long as the session lives, others know that the table is being written.
            self._connection.execute(
                "SELECT pg_advisory_lock_shared(hashtextextended(%s, 0))", [lock_name(self._name)]
            )
            self._connection.commit()
        return self._connection

    def _rollback(self) -> None:
        if self._connection is not None:
            self._staged = ()  # the staging table may have been made in the transaction that goes
            with contextlib.suppress(psycopg.Error):
                self._connection.rollback()
                return
            self.close()


def lock_name(table: TableName) -> str:
    """Of the advisory lock that a writer shares with others."""
    return f"vecferry writes {table.name}"


class Merge:
    """The statements that bring staged rows into a table.

    Where a unique index is on the id, it is one ``INSERT … ON CONFLICT``. Elsewhere (LlamaIndex's
    ``node_id``), and where a column of the application must not be NULL and is not brought, known rows are
    updated first and the others inserted.

    Args:
        as_text: columns that are staged as text and cast on the way (types without a binary form here).
    """

    def __init__(self, table: Table, as_text: Collection[str]) -> None:
        assert table.name is not None
        self.table, self.name, self.as_text = table, table.name, as_text
        key = set(table.id)
        exact = any(i.unique and set(i.columns) == key and not i.partial for i in table.indexes)
        self.by_index = exact
        self.by_lock = not exact and table.layout in ("llamaindex", "langchain")

    def make_stage(self, columns: Sequence[str]) -> list[sql.Composed]:
        """An empty temporary table with the given columns, emptied at every commit."""
        names = [sql.SQL(self._staged_as(name)).format(sql.Identifier(name)) for name in columns]
        make = sql.SQL("CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA")
        return [
            sql.SQL("DROP TABLE IF EXISTS {}").format(_STAGE),
            make.format(sql.Identifier("vecferry_stage"), sql.SQL(", ").join(names), self.name.quoted),
        ]

    def _staged_as(self, name: str) -> str:
        if name == _SHARE:
            return "0::int2 AS {}"
        return "NULL::text AS {}" if name in self.as_text else "{}"

    def statements(self, share: Share, number: int | None) -> list[sql.Composed]:
        """What brings the staged rows of a share into the table, to be run in order."""
        only = sql.SQL("new.{} = {}").format(sql.Identifier(_SHARE), sql.Literal(number))
        where = sql.SQL("true") if number is None else only
        if self.by_index and not self._lacks(share):
            target = sql.SQL(", ").join(map(sql.Identifier, self.table.id))
            conflict = sql.SQL(" ON CONFLICT ({}) DO {}").format(target, self._action(share))
            return [self._insert(share, where) + conflict]
        return [self._update(share, where), self._insert(share, where + self._unknown())]

    def _lacks(self, share: Share) -> bool:
        """Whether a row of these columns alone breaks a NOT NULL before its conflict is looked at."""
        brought = {*share.columns, *self.table.filled}
        return any(
            not (c.nullable or c.defaulted or c.name in brought) and c.writable
            for c in self.table.columns.values()
        )

    def _insert(self, share: Share, where: sql.Composable) -> sql.Composed:
        filled = {name: sql.SQL(value) for name, value in self.table.filled.items()}
        values = {name: self._value(name) for name in share.columns} | filled
        return sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS new WHERE {}"
        ).format(
            self.name.quoted,
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(values.values()),
            _STAGE,
            where,
        )

    def _update(self, share: Share, where: sql.Composable) -> sql.Composed:
        updates = [
            sql.SQL("{} = {}").format(sql.Identifier(name), self._value(name))
            for name in share.columns
            if name not in self.table.fixed
        ]
        updates += [sql.SQL("{} = NULL").format(sql.Identifier(name)) for name in share.cleared]
        return sql.SQL("UPDATE {} AS known SET {} FROM {} AS new WHERE {} AND {}").format(
            self.name.quoted, sql.SQL(", ").join(updates), _STAGE, self._known(), where
        )

    def _known(self) -> sql.Composed:
        """The row of the table that is the staged one's."""
        same = [
            sql.SQL("known.{} = {}").format(sql.Identifier(name), self._value(name))
            for name in (*self.table.id, *self.table.fixed)
        ]
        return sql.SQL(" AND ").join(same)

    def _unknown(self) -> sql.Composed:
        query = " AND NOT EXISTS (SELECT 1 FROM {} AS known WHERE {})"
        return sql.SQL(query).format(self.name.quoted, self._known())

    def ids_of_others(self) -> sql.Composed:
        """Staged ids that stand in another collection of the same table."""
        known, new = sql.SQL("known"), sql.SQL("new")
        return sql.SQL("SELECT known.{} FROM {} AS known JOIN {} AS new ON {} WHERE NOT ({})").format(
            sql.Identifier(self.table.id[0]),
            self.name.quoted,
            _STAGE,
            _same(self.table.id, known, new),
            _same(tuple(self.table.fixed), known, new),
        )

    def _value(self, name: str) -> sql.Composable:
        column = sql.SQL("new.{}").format(sql.Identifier(name))
        if name not in self.as_text:
            return column
        return sql.SQL("CAST({} AS {})").format(column, sql.SQL(self.table.columns[name].sql_type))

    def _action(self, share: Share) -> sql.Composable:
        updates = [
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name))
            for name in share.columns
            if name not in self.table.id
        ]
        updates += [sql.SQL("{} = NULL").format(sql.Identifier(name)) for name in share.cleared]
        if not updates:
            return sql.SQL("NOTHING")
        action = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(updates))
        if self.table.fixed:  # never a row of another collection in the same table
            same = _same(tuple(self.table.fixed), self.name.quoted, sql.SQL("EXCLUDED"))
            action += sql.SQL(" WHERE {}").format(same)
        return action


def _same(names: Sequence[str], one: sql.Composable, other: sql.Composable) -> sql.Composed:
    equal = [sql.SQL("{0}.{2} = {1}.{2}").format(one, other, sql.Identifier(name)) for name in names]
    return sql.SQL(" AND ").join(equal)


class RowEncoder:
    """Encodes batches as rows of one table.

    Args:
        known: metadata keys that have columns in the source: a record without one has no value there.
    """

    def __init__(self, table: Table, known: Collection[str] = ()) -> None:
        self.table = table
        self._transformer = Transformer()
        self._codec = CODECS[table.layout]() if table.layout in CODECS else None
        columns = table.columns
        typed = {key: columns[name] for key, name in table.typed.items() if name not in table.id}
        self._typed = {key: column for key, column in typed.items() if column.writable}
        self._kept = {key: c for key, c in self._typed.items() if table.keeps(c.name, set(known))}
        self._optional = {column.name for column in self._kept.values()}
        self._parts_of_key = [key for key, name in table.typed.items() if name in table.id]
        self.as_text = frozenset(
            [c.name for c in self._typed.values() if not writable_binary(c)]
            + [
                name
                for name in table.id
                if columns[name].id_kind == "str" and columns[name].category != "S"
            ]
        )

    def encode(self, batch: RecordBatch) -> Rows:
        """The rows of a batch whose ids are all different.

        Raises:
            RejectedRecord: naming the records that this table cannot hold.
            SchemaMismatchError: for a vector field that the table has not.
        """
        self._check_fields(batch)
        fast = self._fast(batch)
        if fast is not None:
            return fast
        try:
            cells, shares = self._cells(self._with_keys(batch))
        except (UnicodeError, OverflowError, TypeError, ValueError, psycopg.Error) as error:
            raise self.rejected(batch, str(error)) from error
        return Rows(tuple(cells), wire.rows(list(cells.values()), len(batch)), len(batch), shares)

    def _with_keys(self, batch: RecordBatch) -> RecordBatch:
        """Ids as the key holds them."""
        if self.table.coded_ids:
            batch = batch.replace(ids=[code_id(id_, self.table.coded_ids) for id_ in batch.id_list])
        else:
            wrong = [id_ for id_ in batch.id_list if not self._fits_key(id_)]
            if wrong:
                raise self._no_place(wrong)
        return batch

    def _cleared(self, brought: Collection[str]) -> tuple[str, ...]:
        """Columns that a record without them leaves without a value: only those that are ours, or known."""
        table, ours = self.table, self.table.ours
        parts = [*table.vectors.values(), *(name for name in (table.text, table.json) if name)]
        parts = [name for name in parts if name in ours and table.columns[name].writable]
        typed = [column.name for key, column in self._typed.items() if key not in self._kept]
        return tuple(name for name in (*parts, *typed) if name not in brought)

    def _check_fields(self, batch: RecordBatch) -> None:
        for name, column in batch.columns():
            if name not in self.table.vectors:
                raise SchemaMismatchError(
                    f"{self.table.name} has no vector field {name!r}, only {sorted(self.table.vectors)}"
                )
            target = self.table.columns[self.table.vectors[name]]
            if isinstance(column, MultiColumn) is not target.is_multi:
                raise SchemaMismatchError(
                    f"field {name!r} of {self.table.name} is {target.sql_type}, "
                    f"not made for {type(column).__name__}; choose another target"
                )

    def _fast(self, batch: RecordBatch) -> Rows | None:
        """An integer key and one vector: straight from numpy."""
        if (
            batch.texts is not None
            or batch.metadata is not None
            or len(batch.vectors) != 1
            or batch.sparse_vectors
        ):
            return None
        (name, column), id_ = next(iter(batch.vectors.items())), self.table.columns[self.table.id[0]]
        target = self.table.columns[self.table.vectors[name]]
        fits = (
            batch.ids.ints is not None
            and isinstance(column, DenseColumn)
            and (id_.type, len(self.table.id), target.type, self.table.fixed) == ("int8", 1, "vector", {})
            and target.writable
            and column.mask is None
            and column.values.dtype == np.float32
        )
        if not fits:
            return None
        self._check_widths(batch)
        data = wire.fixed_rows(np.asarray(batch.ids.ints), column)  # type: ignore[arg-type]
        columns = (self.table.id[0], target.name)
        return Rows(columns, data, len(batch), (Share(columns, self._cleared(columns)),))

    def _cells(self, batch: RecordBatch) -> tuple[dict[str, Cells], tuple[Share, ...]]:
        self._check_widths(batch)
        table = self.table
        cells = self._id_cells(batch)
        brought: dict[str, list[bool]] = {}  # of columns of the application: which rows have a value
        for name, column in batch.columns():
            target = table.columns[table.vectors[name]]
            if target.writable:
                cells[target.name] = _vector_cells(column, target)
                if column.mask is not None:
                    brought[target.name] = column.mask.tolist()
        if table.text is not None and batch.texts is not None and None in batch.texts:
            brought[table.text] = [text is not None for text in batch.texts]
        brought = {name: rows for name, rows in brought.items() if name not in table.ours}
        if batch.metadata is not None and table.typed:
            batch, typed, given = self._typed_cells(batch)
            cells.update(typed)
            brought.update(given)
        if self._codec:
            batch = self._codec.encode(batch)
            brought.pop(table.text or "", None)
        if batch.texts is not None:
            cells.update(self._text_cells(batch))
        if batch.metadata is not None and table.json:
            cells[table.json] = self._json_cells(batch)
        elif batch.metadata is not None:
            self._check_homeless(batch.metadata, batch.id_list)
        for name, value in table.fixed.items():
            cells[name] = self._value_cells([value] * len(batch), table.columns[name])
        return cells, self._shares(cells, brought)

    def _shares(self, cells: dict[str, Cells], brought: dict[str, list[bool]]) -> tuple[Share, ...]:
        """One share for each combination of the application's columns that is brought."""
        for name, rows in list(brought.items()):
            if not any(rows):
                cells.pop(name, None)
            if all(rows) or not any(rows):
                brought.pop(name)
        cleared = self._cleared({*cells, *self._optional})
        if not brought:
            return (Share(tuple(cells), cleared),)
        kinds: dict[tuple[bool, ...], int] = {}
        numbers = [kinds.setdefault(kind, len(kinds)) for kind in zip(*brought.values(), strict=True)]
        shares = []
        for kind in kinds:
            left = {name for name, there in zip(brought, kind, strict=True) if not there}
            shares.append(Share(tuple(name for name in cells if name not in left), cleared))
        if len(shares) > 1:
            cells[_SHARE] = wire.int_cells(numbers, 2)
        return tuple(shares)

    def _text_cells(self, batch: RecordBatch) -> dict[str, Cells]:
        texts, name = batch.texts or (), self.table.text
        if name is None:
            rows = [row for row, text in enumerate(texts) if text is not None]
            if rows:
                ids = batch.id_list
                raise RejectedRecord(
                    f"{self.table.name} has no column for texts; name one with text=, or add one",
                    ids=[ids[row] for row in rows],
                )
            return {}
        return {name: wire.text_cells(texts)} if self.table.columns[name].writable else {}

    # -- ids ----------------------------------------------------------------------------------

    def _id_cells(self, batch: RecordBatch) -> dict[str, Cells]:
        names = self.table.id
        if len(names) == 1 and batch.ids.ints is not None and self.table.columns[names[0]].type == "int8":
            return {names[0]: wire.int_cells(batch.ids.ints)}
        ids = batch.id_list
        parts = list(zip(*ids, strict=True)) if len(names) > 1 else [ids]
        return {n: self._id_part(list(p), self.table.columns[n]) for n, p in zip(names, parts, strict=True)}

    def _id_part(self, values: list[Any], column: PgColumn) -> Cells:
        if column.id_kind == "int":
            return wire.int_cells(values, _INT_BYTES[column.type])
        if column.id_kind == "uuid":
            return [b"\0\0\0\x10" + uuid_of(value).bytes for value in values]  # type: ignore[union-attr]
        return wire.text_cells(values)

    def _fits_key(self, id_: RecordId) -> bool:
        parts = id_ if isinstance(id_, tuple) else (id_,)
        if len(parts) != len(self.table.id):
            return False
        return all(
            fits_id(part, self.table.columns[n]) for part, n in zip(parts, self.table.id, strict=True)
        )

    def _no_place(self, wrong: Sequence[RecordId]) -> RejectedRecord:
        key = ", ".join(f"{n} {self.table.columns[n].sql_type}" for n in self.table.id)
        return RejectedRecord(
            f"ids such as {wrong[0]!r} do not fit the key ({key}) of {self.table.name}; "
            "write to a new table, with id_type='mixed'",
            ids=wrong,
        )

    # -- metadata -----------------------------------------------------------------------------

    def _typed_cells(
        self, batch: RecordBatch
    ) -> tuple[RecordBatch, dict[str, Cells], dict[str, list[bool]]]:
        """The batch without what has columns of its own, their cells, and which rows bring a value."""
        cells: dict[str, Cells] = {}
        metadata = [dict(row) for row in batch.metadata_list]
        self._check_key_parts(metadata, batch.id_list)
        brought = {c.name: [self._brings(row, k, c) for row in metadata] for k, c in self._kept.items()}
        for key in self.table.typed.keys() - self._typed.keys():
            for row in metadata:
                row.pop(key, None)  # the server generates it anew, or it is a part of the key
        for key, column in self._typed.items():
            values = [self._take(row, key, column) for row in metadata]
            cells[column.name] = self._value_cells(values, column)
        return batch.replace(metadata=metadata), cells, brought

    def _json_cells(self, batch: RecordBatch) -> Cells:
        assert self.table.json is not None and batch.metadata is not None
        if self._codec is None:
            documents = _sealed(batch.json_metadata)
        else:
            documents = [dump_json(row) for row in batch.metadata]
        return wire.json_cells(documents, binary=self.table.columns[self.table.json].type == "jsonb")

    def _take(self, row: dict[str, Any], key: str, column: PgColumn) -> Any:
        """The value for a typed column; one that would change in it stays in the json column."""
        if self._goes(row.get(key), column):
            return row.pop(key)
        if not self.table.json and row.get(key) is None:
            row.pop(key, None)
        return None

    def _goes(self, value: Any, column: PgColumn) -> bool:
        keeps = exactly if column.name in self.table.ours else loosely
        return value is not None and (not self.table.json or keeps(value, column))

    def _brings(self, row: dict[str, Any], key: str, column: PgColumn) -> bool:
        """A value for the column; a null, or a value that stays in the json column, empties it."""
        return key in row and (column.nullable or self._goes(row[key], column))

    def _value_cells(self, values: list[Any], column: PgColumn) -> Cells:
        if column.is_json:
            documents = [None if v is None else wire.exact_json(v) for v in values]
            return wire.json_cells(documents, binary=column.type == "jsonb")
        if column.type in _INT_BYTES:
            return wire.int_cells(values, _INT_BYTES[column.type])
        if column.is_text or column.name in self.as_text:
            return wire.text_cells([None if v is None else self._server_text(v) for v in values])
        dumper = binary_dumper(column, self._transformer)
        return wire.value_cells(values, dumper)

    def _server_text(self, value: Any) -> str:
        """As psycopg writes a parameter in text form, arrays included."""
        if isinstance(value, str):
            return value
        dumped = self._transformer.get_dumper(value, PyFormat.TEXT).dump(value)
        return bytes(dumped).decode() if dumped is not None else ""

    # -- what cannot go -----------------------------------------------------------------------

    def _check_widths(self, batch: RecordBatch) -> None:
        for name, column in batch.vectors.items():
            target = self.table.columns[self.table.vectors[name]]
            width = target.kind_and_dtype[1].width(target.dim) if target.dim else None
            if width is None or column.values.shape[1] == width:
                continue
            ids = [id_ for id_, there in zip(batch.id_list, column.present.tolist(), strict=True) if there]
            if ids:
                raise RejectedRecord(
                    f"field {name!r} of {self.table.name} holds {target.dim} dimensions, "
                    f"not {column.values.shape[1]}; re-embed these records",
                    ids=ids,
                )

    def _check_homeless(self, metadata: Sequence[dict[str, Any]], ids: Sequence[RecordId]) -> None:
        """Where there is no json column, every metadata key needs a column of its own."""
        rows = [row for row, data in enumerate(metadata) if data]
        if rows:
            raise RejectedRecord(
                f"{self.table.name} has no column for metadata {sorted(metadata[rows[0]])[0]!r}; "
                "add a jsonb column called metadata, or leave the key out",
                ids=[ids[row] for row in rows],
            )

    def _check_key_parts(self, metadata: Sequence[dict[str, Any]], ids: Sequence[RecordId]) -> None:
        """Metadata that repeats a part of the key must agree with the id."""
        for key in self._parts_of_key:
            at = self.table.id.index(self.table.typed[key])
            wrong = [
                id_
                for data, id_ in zip(metadata, ids, strict=True)
                if isinstance(id_, tuple) and data.get(key) is not None and str(data[key]) != str(id_[at])
            ]
            if wrong:
                raise RejectedRecord(
                    f"{self.table.name}: metadata {key!r}, a part of the key, says another than the id; "
                    "correct it",
                    ids=wrong,
                )

    def changed(self, batch: RecordBatch) -> Iterator[Loss]:
        """What the columns of the application hold in another form than the records bring it."""
        if not self._typed or batch.metadata is None:
            return
        rows = list(batch.metadata)
        for key, column in self._typed.items():
            values = [row[key] for row in rows if key in row]
            if column.name in self.table.ours or column.is_json or column.category == "A":
                continue
            odd = [v for v in values if v is not None and loosely(v, column) and not exactly(v, column)]
            if odd and column.native and not column.is_text:
                yield Loss(
                    kind="metadata",
                    detail=f"values of {key!r} come back as column {column.name!r} {column.sql_type} "
                    "holds them",
                    count=len(odd),
                    example=repr(odd[0])[:40],
                )
            nulls = 0 if self.table.json else sum(value is None for value in values)
            if nulls:
                detail = f"nulls under {key!r} become the NULL of a column, which is read as no value"
                yield Loss(kind="metadata", detail=detail, count=nulls)

    def rejected(self, batch: RecordBatch, reason: str) -> RejectedRecord:
        """The refusal with the ids at fault, found by looking at each record."""
        faults: dict[int, str] = dict.fromkeys(batch.non_finite(), "a vector holds NaN or an infinity")
        for row, fault in enumerate(map(text_fault, batch.text_list)):
            if fault:
                faults.setdefault(row, f"the text holds {fault}")
        for row, data in enumerate(batch.metadata_list):
            fault = _metadata_fault(data)
            if fault:
                faults.setdefault(row, f"the metadata holds {fault}")
            for key, column in self._typed.items():
                if data.get(key) is not None and not loosely(data[key], column):
                    type_ = column.sql_type
                    faults.setdefault(row, f"metadata {key!r} does not fit column {column.name} {type_}")
        faults.update(self._vector_faults(batch))
        for row, id_ in enumerate(batch.id_list):
            if not self.table.coded_ids and not self._fits_key(id_):
                faults.setdefault(row, "the id does not fit the key")
            if any(
                isinstance(p, str) and text_fault(p) for p in (id_ if isinstance(id_, tuple) else (id_,))
            ):
                faults.setdefault(row, "the id holds a NUL character or a lone surrogate")
        ids = batch.id_list
        detail = "; ".join(dict.fromkeys(faults.values())) or reason
        return RejectedRecord(
            f"{self.table.name}: {detail}; correct or skip these records",
            ids=[ids[row] for row in sorted(faults)],
        )

    def _vector_faults(self, batch: RecordBatch) -> dict[int, str]:
        faults = {}
        for name, column in batch.vectors.items():
            target = self.table.columns[self.table.vectors[name]]
            if target.type == "halfvec":
                with np.errstate(over="ignore"):
                    beyond = ~np.isfinite(column.values.astype(np.float16)).all(axis=1)
                for row in np.flatnonzero(beyond).tolist():
                    faults[row] = "a vector holds a number beyond float16"
        return faults


def _vector_cells(column: Any, target: PgColumn) -> Cells:
    if target.is_multi:
        return wire.multi_cells(column, target.vector_type, target.element_oid)
    if VECTOR_TYPES[target.type][0] is Kind.SPARSE:
        return wire.sparse_cells(column, target.dim or MAX_SPARSE_DIM)
    return wire.dense_cells(column, target.type, target.dim)


def _sealed(metadata: JsonColumn) -> list[bytes]:
    """The documents of a json column: the bodies as they are, and an envelope where one is needed."""
    rows, own = metadata.rows(), b'"' + ENVELOPE.encode() + b'"'
    odd = {row for row, raw in enumerate(rows) if own in raw} | metadata.typed.keys()
    if not odd:
        return rows
    rows = list(rows)
    for row in odd:
        rows[row] = wire.sealed_document(metadata[row])
    return rows


def _last_of_each(batch: RecordBatch) -> RecordBatch:
    """Without the earlier of two records with one id: an upsert may touch a row only once."""
    if batch.ids.ints is not None and len(np.unique(batch.ids.ints)) == len(batch):
        return batch
    ids = batch.id_list
    last = {(type(id_), id_): row for row, id_ in enumerate(ids)}
    return batch if len(last) == len(ids) else batch.take(sorted(last.values()))


def _in_order(batch: RecordBatch) -> RecordBatch:
    """By id, so that writers of the same rows wait for each other where they would else deadlock."""
    ids, count = batch.ids, len(batch)
    if ids.ints is not None:
        order = np.argsort(ids.ints, kind="stable").tolist()
    else:
        order = sorted(range(count), key=[encode_id(id_) for id_ in ids].__getitem__)
    return batch if order == list(range(count)) else batch.take(order)


def _metadata_fault(data: dict[str, Any]) -> str:
    try:
        document = wire.sealed_document(data)
    except (TypeError, ValueError) as error:
        return "a lone surrogate" if isinstance(error, UnicodeError) else str(error)
    return "a NUL character" if b"\\u0000" in document.replace(b"\\\\", b"") else ""


__all__ = ["RowEncoder", "TableWriter"]
