"""One state of the database for a whole read, also across connections and threads.

A connection of its own holds a REPEATABLE READ transaction open and exports its snapshot; every scan of a
partition takes that snapshot on. (PostgreSQL documentation, "Snapshot Synchronization Functions".)
"""

from __future__ import annotations

import threading
from typing import Any

import psycopg
from psycopg import sql

from vecferry.stores.pgvector.address import Server
from vecferry.stores.pgvector.errors import translated

# What the text forms of values depend on is fixed, so that cursors and metadata mean the same everywhere.
_SESSION = """
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
