"""What a first pass decided, applied to the second reading of the source.

A SQLite file holds the removed records, by id and by how often that id had come before, each with the
record it was removed for. A record that the first pass never saw passes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson

from vecferry.dedupe.features import id_keys
from vecferry.dedupe.ledger import KeyLedger
from vecferry.dedupe.log import Removal
from vecferry.dedupe.merge import union
from vecferry.model import RecordBatch, VectorRecord, decode_id, encode_id, from_json, to_json
from vecferry.model.vectors import Array

TABLES = """
CREATE TABLE ids (first INTEGER PRIMARY KEY, ids BLOB NOT NULL, texts BLOB NOT NULL);
CREATE TABLE pairs (
    rule INTEGER NOT NULL, removed BLOB NOT NULL, kept BLOB NOT NULL, tags BLOB NOT NULL, scores BLOB
);
CREATE TABLE repeated (keys BLOB NOT NULL);
CREATE TABLE merged (tag BLOB PRIMARY KEY, metadata BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE notes (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records (row INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""


class Decisions:
    """What a first pass decided, applied to the second reading. Counts, so made anew for each reading."""

    def __init__(self, path: Path, memory_keys: int) -> None:
        self._file = sqlite3.connect(path, check_same_thread=False)
        self._removed = KeyLedger(memory_keys)
        for (tags,) in self._file.execute("SELECT tags FROM pairs ORDER BY rowid"):
            self._removed.add(np.frombuffer(tags, np.uint64).reshape(-1, 2))
        self._repeated = KeyLedger(memory_keys)
        for (keys,) in self._file.execute("SELECT keys FROM repeated ORDER BY rowid"):
            self._repeated.add(np.frombuffer(keys, np.uint64).reshape(-1, 2))
        self._seen = np.zeros(len(self._repeated), dtype=np.int64)
        self._merges = self._file.execute("SELECT COUNT(*) FROM merged").fetchone()[0] > 0

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def apply(self, batch: RecordBatch) -> tuple[RecordBatch, Array, Array]:
        """The batch with merged metadata, the rows that stay, and what `count` wants after a restart."""
        keys = id_keys(batch)
        repeats = self._repeated.find(keys)
        occurrence = np.zeros(len(batch), dtype=np.int64)
        for row in np.flatnonzero(repeats >= 0).tolist():
            occurrence[row] = self._seen[repeats[row]]
            self._seen[repeats[row]] += 1
        tags = tags_of(keys, occurrence)
        keep = np.flatnonzero(self._removed.find(tags) < 0)
        return self._merged(batch, keep, tags), keep, repeats[repeats >= 0]

    def count(self, repeats: Array) -> None:
        """Records of these repeated ids went by in an earlier run."""
        np.add.at(self._seen, repeats, 1)

    def _merged(self, batch: RecordBatch, keep: Array, tags: Array) -> RecordBatch:
        if not self._merges:
            return batch
        metadata = list(batch.metadata_list)
        query = "SELECT metadata FROM merged WHERE tag = ?"
        for row in keep.tolist():
            found = self._file.execute(query, (tags[row].tobytes(),)).fetchone()
            if found:
                metadata[row] = union(metadata[row], [unpack(found[0]).metadata])
        return batch.replace(metadata=metadata)

    def notes(self) -> dict[str, int]:
        """Counts that the report shows."""
        return dict(self._file.execute("SELECT key, value FROM notes").fetchall())

    def removals(self) -> Iterator[Removal]:
        """Everything that was decided against, rule by rule."""
        starts = np.array([row[0] for row in self._file.execute("SELECT first FROM ids ORDER BY first")])

        @lru_cache(maxsize=512)
        def page(first: int) -> tuple[list[str], list[str]]:
            query = "SELECT ids, texts FROM ids WHERE first = ?"
            ids, texts = self._file.execute(query, (first,)).fetchone()
            return orjson.loads(ids), orjson.loads(texts)

        def look(row: int) -> tuple[str, str]:
            first = int(starts[np.searchsorted(starts, row, side="right") - 1])
            ids, texts = page(first)
            return ids[row - first], texts[row - first]

        query = "SELECT rule, removed, kept, scores FROM pairs ORDER BY rowid"
        for rule, removed, kept, scores in self._file.execute(query):
            pairs = zip(np.frombuffer(removed, np.int64).tolist(), np.frombuffer(kept, np.int64).tolist(),
                        strict=True)  # fmt: skip
            alike = None if scores is None else np.frombuffer(scores, np.float32).tolist()
            for place, (gone, stays) in enumerate(pairs):
                (gone_id, gone_text), (stays_id, stays_text) = look(gone), look(stays)
                score = None if alike is None else alike[place]
                yield Removal(rule, gone_id, stays_id, score, gone_text, stays_text)


def tags_of(keys: Array, occurrence: Array) -> Array:
    """Keys of (id, how often it came before): the id's own key the first time."""
    tags = np.array(keys, dtype=np.uint64)
    # An odd multiplier spreads the small numbers over all bits (Fibonacci hashing, D. Knuth, TAOCP 6.4).
    tags[:, 0] ^= occurrence.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return tags


def pack(record: VectorRecord) -> bytes:
    values, types = to_json(record.metadata)
    return orjson.dumps([encode_id(record.id), record.text, values, types])


def unpack(raw: bytes) -> VectorRecord:
    id_, text, values, types = orjson.loads(raw)
    return VectorRecord(id=decode_id(id_), text=text, metadata=from_json(values, types))
