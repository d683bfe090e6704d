"""The local mode's folder, written in one transaction a batch.

The client keeps each collection of a folder in an SQLite file and commits every point by itself: one flush
to the disk a point. Here its points of one `upsert` share one commit, made before `upsert` is acknowledged,
so a batch is on the disk as a whole or not at all. The client has no public switch for it: where its inside
looks other than expected, nothing is changed and it commits point by point.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Joined:
    """Stands in for the connection while a batch is written: leaving its ``with`` block commits nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        return None

    def commit(self) -> None:
        """Clients that call it instead of using the block."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@contextmanager
def one_commit(client: Any, collection: str) -> Iterator[None]:
    """Everything written to ``collection`` inside is committed at the end, or not at all."""
    storage = _storage(client, collection)
    connection = getattr(storage, "storage", None)
    if storage is None or not isinstance(connection, sqlite3.Connection):
        yield
        return
    storage.storage = _Joined(connection)
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        storage.storage = connection


def _storage(client: Any, collection: str) -> Any:
    inside = getattr(client, "_client", None)
    names = getattr(inside, "aliases", {})
    collections = getattr(inside, "collections", {})
    found = collections.get(names.get(collection, collection))
    return getattr(found, "storage", None)
