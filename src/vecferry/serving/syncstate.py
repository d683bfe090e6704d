"""What a sync remembers between its runs: a state file, held by one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.core.state import StateFile
from vecferry.model import RecordBatch, RecordId, decode_id, encode_id, id_key
from vecferry.model.canonical import canonical_rows
from vecferry.verifying.digest import hash_vectors

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, id TEXT NOT NULL, digest BLOB, run INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doomed (key BLOB PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""
_FORMAT = 2
"""Of the digests. Those of another format equal none: what they stand for is compared again."""


class SyncState:
    """Digests by id, and facts such as a cursor.

    Raises:
        JobLockedError: while another process holds it.
        ConfigurationError: if there can be no such file, or it is another kind of file.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = StateFile(
            path, _SCHEMA, what="a sync's state", hint="pass another file", timeout=0.1, exclusive=True
        )
        if self.get("format") != _FORMAT:
            self.distrust(-1)
            self.set("format", _FORMAT)

    def __enter__(self) -> SyncState:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, name: str) -> Any:
        """A fact, ``None`` if it was never set."""
        value = self._file.value("SELECT value FROM facts WHERE name = ?", (name,))
        return None if value is None else json.loads(str(value))

    def set(self, name: str, value: Any) -> None:
        """Remember a fact, durably."""
        self._file.execute("REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def digests(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The digest known for each key, ``None`` where there is none."""
        query = "SELECT key, digest FROM seen WHERE key IN ({})"
        found: dict[Any, Any] = dict(self._file.chosen(query, keys))  # type: ignore[arg-type]
        return [found.get(key) for key in keys]

    def saw(
        self, ids: Sequence[RecordId], keys: Sequence[bytes], digests: Sequence[bytes], run: int
    ) -> None:
        """These were there in this run, with this content, and the target has it."""
        rows = [(key, encode_id(i), d, run) for i, key, d in zip(ids, keys, digests, strict=True)]
        self._file.executemany("REPLACE INTO seen VALUES (?, ?, ?, ?)", rows)

    def distrust(self, run: int) -> None:
        """Forget the digests of what runs after this one saw: the empty digest equals none."""
        self._file.execute("UPDATE seen SET digest = x'' WHERE run > ?", (run,))

    def forget(self, ids: Sequence[RecordId]) -> None:
        """They are gone from both sides."""
        self._file.executemany("DELETE FROM seen WHERE key = ?", [(id_key(i),) for i in ids])

    def start_over(self) -> None:
        """Trust nothing the target is said to hold: everything is compared or copied again."""
        self.distrust(-1)
        self._file.execute("DELETE FROM facts WHERE name = 'complete' OR name LIKE 'high:%'")

    def known(self) -> int:
        """How many ids are remembered."""
        return self._count("seen")

    def unseen(self, run: int) -> Iterator[list[RecordId]]:
        """Ids that this run has not met, in lists of at most 500."""
        return self._ids("seen WHERE run < ?", run)

    # -- what is to be deleted, kept here and not in memory -------------------------------------

    def unmark(self) -> None:
        """Delete nothing that an unfinished run wanted to."""
        self._file.execute("DELETE FROM doomed")

    def mark_deleted(self, ids: Sequence[RecordId]) -> None:
        """These are to be deleted."""
        rows = [(id_key(i), encode_id(i)) for i in ids]
        self._file.executemany("INSERT OR IGNORE INTO doomed VALUES (?, ?)", rows)

    def count_marked(self) -> int:
        """How many those are."""
        return self._count("doomed")

    def marked(self) -> Iterator[list[RecordId]]:
        """They, in lists of at most 500."""
        return self._ids("doomed WHERE 1 = ?", 1)

    def purge(self) -> None:
        """They are gone from both sides: forget them."""
        with self._file.transaction():
            self._file.execute("DELETE FROM seen WHERE key IN (SELECT key FROM doomed)")
            self._file.execute("DELETE FROM doomed")

    def _count(self, table: str) -> int:
        return int(self._file.value(f"SELECT count(*) FROM {table}") or 0)  # noqa: S608

    def _ids(self, condition: str, value: int) -> Iterator[list[RecordId]]:
        query = f"SELECT key, id FROM {condition} AND key > ? ORDER BY key LIMIT 500"  # noqa: S608
        last: Any = b""
        while rows := self._file.rows(query, (value, last)):
            last = rows[-1][0]
            yield [decode_id(str(text)) for _, text in rows]


def content_digests(batch: RecordBatch) -> list[bytes]:
    """16 bytes a row: BLAKE2b of the canonical form without the id, and of the vectors bit for bit."""
    none = np.zeros((len(batch), 2), np.uint64)
    rows = canonical_rows(batch.replace(ids=np.zeros(len(batch), np.int64)))
    for name, column in sorted(batch.columns(), key=lambda pair: pair[0]):
        hashes = hash_vectors(column, none, str(column.values.dtype))
        there, mark = column.present, b"\0" + name.encode() + b"\0"
        rows = [row + mark + hashes[i].tobytes() if there[i] else row for i, row in enumerate(rows)]
    return [blake2b(row, digest_size=16).digest() for row in rows]
