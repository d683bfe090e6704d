"""Expected records in a temporary SQLite file, to be found again by id in any order."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    Kind,
    MultiColumn,
    RecordBatch,
    SparseColumn,
    VectorField,
    decode_id,
    from_json,
    id_key,
)
from vecferry.model.canonical import canonical_rows, parse_canonical

_ASK = 500


class Overtaken(Exception):
    """An id that comes twice was found in a later share before it was found in this one."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What the spool knows of a batch.

    Attributes:
        kept: the vectors of the records found for the first time, and the ids.
        forms: the canonical forms of these.
        first: the rows of the batch they belong to.
        unknown: the rows whose ids are not in the spool.
        again: the rows whose ids were found before.
    """

    kept: RecordBatch
    forms: list[bytes]
    first: list[int]
    unknown: list[int]
    again: list[int]


class Spool:
    """Records on disk: 16 bytes of key, the canonical form and the raw vectors of each.

    It belongs to the thread that made it.

    Args:
        schema: whose vector fields are kept, those of ``names``.
        folder: where the file is made; by default the system's temporary folder. It is removed on close.
        path: instead of ``folder``, a file that survives a killed process, to go on with: see `save`.
    """

    def __init__(
        self,
        schema: CollectionSchema,
        names: Sequence[str],
        folder: Path | None = None,
        *,
        path: Path | None = None,
    ) -> None:
        self._fields = [field for field in schema.fields if field.name in names]
        self._columns = [f"v{i}" for i in range(len(self._fields))]
        self._dtypes: dict[str, Any] = {}
        self._durable, self.keep = path is not None, False
        if path is None:
            handle, name = tempfile.mkstemp(".sqlite", "vecferry-verify-", folder)
            os.close(handle)
            path = Path(name)
        self._path = path
        self._open()

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None)
        journal = ("WAL", "NORMAL") if self._durable else ("OFF", "OFF")
        for pragma in (
            f"journal_mode={journal[0]}",
            f"synchronous={journal[1]}",
            "cache_size=-32768",
            "locking_mode=EXCLUSIVE",
        ):
            self._db.execute(f"PRAGMA {pragma}")
        kept = "".join(f", {c} BLOB" for c in self._columns)
        self._db.execute(f"CREATE TABLE IF NOT EXISTS r (key BLOB, doc BLOB, seen INTEGER DEFAULT 0{kept})")
        self._db.execute("CREATE TABLE IF NOT EXISTS progress (value TEXT)")
        self._db.execute("BEGIN")

    def saved(self) -> dict[str, Any] | None:
        """What the last `save` was given, if the file is from before."""
        row = self._db.execute("SELECT value FROM progress").fetchone()
        if row is None:
            return None
        value: dict[str, Any] = json.loads(row[0])
        self._dtypes = {name: np.dtype(text) for name, text in value.pop("dtypes").items()}
        return value

    def save(self, value: dict[str, Any]) -> None:
        """Commit everything so far together with ``value``."""
        if not self._durable:
            return
        dtypes = {name: np.dtype(dtype).str for name, dtype in self._dtypes.items()}
        self._db.execute("DELETE FROM progress")
        self._db.execute("INSERT INTO progress VALUES (?)", (json.dumps({**value, "dtypes": dtypes}),))
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if not self._durable or (kind is None and not self.keep):
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def put(self, batch: RecordBatch, **counts: bool) -> None:
        """Keep the records; of one id the last wins."""
        docs = canonical_rows(batch, **counts)
        for name, column in batch.columns():
            self._dtypes.setdefault(name, column.values.dtype)
        blobs = [list(_pack(batch.column(field.name), len(batch))) for field in self._fields]
        rows = zip(map(id_key, batch.id_list), docs, *blobs, strict=True)
        names = ", ".join(["key", "doc", *self._columns])
        marks = ", ".join("?" * (2 + len(self._columns)))
        self._db.executemany(f"INSERT INTO r ({names}) VALUES ({marks})", rows)  # noqa: S608

    def index(self) -> None:
        """End of `put`: forget all but the last record of each id, and make `take` fast."""
        self._db.execute("CREATE INDEX IF NOT EXISTS k ON r (key)")
        self._db.execute(
            "DELETE FROM r WHERE key IN (SELECT key FROM r GROUP BY key HAVING count(*) > 1) "
            "AND rowid NOT IN (SELECT max(rowid) FROM r GROUP BY key HAVING count(*) > 1)"
        )

    def take(self, batch: RecordBatch, share: int = 0) -> Taken:
        """Look up the ids of ``batch``, which belongs to the share of that number.

        Raises:
            Overtaken: if an id was found before in a later share.
        """
        ids = batch.id_list
        keys = [id_key(i) for i in ids]
        found = self._find(list(dict.fromkeys(keys)))
        first: list[int] = []
        unknown: list[int] = []
        again: list[int] = []
        taken: set[bytes] = set()
        for row, key in enumerate(keys):
            if key not in found:
                unknown.append(row)
            elif found[key][2] > share + 1:
                raise Overtaken
            elif found[key][2] or key in taken:
                again.append(row)
            else:
                taken.add(key)
                first.append(row)
        rows = [found[keys[row]] for row in first]
        seen = [(share + 1, row[0]) for row in rows]
        self._db.executemany("UPDATE r SET seen = ? WHERE rowid = ?", seen)
        kept = RecordBatch(ids=[ids[row] for row in first], **self._vectors([row[3:] for row in rows]))
        return Taken(kept, [row[1] for row in rows], first, unknown, again)

    def forget(self) -> None:
        """As if nothing had been taken yet."""
        self._db.execute("UPDATE r SET seen = 0")

    def unseen(self, size: int, after: int | None = None) -> Iterator[RecordBatch]:
        """What was never taken, in the order of `put`. Each batch has a cursor to go on ``after``."""
        names = ", ".join(["doc", "rowid", *self._columns])
        query = f"SELECT {names} FROM r WHERE seen = 0 AND rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608
        while rows := self._db.execute(query, (after or 0, size)).fetchall():
            after = rows[-1][1]
            yield self._batch(rows).replace(cursor=after)

    def _find(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        names = ", ".join(["key", "rowid", "doc", "seen", *self._columns])
        found: dict[bytes, Any] = {}
        for start in range(0, len(keys), _ASK):
            part = keys[start : start + _ASK]
            marks = ", ".join("?" * len(part))
            rows = self._db.execute(f"SELECT {names} FROM r WHERE key IN ({marks})", part)  # noqa: S608
            found.update((row[0], row[1:]) for row in rows)
        return found

    def _batch(self, rows: Sequence[Any]) -> RecordBatch:
        parsed = [parse_canonical(row[0]) for row in rows]
        return RecordBatch(
            ids=[decode_id(id_) for id_, _, _, _ in parsed],
            **self._vectors([row[2:] for row in rows]),
            texts=[text for _, text, _, _ in parsed],
            metadata=[from_json(metadata, types) for _, _, metadata, types in parsed],
        )

    def _vectors(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The columns that `RecordBatch` takes, of rows that hold the vectors of each field."""
        columns: dict[str, Any] = {"vectors": {}, "sparse_vectors": {}}
        for i, field in enumerate(self._fields):
            dtype = self._dtypes.get(field.name, np.dtype(field.dtype.numpy))
            kind = "sparse_vectors" if field.kind is Kind.SPARSE else "vectors"
            columns[kind][field.name] = _unpack([row[i] for row in rows], field, dtype)
        return columns


def _pack(column: Any, rows: int) -> Iterator[bytes | None]:
    for row in range(rows):
        value = None if column is None else column[row]
        if value is None:
            yield None
        elif isinstance(column, SparseColumn):
            yield value.indices.tobytes() + value.values.tobytes()
        else:
            yield value.tobytes()


def _unpack(blobs: Sequence[bytes | None], field: VectorField, dtype: Any) -> Any:
    mask = np.array([blob is not None for blob in blobs], dtype=np.bool_)
    present = None if mask.all() else mask
    if field.kind is Kind.SPARSE:
        halves = [len(blob or b"") // 2 for blob in blobs]
        indices = np.frombuffer(
            b"".join((b or b"")[:h] for b, h in zip(blobs, halves, strict=True)), np.uint32
        )
        values = np.frombuffer(
            b"".join((b or b"")[h:] for b, h in zip(blobs, halves, strict=True)), np.float32
        )
        return SparseColumn(_offsets([h // 4 for h in halves]), indices, values, present)
    longest = max((len(b) for b in blobs if b is not None), default=0) // dtype.itemsize
    width = field.dtype.width(field.dim) if field.dim else longest
    if field.kind is Kind.MULTI:
        flat = np.frombuffer(b"".join(b or b"" for b in blobs), dtype).reshape(-1, width or 1)
        counts = [len(b or b"") // (dtype.itemsize * (width or 1)) for b in blobs]
        return MultiColumn(flat, _offsets(counts), present)
    empty = bytes(width * dtype.itemsize)
    flat = np.frombuffer(b"".join(empty if b is None else b for b in blobs), dtype)
    return DenseColumn(flat.reshape(len(blobs), width), present)


def _offsets(counts: Sequence[int]) -> Any:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
