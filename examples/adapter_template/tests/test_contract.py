"""The contract, looked behind with SQLite itself."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from vecferry_sqlite import SqliteStore

from vecferry.testing import StoreContract, VendorView


class TestSqlite(StoreContract):
    def open(self, folder: Path, name: str) -> SqliteStore:
        return SqliteStore(folder / "vectors.sqlite", name)

    def vendor_view(self, store: SqliteStore) -> Mapping[str, VendorView]:
        with sqlite3.connect(store.file) as connection:
            rows = connection.execute(
                f'select id, content, metadata, vector from "{store.table}"'
            ).fetchall()
        return {id_: VendorView(text, np.frombuffer(v, "<f4"), json.loads(m)) for id_, text, m, v in rows}
