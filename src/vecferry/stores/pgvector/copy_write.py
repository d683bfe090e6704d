"""Writing a batch in one transaction: straight COPY into a new table, or staging and one upsert.

Straight COPY is two to three times faster and refuses a key that is there already, as a whole. So it is
tried while a table is being filled for the first time; a replayed batch after a crash meets the unique key,
is rolled back, and goes through staging, where twice is as once.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from vecferry.errors import RejectedRecord, SchemaMismatchError
from vecferry.model import RecordBatch, encode_id
from vecferry.ports import WriteReceipt
from vecferry.stores.pgvector import encode
from vecferry.stores.pgvector.address import Server
from vecferry.stores.pgvector.columns import RowMap
from vecferry.stores.pgvector.errors import translated
from vecferry.stores.pgvector.reading import uncode_id
from vecferry.stores.pgvector.reflect import Relation
from vecferry.stores.pgvector.row_writer import Rows, RowWriter
from vecferry.stores.pgvector.upsert import STAGE, Upsert

_TRIES = 3  # straight copies that may meet known keys before staging is used throughout


class TableWriter:
    """Upserts batches into one table over one connection of its own.

    Args:
        straight: whether the table is new, so that most keys will be new.
    """

    def __init__(
        self, server: Server, relation: Relation, rows: RowMap, *, made: bool, straight: bool
    ) -> None:
        assert relation.table is not None
        self.relation, self.map = relation, rows
        self._server, self._table = server, relation.table
        self._rows = RowWriter(relation, rows, made)
        # LlamaIndex's node_id is not unique: rows of known ids are deleted, then inserted.
        replaces = rows.layout == "llamaindex"
        self._upsert = Upsert(self._table, relation, rows, self._rows.as_text, replaces=replaces)
        self._tries = _TRIES if straight and not self._rows.as_text and not replaces else 0
        self._connection: psycopg.Connection[Any] | None = None
        self._staged: tuple[str, ...] = ()
        exact = any(i.unique and set(i.columns) == set(rows.id) and not i.partial for i in relation.indexes)
        if not exact and not replaces:
            key = ", ".join(rows.id)
            raise SchemaMismatchError(
                f"{self._table} has no unique index on ({key}), so records cannot be upserted; "
                "create one, or write to a new table"
            )

    def write(self, batch: RecordBatch) -> WriteReceipt:
        """All of the batch in one transaction; see `vecferry.ports.Sink.write`."""
        if not len(batch):
            return WriteReceipt(0)
        rows = _last_of_each(batch)
        rows = rows if self._tries else _in_order(rows)
        shares = [self._rows.encode(share) for share in self._rows.alike(rows)]
        with translated(str(self._table)):
            try:
                self._send(shares)
            except (
                psycopg.DataError,
                psycopg.IntegrityError,
                psycopg.errors.ProgramLimitExceeded,
            ) as error:
                self._rollback()
                reason = error.diag.message_primary or type(error).__name__
                raise self._rows.rejected(batch, reason) from error
            except BaseException:
                self.close()
                raise
        return WriteReceipt(len(batch), sum(len(rows.data) for rows in shares))

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back. Twice is as once."""
        connection, self._connection, self._staged = self._connection, None, ()
        if connection is not None:
            connection.close()

    # -- the two ways -------------------------------------------------------------------------

    def _send(self, shares: list[Rows]) -> None:
        connection = self._connected()
        if self._tries:
            try:
                for rows in shares:
                    self._copy(connection, self._table.quoted, rows)
                connection.commit()
            except psycopg.errors.UniqueViolation:
                connection.rollback()
                self._tries -= 1
            else:
                return
        for rows in shares:
            self._merge(connection, rows)
        connection.commit()

    def _merge(self, connection: psycopg.Connection[Any], rows: Rows) -> None:
        self._stage(connection, rows.columns)
        self._copy(connection, STAGE, rows)
        if self._upsert.replaces:
            connection.execute(self._upsert.delete_known())
        merged = connection.execute(self._upsert.merge(rows.columns, rows.absent)).rowcount
        if merged < rows.count and self.map.fixed:
            raise self._of_others(connection)

    def _copy(self, connection: psycopg.Connection[Any], into: sql.Identifier, rows: Rows) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, rows.columns))
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(into, columns)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(encode.HEADER)
            copy.write(rows.data)
            copy.write(encode.TRAILER)

    def _stage(self, connection: psycopg.Connection[Any], columns: tuple[str, ...]) -> None:
        if self._staged != columns:
            for statement in self._upsert.make_stage(columns):
                connection.execute(statement)
            self._staged = columns

    def _of_others(self, connection: psycopg.Connection[Any]) -> RejectedRecord:
        """LangChain keeps all collections in one table with one key: a foreign row is never taken over."""
        rows = connection.execute(self._upsert.ids_of_others()).fetchall()
        native = self.map.coded_ids
        taken = [uncode_id(row[0], native) if native else row[0] for row in rows]
        return RejectedRecord(
            f"ids such as {taken[:1]} belong to another collection in {self._table}, where ids are unique; "
            "give these records other ids",
            ids=taken,
        )

    # -- the connection -----------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._staged = ()
            self._connection = self._server.connect()
            self._connection.autocommit = False
        return self._connection

    def _rollback(self) -> None:
        if self._connection is not None:
            self._staged = ()  # the staging table may have been made in the transaction that goes
            with contextlib.suppress(psycopg.Error):
                self._connection.rollback()
                return
            self.close()


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
