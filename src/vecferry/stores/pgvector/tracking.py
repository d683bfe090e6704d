"""What changed in a table since a cursor: triggers, a journal table, and a notification.

The triggers write the ids that a statement touched into a journal, with the number of their transaction.
Transactions commit in another order than they are numbered, so a reader that simply went by number would
lose one that commits late. Therefore only transactions below ``pg_snapshot_xmin`` are read: all of them
have ended, and none can appear there later. (PostgreSQL documentation, "Transaction ID and Snapshot
Information".) A writing transaction that stays open delays what came after it, and loses nothing.

A change is told as the state the row has now: an upsert where it is there, a deletion where it is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import orjson
from psycopg import sql

from vecferry.errors import SchemaMismatchError
from vecferry.model import RecordBatch, RecordId, encode_id
from vecferry.ports import Changes, Cursor
from vecferry.stores.pgvector.introspection import find_table
from vecferry.stores.pgvector.reading import uncode_id
from vecferry.stores.pgvector.server import Server, TableName, translated
from vecferry.stores.pgvector.table import Table

_EVENTS = {
    "insert": ("AFTER INSERT", "REFERENCING NEW TABLE AS new_rows"),
    "update": ("AFTER UPDATE", "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"),
    "delete": ("AFTER DELETE", "REFERENCING OLD TABLE AS old_rows"),
    "truncate": ("BEFORE TRUNCATE", ""),
}
_JOURNAL = """
    CREATE TABLE IF NOT EXISTS {journal} (
        seq bigint GENERATED ALWAYS AS IDENTITY, transaction bigint NOT NULL, id jsonb NOT NULL,
        PRIMARY KEY (transaction, seq)
    )
"""
# The owner's rights and a fixed search path: writers of the table need no rights on the journal.
_FUNCTION = """
    CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog AS $function$
    DECLARE number bigint := pg_current_xact_id()::text::bigint;
    BEGIN
        IF TG_OP IN ('UPDATE', 'DELETE') THEN
            INSERT INTO {journal} (transaction, id) SELECT number, {id} FROM old_rows r WHERE {own};
        END IF;
        IF TG_OP IN ('INSERT', 'UPDATE') THEN
            INSERT INTO {journal} (transaction, id) SELECT number, {id} FROM new_rows r WHERE {own};
        END IF;
        IF TG_OP = 'TRUNCATE' THEN
            INSERT INTO {journal} (transaction, id) SELECT number, {id} FROM {table} r WHERE {own};
        END IF;
        PERFORM pg_notify({channel}, '');
        RETURN NULL;
    END $function$
"""
_READ = """
    SELECT transaction, seq, id FROM {journal}
    WHERE (transaction, seq) > ({transaction}, {seq})
    AND transaction < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
    ORDER BY transaction, seq LIMIT {limit}
"""
_NOW = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"

Fetch = Callable[[list[RecordId]], RecordBatch]


class Journal:
    """The journal of one table (or of one collection in LangChain's shared table)."""

    def __init__(self, server: Server, table: Table) -> None:
        if table.name is None or table.relation.kind != "r" or table.by_place:
            raise SchemaMismatchError(
                "only an ordinary table with a key can be tracked, no view, select or partitioned table"
            )
        self._server, self._mapped = server, table
        self._table: TableName = table.name
        share = "".join(str(value) for value in table.fixed.values())
        digest = hashlib.sha256(f"{self._table}{share}".encode()).hexdigest()[:12]
        stem = self._table.name.encode()[:30].decode(errors="ignore")
        self.name = self._table.sibling(f"vecferry_journal_{stem}_{digest}")

    def install(self) -> Cursor:
        """Make journal, function and triggers, and return where the journal stands. Twice is as once."""
        with self._server.raw() as connection:
            connection.execute("SET LOCAL lock_timeout = '10s'")
            if find_table(connection, self.name) is None:
                connection.execute(sql.SQL(_JOURNAL).format(journal=self.name.quoted))
                connection.execute(self._function())
            for event in _EVENTS:
                connection.execute(self._trigger(event))
            connection.commit()
            row = connection.execute(_NOW).fetchone()
            connection.commit()
        assert row is not None
        return [row[0], 0]

    def remove(self) -> None:
        """Drop what `install` made. Twice is as once."""
        with self._server.raw() as connection:
            connection.execute("SET LOCAL lock_timeout = '10s'")
            if find_table(connection, self.name) is not None:
                drop = sql.SQL("DROP FUNCTION IF EXISTS {}() CASCADE; DROP TABLE IF EXISTS {}")
                connection.execute(drop.format(self.name.quoted, self.name.quoted))
            connection.commit()

    def read(self, after: Cursor, batch_size: int, fetch: Fetch) -> Iterator[Changes]:
        """Changes of finished transactions behind the cursor, ``batch_size`` journal entries at a time."""
        cursor = list(after)
        while True:
            with self._server.raw() as connection:
                transaction, seq = map(sql.Literal, cursor)
                query = sql.SQL(_READ).format(
                    journal=self.name.quoted,
                    transaction=transaction,
                    seq=seq,
                    limit=sql.Literal(batch_size),
                )
                entries = connection.execute(query).fetchall()
                connection.commit()
            if not entries:
                return
            cursor = [entries[-1][0], entries[-1][1]]
            ids = list({orjson.dumps(parts): self._id(parts) for _, _, parts in entries}.values())
            present = fetch(ids)
            there = {encode_id(id_) for id_ in present.id_list}
            gone = tuple(id_ for id_ in ids if encode_id(id_) not in there)
            yield Changes(cursor, present if len(present) else None, gone)

    def forget(self, before: Cursor) -> int:
        """Delete the entries up to a cursor that every reader has passed; returns how many."""
        with self._server.raw() as connection:
            query = sql.SQL("DELETE FROM {} WHERE (transaction, seq) <= ({}, {})")
            gone = connection.execute(query.format(self.name.quoted, *map(sql.Literal, before))).rowcount
            connection.commit()
        return gone

    def wait(self, seconds: float) -> bool:
        """Wait until some transaction that touched the table has committed; false after ``seconds``."""
        with translated(self._server.url), self._server.connect() as connection:
            connection.autocommit = True
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            return any(True for _ in connection.notifies(timeout=seconds, stop_after=1))

    # -- statements ---------------------------------------------------------------------------

    @property
    def _channel(self) -> str:
        return self.name.name

    def _function(self) -> sql.Composed:
        parts = [sql.SQL("r.{}::text").format(sql.Identifier(name)) for name in self._mapped.id]
        own = [
            sql.SQL("r.{} = {}").format(sql.Identifier(name), sql.Literal(value))
            for name, value in self._mapped.fixed.items()
        ]
        return sql.SQL(_FUNCTION).format(
            function=self.name.quoted,
            journal=self.name.quoted,
            table=self._table.quoted,
            id=sql.SQL("jsonb_build_array({})").format(sql.SQL(", ").join(parts)),
            own=sql.SQL(" AND ").join([*own, sql.SQL("true")]),
            channel=sql.Literal(self._channel),
        )

    def _trigger(self, event: str) -> sql.Composed:
        when, referencing = _EVENTS[event]
        return sql.SQL(
            "CREATE OR REPLACE TRIGGER {} {} ON {} {} FOR EACH STATEMENT EXECUTE FUNCTION {}()"
        ).format(
            sql.Identifier(f"{self.name.name[:50]}_{event}"),
            sql.SQL(when),
            self._table.quoted,
            sql.SQL(referencing),
            self.name.quoted,
        )

    def _id(self, parts: list[str]) -> RecordId:
        values: list[Any] = []
        for name, text in zip(self._mapped.id, parts, strict=True):
            kind = self._mapped.columns[name].id_kind
            values.append(int(text) if kind == "int" else UUID(text) if kind == "uuid" else text)
        if self._mapped.coded_ids:
            return uncode_id(values[0], self._mapped.coded_ids)
        return values[0] if len(values) == 1 else tuple(values)
