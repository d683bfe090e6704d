"""A look at the whole source before its second reading, for rules that cannot decide record by record.

`FirstPass` takes everything in and decides rule by rule, in an SQLite file that sorts on disk; `Decisions`
applies what that file says to the second reading. Records are told apart by id and by how often that id
had come before. A record that the first pass never saw passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.core.state import StateFile
from vecferry.dedupe.features import NO_TIME, features, matcher_for, times
from vecferry.dedupe.log import Removal, shown, unpacked
from vecferry.dedupe.rules import Dedupe
from vecferry.dedupe.similar import SimilarMatcher
from vecferry.errors import ConfigurationError
from vecferry.model import (
    RecordBatch,
    VectorRecord,
    decode_id,
    dump_json,
    encode_id,
    from_json,
    parse_json,
    to_json,
)
from vecferry.model.vectors import Array

_TABLES = """
CREATE TABLE IF NOT EXISTS records (
    row INTEGER PRIMARY KEY, key BLOB NOT NULL, id BLOB NOT NULL, text BLOB NOT NULL, whole BLOB,
    gone INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS features (
    rule INTEGER, row INTEGER, value BLOB NOT NULL, part BLOB, tokens BLOB, stamp INTEGER
);
CREATE TABLE IF NOT EXISTS pairs (
    rule INTEGER NOT NULL, row INTEGER NOT NULL, kept INTEGER NOT NULL, score REAL
);
CREATE TABLE IF NOT EXISTS merged (row INTEGER PRIMARY KEY, metadata BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS repeated (number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS decided (
    key BLOB, occurrence INTEGER, gone INTEGER NOT NULL, metadata BLOB, PRIMARY KEY (key, occurrence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_RANKS = {"last": "-row", "newest": "stamp IS NULL, -stamp, row", "oldest": "stamp IS NULL, stamp, row"}
_BATCH = 1024


class FirstPass:
    """Takes in a whole source, then decides.

    Args:
        path: the file to make; it appears, complete, when `resolve` returns.
    """

    def __init__(self, rules: Sequence[Dedupe], memory_keys: int, path: Path) -> None:
        self._rules, self._memory_keys, self._path = rules, memory_keys, path
        self._part = path.with_suffix(".part")
        self._part.unlink(missing_ok=True)
        # The file is thrown away unless it is renamed, so nothing needs to be synced before.
        self._file = StateFile(self._part, _TABLES, what="the first pass", durability="scratch")
        self._file.connection.execute("BEGIN")
        self._count = self._pinned = 0
        self._stored = any(rule.needs_records for rule in rules)

    def add(self, batch: RecordBatch, *, pinned: bool = False) -> None:
        """Take in one batch. ``pinned`` ones come first and always stay: they lie in the target."""
        rows = np.arange(len(batch))
        whole = [_pack(record) for record in batch.records()] if self._stored else [None] * len(batch)
        ids, texts = map(_blob, batch.ids.encoded()), map(_blob, shown(batch, rows))
        known = zip((rows + self._count).tolist(), _keys(batch), ids, texts, whole, strict=True)
        self._many("INSERT INTO records (row, key, id, text, whole) VALUES (?,?,?,?,?)", known)
        for number, rule in enumerate(self._rules):
            self._take_in(number, rule, batch, pinned=pinned)
        self._count += len(batch)
        self._pinned += len(batch) if pinned else 0

    def _take_in(self, number: int, rule: Dedupe, batch: RecordBatch, *, pinned: bool) -> None:
        stamps: list[int | None] = [None] * len(batch)
        if rule.keep in ("newest", "oldest"):
            found_times = times(rule, batch)
            stamps = [None if stamp == NO_TIME else stamp for stamp in found_times.tolist()]
            self._note("unreadable_times", stamps.count(None))
        if pinned and not rule.against_target:
            return
        found = features(rule, batch)
        width = found.values.shape[1] * found.values.itemsize
        raw = found.values.tobytes()
        rows = np.flatnonzero(found.has).tolist()
        values = (raw[row * width : (row + 1) * width] for row in rows)
        parts = [None] * len(rows) if found.group is None else [found.group[row].tobytes() for row in rows]
        tokens = [None] * len(rows) if found.tokens is None else [found.tokens[row] for row in rows]
        numbers, moments = [self._count + row for row in rows], [stamps[row] for row in rows]
        known = zip(repeat(number), numbers, values, parts, tokens, moments, strict=False)
        self._many("INSERT INTO features VALUES (?,?,?,?,?,?)", known)

    def _run(self, query: str, values: Sequence[Any] = ()) -> Any:
        return self._file.connection.execute(query, values)

    def _many(self, query: str, rows: Any) -> None:
        self._file.connection.executemany(query, rows)

    def _note(self, key: str, value: int) -> None:
        query = (
            "INSERT INTO notes VALUES (?,?) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value"
        )
        self._run(query, (key, value))

    # -- deciding -----------------------------------------------------------------------------

    def resolve(self) -> None:
        """Decide rule by rule, and leave the file."""
        for number, rule in enumerate(self._rules):
            if rule.near:
                self._resolve_near(number, rule)
            elif callable(rule.keep):
                self._resolve_chosen(number, rule)
            else:
                self._resolve_exact(number, rule)
            self._run(
                "UPDATE records SET gone = 1 FROM pairs p WHERE p.row = records.row AND p.rule = ?",
                (number,),
            )
            if rule.merge:
                self._merge(number)
        self._conclude()
        self._run("COMMIT")
        self._file.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._part.replace(self._path)

    def _ranked(self, rule: Dedupe, wanted: str, order: str = "") -> str:
        """Rows that are left, those of the target first and then the best: the first of equals stays."""
        rank = _RANKS.get(rule.keep, "row") if isinstance(rule.keep, str) else "row"
        best = f"row >= {self._pinned}, CASE WHEN row < {self._pinned} THEN row END, {rank}"
        source = "FROM features JOIN records USING (row) WHERE rule = ? AND NOT gone"
        return f"SELECT {wanted.format(best=best)} {source} ORDER BY {order}{best}"

    def _resolve_exact(self, number: int, rule: Dedupe) -> None:
        heads = (
            "row, first_value(row) OVER (PARTITION BY value ORDER BY {best}) AS head, "
            "row_number() OVER (ORDER BY value, {best}) AS place"
        )
        query = (
            f"INSERT INTO pairs SELECT ?, row, head, NULL FROM ({self._ranked(rule, heads)}) "  # noqa: S608
            f"WHERE row <> head AND row >= {self._pinned} ORDER BY place"
        )
        self._run(query, (number, number))

    def _resolve_chosen(self, number: int, rule: Dedupe) -> None:
        """Let the user's function choose within each cluster; what lies in the target stays."""
        ranked = self._run(self._ranked(rule, "value, row", "value, "), (number,))
        for _, equals in groupby(ranked, key=lambda found: found[0]):
            rows = sorted(row for _, row in equals)
            if len(rows) == 1:
                continue
            best = rows[0] if rows[0] < self._pinned else self._choose(rule, rows)
            pairs = [(number, row, best) for row in rows if row != best and row >= self._pinned]
            self._many("INSERT INTO pairs VALUES (?,?,?,NULL)", pairs)

    def _choose(self, rule: Dedupe, rows: list[int]) -> int:
        assert callable(rule.keep)
        records = [self._record(row) for row in rows]
        chosen = rule.keep(records)
        for row, record in zip(rows, records, strict=True):
            if record is chosen:
                return row
        raise ConfigurationError(
            "keep=callable must return one of the records it was given; "
            f"for {records[0].id!r} it returned {type(chosen).__name__}"
        )

    def _resolve_near(self, number: int, rule: Dedupe) -> None:
        """As the stream would, but best first: the winner of a cluster is met before the others."""
        matcher = matcher_for(rule, self._memory_keys)
        kept: list[int] = []
        ranked = self._run(self._ranked(rule, "row, value, part, tokens"), (number,))
        while found := ranked.fetchmany(_BATCH):
            rows, values, parts, tokens = zip(*found, strict=True)
            group = None if rule.within is None else b"".join(parts)
            texts = None if tokens[0] is None else b"\n".join(tokens)
            verdicts = matcher.match(unpacked(rule, len(rows), b"".join(values), group, texts))
            assert verdicts.scores is not None
            kept += [rows[row] for row in verdicts.new.tolist()]
            gone = [
                row for row in np.flatnonzero(verdicts.entries >= 0).tolist() if rows[row] >= self._pinned
            ]
            pairs = [(number, rows[i], kept[verdicts.entries[i]], float(verdicts.scores[i])) for i in gone]
            self._many("INSERT INTO pairs VALUES (?,?,?,?)", pairs)
        if isinstance(matcher, SimilarMatcher):
            for name, count in zip(("found", "due"), matcher.sample, strict=True):
                self._note(f"recall_{name}_{number}", count)

    def _merge(self, number: int) -> None:
        """Give each winner in the source the metadata of its losers, in the order of the source."""
        query = "SELECT kept, row FROM pairs WHERE rule = ? AND kept >= ? ORDER BY kept, row"
        clusters = self._run(query, (number, self._pinned)).fetchall()
        for winner, losers in groupby(clusters, key=lambda pair: pair[0]):
            record = self._record(winner)
            metadata = union(record.metadata, [self._record(row).metadata for _, row in losers])
            self._run(
                "UPDATE records SET whole = ? WHERE row = ?",
                (_pack(record.replace(metadata=metadata)), winner),
            )
            self._run("INSERT OR REPLACE INTO merged VALUES (?, ?)", (winner, dump_json(to_json(metadata))))

    def _record(self, row: int) -> VectorRecord:
        id_, text, body, types = parse_json(
            self._run("SELECT whole FROM records WHERE row = ?", (row,)).fetchone()[0]
        )
        return VectorRecord(id=decode_id(id_), text=text, metadata=from_json(body, types))

    def _conclude(self) -> None:
        """Write what `Decisions` looks up, by id and how often that came before in the source."""
        ours = f"FROM records WHERE row >= {self._pinned}"
        self._run(
            f"INSERT INTO repeated (key) SELECT key {ours} GROUP BY key HAVING COUNT(*) > 1 ORDER BY key"
        )
        again = "row_number() OVER (PARTITION BY key ORDER BY row) - 1 AS occurrence"
        for which, occurrence in (("NOT IN", "0 AS occurrence"), ("IN", again)):
            told = f"SELECT row, key, gone, {occurrence} {ours} AND key {which} (SELECT key FROM repeated)"  # noqa: S608
            self._run(
                f"INSERT INTO decided SELECT key, occurrence, gone, metadata FROM ({told}) "  # noqa: S608
                "LEFT JOIN merged USING (row) WHERE gone OR metadata IS NOT NULL"
            )
        for leftover in ("features", "merged"):
            self._run(f"DROP TABLE {leftover}")
        self._run("UPDATE records SET whole = NULL WHERE whole IS NOT NULL")


class Decisions:
    """What a first pass decided, applied to the second reading. Counts, so made anew for each reading."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, what="the dedupe decisions", read_only=True)
        self._seen: dict[int, int] = {}
        self._repeats = bool(self._file.value("SELECT EXISTS (SELECT 1 FROM repeated)"))

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def apply(self, batch: RecordBatch) -> tuple[RecordBatch, Array, Array]:
        """The batch with merged metadata, the rows that stay, and what `count` wants after a restart."""
        keys = _keys(batch)
        unique = list(dict.fromkeys(keys))
        decided: dict[Any, tuple[Any, Any]] = {}
        query = "SELECT key, occurrence, gone, metadata FROM decided WHERE key IN ({})"
        for key, occurrence, gone, metadata in self._file.chosen(query, unique):
            decided[key, occurrence] = (gone, metadata)
        numbers: Mapping[Any, Any] = {}
        if self._repeats:
            query = "SELECT key, number FROM repeated WHERE key IN ({})"
            numbers = dict(self._file.chosen(query, unique))  # type: ignore[arg-type]
        keep: list[int] = []
        repeats: list[int] = []
        merged: dict[int, bytes] = {}
        for row, key in enumerate(keys):
            number = numbers.get(key)
            occurrence = 0 if number is None else self._seen.get(number, 0)
            if number is not None:
                self._seen[number] = occurrence + 1
                repeats.append(number)
            gone, metadata = decided.get((key, occurrence), (0, None))
            if not gone:
                keep.append(row)
                if metadata is not None:
                    merged[row] = metadata
        return self._merged(batch, merged), np.array(keep, np.int64), np.array(repeats, np.int64)

    def count(self, repeats: Array) -> None:
        """Records of these repeated ids went by in an earlier run."""
        for number in repeats.tolist():
            self._seen[number] = self._seen.get(number, 0) + 1

    @staticmethod
    def _merged(batch: RecordBatch, merged: Mapping[int, bytes]) -> RecordBatch:
        if not merged:
            return batch
        metadata = list(batch.metadata_list)
        for row, raw in merged.items():
            metadata[row] = union(metadata[row], [from_json(*parse_json(raw))])
        return batch.replace(metadata=metadata)

    def notes(self) -> dict[str, int]:
        """Counts that the report shows."""
        return dict(self._file.rows("SELECT key, value FROM notes"))  # type: ignore[arg-type]

    def removals(self) -> Iterator[Removal]:
        """Everything that was decided against, rule by rule."""
        query = (
            "SELECT p.rule, gone.id, kept.id, p.score, gone.text, kept.text FROM pairs p "
            "JOIN records gone ON gone.row = p.row JOIN records kept ON kept.row = p.kept ORDER BY p.rowid"
        )
        for rule, gone, kept, score, text, kept_text in self._file.connection.execute(query):
            yield Removal(rule, _text(gone), _text(kept), score, _text(text), _text(kept_text))


def union(kept: Mapping[str, Any], removed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata of the kept record, completed. Its own values stay; lists are joined without repeats.

    >>> union({"lang": "en", "tags": ["a"]}, [{"lang": "de", "tags": ["b", "a"], "page": 3}])
    {'lang': 'en', 'tags': ['a', 'b'], 'page': 3}
    """
    result = dict(kept)
    for other in removed:
        for key, value in other.items():
            have = result.get(key)
            if isinstance(have, list) and isinstance(value, list):
                result[key] = joined = list(have)
                for item in value:
                    if item not in joined:
                        joined.append(item)
            elif have is None:
                result[key] = value
    return result


def _keys(batch: RecordBatch) -> list[bytes]:
    raw = batch.ids.keys.tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


def _pack(record: VectorRecord) -> bytes:
    return dump_json([encode_id(record.id), record.text, *to_json(record.metadata)])


def _blob(text: str) -> bytes:
    """Text as SQLite takes it, which refuses halves of surrogate pairs."""
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")
