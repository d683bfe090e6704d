"""What a dedupe stage remembers in SQLite: the features of what it kept, and what it removed for what.

One row for each in-flight batch and rule, written in the transaction that commits the batch's cursor, so
that the memory is as old as the cursor at every instant.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from vecferry.dedupe.features import Features, dtype_of
from vecferry.dedupe.matchers import Verdicts
from vecferry.dedupe.rules import Dedupe
from vecferry.model import RecordBatch, encode_id
from vecferry.model.vectors import Array

SNIPPET = 120
"""Characters of a text that examples show."""
_SNIPPETS_OF = 50_000

_TABLES = """
CREATE TABLE IF NOT EXISTS dedupe_kept (
    stage TEXT NOT NULL, rule INTEGER NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL,
    features BLOB NOT NULL, groups BLOB, ids BLOB NOT NULL, texts BLOB, notes BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS dedupe_kept_first ON dedupe_kept (stage, rule, first);
CREATE TABLE IF NOT EXISTS dedupe_removed (
    stage TEXT NOT NULL, rule INTEGER NOT NULL, ids BLOB NOT NULL, texts BLOB NOT NULL,
    entries BLOB NOT NULL, scores BLOB
);
CREATE TABLE IF NOT EXISTS dedupe_parcel (
    stage TEXT NOT NULL, removed INTEGER NOT NULL, bytes INTEGER NOT NULL, characters INTEGER NOT NULL,
    repeats BLOB
);
CREATE TABLE IF NOT EXISTS dedupe_token (stage TEXT PRIMARY KEY, token TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Removal:
    """One removed record: the rule (its position), the two typed ids, how alike they are, their texts."""

    rule: int
    removed: str
    kept: str
    score: float | None = None
    removed_text: str | None = None
    kept_text: str | None = None


def create(connection: sqlite3.Connection) -> None:
    """Make the tables if they are not there."""
    for statement in filter(str.strip, _TABLES.split(";")):
        connection.execute(statement)


def packed_ids(batch: RecordBatch, rows: Array) -> bytes:
    """The typed ids of some rows as JSON."""
    ids = batch.id_list
    return _packed([encode_id(ids[row]) for row in rows.tolist()])


def packed_texts(batch: RecordBatch, rows: Array) -> bytes:
    """The beginnings of some rows' texts as JSON."""
    texts = batch.text_list
    return _packed([(texts[row] or "")[:SNIPPET] for row in rows.tolist()])


def _packed(texts: list[str]) -> bytes:
    try:
        return orjson.dumps(texts)
    except TypeError:  # lone surrogates, which JSON cannot hold
        return orjson.dumps([text.encode("utf-8", "backslashreplace").decode() for text in texts])


class Entry:
    """The log rows of one in-flight batch under one rule, as a commit hook."""

    def __init__(
        self, stage: str, rule: int, first: int, batch: RecordBatch, features: Features, verdicts: Verdicts
    ) -> None:
        new = verdicts.new
        groups = None if features.group is None else features.group[new].tobytes()
        texts = packed_texts(batch, new) if first < _SNIPPETS_OF else None
        self._kept = (
            stage, rule, first, len(new), features.values[new].tobytes(), groups,
            packed_ids(batch, new), texts, orjson.dumps(verdicts.notes),
        )  # fmt: skip
        self._removed = None
        gone = np.flatnonzero(verdicts.entries >= 0)
        if len(gone):
            scores = None if verdicts.scores is None else verdicts.scores[gone].tobytes()
            ids, shown = packed_ids(batch, gone), packed_texts(batch, gone)
            self._removed = (stage, rule, ids, shown, verdicts.entries[gone].tobytes(), scores)

    def __call__(self, connection: sqlite3.Connection) -> None:
        """Write the rows."""
        connection.execute("INSERT INTO dedupe_kept VALUES (?,?,?,?,?,?,?,?,?)", self._kept)
        if self._removed:
            connection.execute("INSERT INTO dedupe_removed VALUES (?,?,?,?,?,?)", self._removed)


def kept_features(
    connection: sqlite3.Connection, stage: str, number: int, rule: Dedupe
) -> Iterator[tuple[Features, dict[str, Any]]]:
    """What was kept, inflight by inflight in order, with the notes."""
    query = "SELECT n, features, groups, notes FROM dedupe_kept WHERE stage = ? AND rule = ? ORDER BY rowid"
    for n, raw, groups, notes in connection.execute(query, (stage, number)):
        group = None if groups is None else np.frombuffer(groups, np.uint64)
        values = np.frombuffer(raw, dtype_of(rule))
        values = values.reshape(n, -1) if n else values.reshape(0, 0)
        yield Features(values, np.ones(n, np.bool_), group), orjson.loads(notes)


def removals(
    connection: sqlite3.Connection, before: sqlite3.Connection, stage: str, rule: int
) -> Iterator[Removal]:
    """Everything a rule removed, in order.

    Args:
        before: the log of what the target held, whose entries come first.
    """
    seeded = kept_count(before, stage, rule)
    sides = {True: before, False: connection}
    starts = {low: _starts(side, stage, rule) for low, side in sides.items()}

    @lru_cache(maxsize=512)
    def kept(low: bool, first: int) -> tuple[list[str], list[str]]:
        row = (
            sides[low]
            .execute(
                "SELECT ids, texts FROM dedupe_kept WHERE stage = ? AND rule = ? AND first = ? AND n > 0",
                (stage, rule, first),
            )
            .fetchone()
        )
        return orjson.loads(row[0]), orjson.loads(row[1]) if row[1] else []

    query = (
        "SELECT ids, texts, entries, scores FROM dedupe_removed WHERE stage = ? AND rule = ? ORDER BY rowid"
    )
    for ids, texts, entries, scores in connection.execute(query, (stage, rule)):
        alike = [None] * len(entries) if scores is None else np.frombuffer(scores, np.float32).tolist()
        numbers = np.frombuffer(entries, np.int64).tolist()
        for removed, text, entry, score in zip(
            orjson.loads(ids), orjson.loads(texts), numbers, alike, strict=False
        ):
            low = entry < seeded
            first = int(starts[low][np.searchsorted(starts[low], entry, side="right") - 1])
            names, shown = kept(low, first)
            kept_text = shown[entry - first] if shown else None
            yield Removal(rule, removed, names[entry - first], score, text, kept_text)


def kept_count(connection: sqlite3.Connection, stage: str, rule: int) -> int:
    """How many records the rule remembers."""
    query = "SELECT COALESCE(SUM(n), 0) FROM dedupe_kept WHERE stage = ? AND rule = ?"
    return int(connection.execute(query, (stage, rule)).fetchone()[0])


def _starts(connection: sqlite3.Connection, stage: str, rule: int) -> Array:
    query = "SELECT first FROM dedupe_kept WHERE stage = ? AND rule = ? AND n > 0 ORDER BY first"
    return np.array([row[0] for row in connection.execute(query, (stage, rule))], dtype=np.int64)
