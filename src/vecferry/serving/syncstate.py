"""What a sync remembers between its runs: a SQLite file, held by one process at a time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import ConfigurationError, JobLockedError
from vecferry.model import RecordBatch, RecordId, SparseVector, decode_id, encode_id, id_key, to_json

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, id TEXT NOT NULL, digest BLOB, run INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doomed (key BLOB PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class SyncState:
    """Digests by id, and facts such as a cursor.

    Raises:
        JobLockedError: while another process holds it.
        ConfigurationError: if there can be no such file, or it is another kind of file.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            if str(path) != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                str(path), timeout=0.1, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from error
        try:
            # An exclusive lock that the operating system gives back when this process dies.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._db.close()
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise _unusable(path, error) from error
            raise JobLockedError(f"another process syncs these two ({path}); wait for it to end") from error

    def __enter__(self) -> SyncState:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, name: str) -> Any:
        """A fact, ``None`` if it was never set."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def set(self, name: str, value: Any) -> None:
        """Remember a fact, durably."""
        self._db.execute("REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def digests(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The digest known for each key, ``None`` where there is none."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, digest FROM seen WHERE key IN ({marks})"  # noqa: S608 - only marks
            found |= dict(self._db.execute(query, part).fetchall())
        return [found.get(key) for key in keys]

    def saw(
        self, ids: Sequence[RecordId], keys: Sequence[bytes], digests: Sequence[bytes], run: int
    ) -> None:
        """These were there in this run, with this content, and the target has it."""
        rows = [(key, encode_id(i), d, run) for i, key, d in zip(ids, keys, digests, strict=True)]
        self._db.execute("BEGIN")
        self._db.executemany("REPLACE INTO seen VALUES (?, ?, ?, ?)", rows)
        self._db.execute("COMMIT")

    def distrust(self, run: int) -> None:
        """Forget the digests of what runs after this one saw: the empty digest equals none."""
        self._db.execute("UPDATE seen SET digest = x'' WHERE run > ?", (run,))

    def forget(self, ids: Sequence[RecordId]) -> None:
        """They are gone from both sides."""
        self._db.execute("BEGIN")
        self._db.executemany("DELETE FROM seen WHERE key = ?", [(id_key(i),) for i in ids])
        self._db.execute("COMMIT")

    def start_over(self) -> None:
        """Trust nothing the target is said to hold: everything is compared or copied again."""
        self.distrust(-1)
        self._db.execute("DELETE FROM facts WHERE name = 'complete' OR name LIKE 'high:%'")

    def known(self) -> int:
        """How many ids are remembered."""
        return int(self._db.execute("SELECT count(*) FROM seen").fetchone()[0])

    def unseen(self, run: int) -> Iterator[list[RecordId]]:
        """Ids that this run has not met, in lists of at most 500."""
        last = b""
        query = "SELECT key, id FROM seen WHERE run < ? AND key > ? ORDER BY key LIMIT 500"
        while rows := self._db.execute(query, (run, last)).fetchall():
            last = rows[-1][0]
            yield [decode_id(text) for _, text in rows]

    # -- what is to be deleted, kept here and not in memory -------------------------------------

    def spare(self) -> None:
        """Delete nothing that an unfinished run wanted to."""
        self._db.execute("DELETE FROM doomed")

    def doom(self, ids: Sequence[RecordId]) -> None:
        """These are to be deleted."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR IGNORE INTO doomed VALUES (?, ?)", [(id_key(i), encode_id(i)) for i in ids]
        )
        self._db.execute("COMMIT")

    def count_doomed(self) -> int:
        """How many those are."""
        return int(self._db.execute("SELECT count(*) FROM doomed").fetchone()[0])

    def doomed(self) -> Iterator[list[RecordId]]:
        """They, in lists of at most 500."""
        last = b""
        query = "SELECT key, id FROM doomed WHERE key > ? ORDER BY key LIMIT 500"
        while rows := self._db.execute(query, (last,)).fetchall():
            last = rows[-1][0]
            yield [decode_id(text) for _, text in rows]

    def bury(self) -> None:
        """They are gone from both sides: forget them."""
        self._db.execute("BEGIN")
        self._db.execute("DELETE FROM seen WHERE key IN (SELECT key FROM doomed)")
        self._db.execute("DELETE FROM doomed")
        self._db.execute("COMMIT")


def _unusable(path: Path | str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"a sync cannot keep its state in {path} ({error}); pass another file")


def content_digests(batch: RecordBatch) -> list[bytes]:
    """16 bytes a row: BLAKE2b of text, metadata as typed JSON with sorted keys, and vectors bit for bit."""
    result = []
    columns = sorted(batch.columns(), key=lambda column: column[0])
    for row, (text, metadata) in enumerate(zip(batch.text_list, batch.metadata_list, strict=True)):
        hasher = blake2b(content_bytes(text, metadata), digest_size=16)
        for name, column in columns:
            value = column[row]
            if value is not None:
                hasher.update(b"\0" + name.encode())
                hasher.update(_vector_bytes(value))
        result.append(hasher.digest())
    return result


def content_bytes(text: str | None, metadata: dict[str, Any]) -> bytes:
    """Text and metadata in one canonical form."""
    return json.dumps([text, *to_json(metadata)], sort_keys=True).encode()


def _vector_bytes(value: Any) -> bytes:
    if isinstance(value, SparseVector):
        return bytes(value.indices.tobytes() + value.values.tobytes())
    return np.ascontiguousarray(value).tobytes()
