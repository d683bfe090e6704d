"""What a dedupe stage remembers in SQLite: the features of what it kept, and what it removed for what.

One row for each in-flight batch and rule, written in the transaction that commits the batch's cursor, so
that the memory is as old as the cursor at every instant.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from vecferry.dedupe.features import dtype_of
from vecferry.dedupe.matchers import Features, Verdicts
from vecferry.dedupe.rules import Dedupe
from vecferry.model import RecordBatch, dump_json, parse_json
from vecferry.model.vectors import Array

SNIPPET = 120
"""Characters of a text that examples show."""
_SNIPPETS_OF = 50_000

_TABLES = """
CREATE TABLE IF NOT EXISTS dedupe_kept (
    stage TEXT NOT NULL, rule INTEGER NOT NULL, first INTEGER NOT NULL, n INTEGER NOT NULL,
    features BLOB NOT NULL, groups BLOB, ids BLOB NOT NULL, texts BLOB, notes BLOB NOT NULL, tokens BLOB
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
    if "tokens" not in {row[1] for row in connection.execute("PRAGMA table_info(dedupe_kept)")}:
        connection.execute("ALTER TABLE dedupe_kept ADD COLUMN tokens BLOB")  # a job of an earlier version


def shown(batch: RecordBatch, rows: Array) -> list[str]:
    """The beginnings of some rows' texts."""
    texts = batch.text_list
    return [(texts[row] or "")[:SNIPPET] for row in rows.tolist()]


class Entry:
    """The log rows of one in-flight batch under one rule, as a commit hook."""

    def __init__(
        self, stage: str, rule: int, first: int, batch: RecordBatch, features: Features, verdicts: Verdicts
    ) -> None:
        new, gone = verdicts.new, np.flatnonzero(verdicts.entries >= 0)
        kept = features.take(new)
        self._kept = (
            stage, rule, first, len(new), kept.values.tobytes(),
            None if kept.group is None else kept.group.tobytes(),
            dump_json(batch.ids.take(new).encoded()),
            dump_json(shown(batch, new)) if first < _SNIPPETS_OF else None,
            dump_json(verdicts.notes),
            None if kept.tokens is None else _lines(kept.tokens),
        )  # fmt: skip
        self._removed = None
        if len(gone):
            scores = None if verdicts.scores is None else verdicts.scores[gone].tobytes()
            ids, texts = dump_json(batch.ids.take(gone).encoded()), dump_json(shown(batch, gone))
            self._removed = (stage, rule, ids, texts, verdicts.entries[gone].tobytes(), scores)

    def __call__(self, connection: sqlite3.Connection) -> None:
        """Write the rows."""
        connection.execute("INSERT INTO dedupe_kept VALUES (?,?,?,?,?,?,?,?,?,?)", self._kept)
        if self._removed:
            connection.execute("INSERT INTO dedupe_removed VALUES (?,?,?,?,?,?)", self._removed)


def kept_features(
    connection: sqlite3.Connection, stage: str, number: int, rule: Dedupe
) -> Iterator[tuple[Features, dict[str, Any]]]:
    """What was kept, inflight by inflight in order, with the notes."""
    columns = "n, features, groups, notes, tokens"
    query = f"SELECT {columns} FROM dedupe_kept WHERE stage = ? AND rule = ? ORDER BY rowid"  # noqa: S608
    for n, raw, groups, notes, tokens in connection.execute(query, (stage, number)):
        yield unpacked(rule, n, raw, groups, tokens), parse_json(notes)


def unpacked(rule: Dedupe, n: int, raw: bytes, groups: bytes | None, tokens: bytes | None) -> Features:
    """Features of ``n`` comparable rows from the bytes of their columns."""
    values = np.frombuffer(raw, dtype_of(rule))
    values = values.reshape(n, -1) if n else values.reshape(0, 0)
    group = None if groups is None else np.frombuffer(groups, np.uint64)
    texts = None if tokens is None else tokens.split(b"\n")
    return Features(values, np.ones(n, np.bool_), group, texts)


def _lines(tokens: Sequence[bytes]) -> bytes:
    """Tokens hold no line feed, being what stands between white space."""
    return b"\n".join(tokens)


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
        query = "SELECT ids, texts FROM dedupe_kept WHERE stage = ? AND rule = ? AND first = ? AND n > 0"
        row = sides[low].execute(query, (stage, rule, first)).fetchone()
        return parse_json(row[0]), parse_json(row[1]) if row[1] else []

    query = (
        "SELECT ids, texts, entries, scores FROM dedupe_removed WHERE stage = ? AND rule = ? ORDER BY rowid"
    )
    for ids, texts, entries, scores in connection.execute(query, (stage, rule)):
        alike = [None] * len(entries) if scores is None else np.frombuffer(scores, np.float32).tolist()
        numbers = np.frombuffer(entries, np.int64).tolist()
        for removed, text, entry, score in zip(
            parse_json(ids), parse_json(texts), numbers, alike, strict=False
        ):
            low = entry < seeded
            first = int(starts[low][np.searchsorted(starts[low], entry, side="right") - 1])
            names, snippets = kept(low, first)
            kept_text = snippets[entry - first] if snippets else None
            yield Removal(rule, removed, names[entry - first], score, text, kept_text)


def kept_count(connection: sqlite3.Connection, stage: str, rule: int) -> int:
    """How many records the rule remembers."""
    query = "SELECT COALESCE(SUM(n), 0) FROM dedupe_kept WHERE stage = ? AND rule = ?"
    return int(connection.execute(query, (stage, rule)).fetchone()[0])


def _starts(connection: sqlite3.Connection, stage: str, rule: int) -> Array:
    query = "SELECT first FROM dedupe_kept WHERE stage = ? AND rule = ? AND n > 0 ORDER BY first"
    return np.array([row[0] for row in connection.execute(query, (stage, rule))], dtype=np.int64)
