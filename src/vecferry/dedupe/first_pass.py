"""A look at the whole source before its second reading, for rules that cannot decide record by record.

`FirstPass` takes everything in and decides rule by rule; `Decisions` applies the file it leaves to the
second reading. Records are told apart by id and by how often that id had come before. A record that the
first pass never saw passes.

What the rules look at lies in temporary files. Equal keys are found by sorting shares of them that fit into
memory, so that five bytes a record stay there, whatever the size of the source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np

from vecferry.core.durable import replace_durably
from vecferry.core.state import StateFile
from vecferry.dedupe.exact import KeyLedger, first_of_equals
from vecferry.dedupe.features import NO_TIME, dtype_of, features, id_keys, matcher_for, times
from vecferry.dedupe.log import Removal, shown
from vecferry.dedupe.matchers import Features
from vecferry.dedupe.rules import Dedupe
from vecferry.dedupe.similar import SimilarMatcher
from vecferry.dedupe.spill import Blobs, Rows
from vecferry.errors import ConfigurationError, SchemaMismatchError
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
CREATE TABLE IF NOT EXISTS ids (first INTEGER PRIMARY KEY, ids BLOB NOT NULL, texts BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS pairs (
    rule INTEGER NOT NULL, removed BLOB NOT NULL, kept BLOB NOT NULL, tags BLOB NOT NULL, scores BLOB
);
CREATE TABLE IF NOT EXISTS repeated (keys BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS merged (tag BLOB PRIMARY KEY, metadata BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (row INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""
_SHARE = 4_000_000
_BLOCK = 1 << 16
_PAGE = 64  # ids and texts that are written, and read again, together
_BATCH = 1024
_LAST_OF_ALL = np.iinfo(np.int64).max
_NONE = np.empty(0, dtype=np.int64)


class _Looks:
    """What one rule looks at, of the records it can compare, in temporary files."""

    def __init__(self, rule: Dedupe) -> None:
        self.rule = rule
        self.rows = Rows(np.int64, 1)
        self.values: Rows | None = None
        self._groups = Rows(np.uint64, 1)
        self._times = Rows(np.int64, 1)
        self._tokens = Blobs()

    def append(self, first: int, found: Features, stamps: Array | None) -> None:
        """Take in the comparable rows of a batch that begins with record number ``first``."""
        places = np.flatnonzero(found.has)
        if not len(places):
            return
        width = found.values.shape[1]
        self.values = self.values or Rows(dtype_of(self.rule), width)
        if width != self.values.width:
            raise SchemaMismatchError(
                f"by={self.rule.by!r} compares vectors of one length, "
                f"and found {self.values.width} and {width} dimensions; name one field with field="
            )
        self.rows.append((places + first)[:, None])
        self.values.append(found.values[places])
        if found.group is not None:
            self._groups.append(found.group[places][:, None])
        if stamps is not None:
            self._times.append(stamps[places][:, None])
        if found.tokens is not None:
            for place in places.tolist():
                self._tokens.append(found.tokens[place])

    def take(self, places: Array) -> Features:
        """The features at these places."""
        assert self.values is not None
        group = self._groups.take(places)[:, 0] if self.rule.within is not None else None
        tokens = [self._tokens[place] for place in places.tolist()] if self.rule.by == "minhash" else None
        return Features(self.values.take(places), np.ones(len(places), np.bool_), group, tokens)

    def ranks(self, places: Array, rows: Array) -> Array:
        """Who stays: lower is better; equals in the order of the source."""
        if self.rule.keep == "last":
            return -rows
        if self.rule.keep not in ("newest", "oldest"):
            return rows
        stamps = self._times.take(places)[:, 0]
        known = stamps != NO_TIME
        ranks = np.full(len(places), _LAST_OF_ALL)
        ranks[known] = -stamps[known] if self.rule.keep == "newest" else stamps[known]
        return ranks


class FirstPass:
    """Takes in a whole source, then decides.

    Args:
        path: the file to make; it appears, complete, when `resolve` returns.
    """

    def __init__(self, rules: Sequence[Dedupe], memory_keys: int, path: Path) -> None:
        self._rules, self._memory_keys, self._path = rules, memory_keys, path
        self._part = path.with_suffix(".part")
        self._part.unlink(missing_ok=True)
        # The file is thrown away unless it is renamed, so nothing needs to be synced before that.
        self._file = StateFile(self._part, _TABLES, what="the first pass", durability="scratch")
        self._file.execute("BEGIN")
        self._count = self._pinned = 0
        self._keys = Rows(np.uint64, 2)
        self._looks = [_Looks(rule) for rule in rules]
        self._notes: Counter[str] = Counter()
        self._stored = any(rule.needs_records for rule in rules)

    def add(self, batch: RecordBatch, *, pinned: bool = False) -> None:
        """Take in one batch. ``pinned`` ones come first and always stay: they lie in the target."""
        if not len(batch):
            return
        self._keys.append(id_keys(batch))
        ids, texts = batch.ids.encoded(), shown(batch, np.arange(len(batch)))
        self._file.executemany(
            "INSERT INTO ids VALUES (?,?,?)",
            (
                (self._count + at, dump_json(ids[at : at + _PAGE]), dump_json(texts[at : at + _PAGE]))
                for at in range(0, len(batch), _PAGE)
            ),
        )
        for looks in self._looks:
            self._take_in(looks, batch, pinned=pinned)
        if self._stored:
            records = ((row, _pack(record)) for row, record in enumerate(batch.records(), self._count))
            self._file.executemany("INSERT INTO records VALUES (?,?)", records)
        self._count += len(batch)
        self._pinned += len(batch) if pinned else 0

    def _take_in(self, looks: _Looks, batch: RecordBatch, *, pinned: bool) -> None:
        rule, stamps = looks.rule, None
        if rule.keep in ("newest", "oldest"):
            stamps = times(rule, batch)
            self._notes["unreadable_times"] += int((stamps == NO_TIME).sum())
        if rule.against_target or not pinned:
            looks.append(self._count, features(rule, batch), stamps)

    # -- deciding -----------------------------------------------------------------------------

    def resolve(self) -> None:
        """Decide rule by rule, and leave the file."""
        alive = np.ones(self._count, dtype=np.bool_)
        occurrence = self._occurrences()
        for number, looks in enumerate(self._looks):
            for losers, winners, alike in self._resolved(number, looks, alive):
                ours = losers >= self._pinned
                removed, kept = losers[ours], winners[ours]
                alive[removed] = False
                scores = None if alike is None else alike[ours]
                self._write_pairs(number, removed, kept, scores, occurrence)
                if looks.rule.merge:
                    self._merge(removed, kept, occurrence)
        self._file.executemany("INSERT INTO notes VALUES (?,?)", list(self._notes.items()))
        self._file.execute("DROP TABLE records")
        self._file.execute("COMMIT")
        self._file.close()
        replace_durably(self._part, self._path)

    def _resolved(
        self, number: int, looks: _Looks, alive: Array
    ) -> Iterator[tuple[Array, Array, Array | None]]:
        """Rows that go, the rows they go for, and how alike the two are."""
        if looks.values is None:
            return
        numbers = looks.rows.view()[:, 0]
        if looks.rule.near:
            yield self._near(number, looks, np.flatnonzero(alive[numbers]))
            return
        for places in _shares(looks.values, lambda block: alive[numbers[block]]):
            yield (*self._equals(looks, places), None)

    def _ordered(self, looks: _Looks, places: Array, *keys: Array) -> tuple[Array, Array]:
        """Places sorted by ``keys``, those of the target first and then the best; and their rows."""
        rows = looks.rows.take(places)[:, 0]
        ranks = np.where(rows < self._pinned, rows, looks.ranks(places, rows))
        order = np.lexsort((rows, ranks, rows >= self._pinned, *keys))
        return order, rows[order]

    def _equals(self, looks: _Looks, places: Array) -> tuple[Array, Array]:
        """Losers and their winners among rows with equal keys."""
        assert looks.values is not None
        keys = looks.values.take(places)
        alike = _not_alone(keys[:, 0])
        keys = keys[alike]
        order, rows = self._ordered(looks, places[alike], keys[:, 1], keys[:, 0])
        starts = np.ones(len(order), dtype=np.bool_)
        starts[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        heads = rows[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
        removed, kept = rows[~starts], heads[~starts]
        return self._chosen(looks.rule, removed, kept) if callable(looks.rule.keep) else (removed, kept)

    def _chosen(self, rule: Dedupe, removed: Array, kept: Array) -> tuple[Array, Array]:
        """Let the user's function choose within each cluster; what lies in the target stays."""
        losers: list[int] = []
        winners: list[int] = []
        pairs = zip(kept.tolist(), removed.tolist(), strict=True)
        for head, equals in groupby(pairs, key=lambda pair: pair[0]):
            rows = sorted([head, *(row for _, row in equals)])
            best = head if head < self._pinned else self._choose(rule, rows)
            losers += [row for row in rows if row != best]
            winners += [best] * (len(rows) - 1)
        return np.array(losers, dtype=np.int64), np.array(winners, dtype=np.int64)

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

    def _near(self, number: int, looks: _Looks, places: Array) -> tuple[Array, Array, Array]:
        """As the stream would, but best first: the winner of a cluster is met before the others."""
        matcher = matcher_for(looks.rule, self._memory_keys)
        order, rows = self._ordered(looks, places)
        places = places[order]
        kept_rows = Rows(np.int64, 1)
        removed, kept, scores = [_NONE], [_NONE], [np.empty(0, np.float32)]
        for start in range(0, len(places), _BATCH):
            part = rows[start : start + _BATCH]
            verdicts = matcher.match(looks.take(places[start : start + _BATCH]))
            kept_rows.append(part[verdicts.new][:, None])
            gone = np.flatnonzero(verdicts.entries >= 0)
            assert verdicts.scores is not None
            removed.append(part[gone])
            kept.append(kept_rows.take(verdicts.entries[gone])[:, 0])
            scores.append(verdicts.scores[gone])
        if isinstance(matcher, SimilarMatcher):
            for name, count in zip(("found", "due"), matcher.sample, strict=True):
                self._notes[f"recall_{name}_{number}"] += count
        return np.concatenate(removed), np.concatenate(kept), np.concatenate(scores)

    # -- writing down -------------------------------------------------------------------------

    def _occurrences(self) -> Array:
        """How often the id of each record of the source came before; ids that repeat are written down."""
        count = np.zeros(self._count, dtype=np.uint32)
        for places in _shares(self._keys, lambda block: _range(block) >= self._pinned):
            keys = self._keys.take(places)
            alike = _not_alone(keys[:, 0])
            rows, keys = places[alike], keys[alike]
            heads, group = first_of_equals(keys)
            order = np.argsort(group, kind="stable")
            starts = np.searchsorted(group[order], np.arange(len(heads)))
            count[rows[order]] = np.arange(len(rows)) - starts[group[order]]
            again = keys[heads[np.bincount(group, minlength=len(heads)) > 1]]
            for start in range(0, len(again), _BLOCK):
                values = np.ascontiguousarray(again[start : start + _BLOCK]).tobytes()
                self._file.execute("INSERT INTO repeated VALUES (?)", (values,))
        return count

    def _write_pairs(
        self, number: int, removed: Array, kept: Array, scores: Array | None, occurrence: Array
    ) -> None:
        for start in range(0, len(removed), _BLOCK):
            part = slice(start, start + _BLOCK)
            gone = removed[part]
            tags = _tags(self._keys.take(gone), occurrence[gone])
            alike = None if scores is None else scores[part].astype(np.float32).tobytes()
            values = (number, gone.tobytes(), kept[part].tobytes(), tags.tobytes(), alike)
            self._file.execute("INSERT INTO pairs VALUES (?,?,?,?,?)", values)

    def _merge(self, removed: Array, kept: Array, occurrence: Array) -> None:
        """Give each winner in the source the metadata of its losers, in the order of the source."""
        order = np.lexsort((removed, kept))
        order = order[kept[order] >= self._pinned]
        pairs = zip(kept[order].tolist(), removed[order].tolist(), strict=True)
        for winner, losers in groupby(pairs, key=lambda pair: pair[0]):
            record = self._record(winner)
            metadata = union(record.metadata, [self._record(row).metadata for _, row in losers])
            packed = _pack(record.replace(metadata=metadata))
            self._file.execute("UPDATE records SET record = ? WHERE row = ?", (packed, winner))
            one = np.array([winner])
            tag = _tags(self._keys.take(one), occurrence[one]).tobytes()
            self._file.execute("INSERT OR REPLACE INTO merged VALUES (?,?)", (tag, packed))

    def _record(self, row: int) -> VectorRecord:
        return _unpack(self._file.value("SELECT record FROM records WHERE row = ?", (row,)))


class Decisions:
    """What a first pass decided, applied to the second reading. Counts, so made anew for each reading.

    Args:
        memory_keys: beyond so many removed records, their keys are kept in temporary files.
    """

    def __init__(self, path: Path, memory_keys: int) -> None:
        self._file = StateFile(path, what="the dedupe decisions", read_only=True)
        self._removed = self._ledger("SELECT tags FROM pairs WHERE rowid = ?", "pairs", memory_keys)
        self._repeated = self._ledger("SELECT keys FROM repeated WHERE rowid = ?", "repeated", memory_keys)
        self._seen = np.zeros(len(self._repeated), dtype=np.int64)
        self._merges = bool(self._file.value("SELECT EXISTS (SELECT 1 FROM merged)"))

    def _ledger(self, query: str, table: str, memory_keys: int) -> KeyLedger:
        ledger = KeyLedger(memory_keys)
        for number in self._numbers(table):
            ledger.add(np.frombuffer(_bytes(self._file.value(query, (number,))), np.uint64).reshape(-1, 2))
        return ledger

    def _numbers(self, table: str) -> list[Any]:
        return [number for (number,) in self._file.rows(f"SELECT rowid FROM {table} ORDER BY rowid")]  # noqa: S608

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def apply(self, batch: RecordBatch) -> tuple[RecordBatch, Array, Array]:
        """The batch with merged metadata, the rows that stay, and what `count` wants after a restart."""
        tags, repeats = id_keys(batch), _NONE
        if len(self._repeated):
            found = self._repeated.find(tags)
            occurrence = np.zeros(len(batch), dtype=np.int64)
            for row in np.flatnonzero(found >= 0).tolist():
                occurrence[row] = self._seen[found[row]]
                self._seen[found[row]] += 1
            tags, repeats = _tags(tags, occurrence), found[found >= 0]
        keep = np.flatnonzero(self._removed.find(tags) < 0)
        return self._merged(batch, keep, tags), keep, repeats

    def count(self, repeats: Array) -> None:
        """Records of these repeated ids went by in an earlier run."""
        np.add.at(self._seen, repeats, 1)

    def _merged(self, batch: RecordBatch, keep: Array, tags: Array) -> RecordBatch:
        if not self._merges:
            return batch
        rows = {tags[row].tobytes(): row for row in keep.tolist()}
        query = "SELECT tag, metadata FROM merged WHERE tag IN ({})"
        found = list(self._file.chosen(query, list(rows)))
        if not found:
            return batch
        metadata = list(batch.metadata_list)
        for tag, packed in found:
            row = rows[_bytes(tag)]
            metadata[row] = union(metadata[row], [_unpack(packed).metadata])
        return batch.replace(metadata=metadata)

    def notes(self) -> dict[str, int]:
        """Counts that the report shows."""
        return dict(self._file.rows("SELECT key, value FROM notes"))  # type: ignore[arg-type]

    def removals(self) -> Iterator[Removal]:
        """Everything that was decided against, rule by rule."""
        starts = np.array([row[0] for row in self._file.rows("SELECT first FROM ids ORDER BY first")])
        for number in self._numbers("pairs"):
            query = "SELECT rule, removed, kept, scores FROM pairs WHERE rowid = ?"
            ((rule, gone, stays, alike),) = self._file.rows(query, (number,))
            rows = np.frombuffer(_bytes(gone) + _bytes(stays), np.int64)
            wanted, places = np.unique(rows, return_inverse=True)
            names = self._names(wanted, starts)
            scores = None if alike is None else np.frombuffer(_bytes(alike), np.float32).tolist()
            pairs = places.reshape(2, -1).T.tolist()
            for (removed, kept), score in zip(pairs, scores or [None] * len(pairs), strict=True):
                (id_, text), (kept_id, kept_text) = names[removed], names[kept]
                yield Removal(cast(int, rule), id_, kept_id, score, text, kept_text)

    def _names(self, rows: Array, starts: Array) -> list[tuple[str, str]]:
        """Ids and texts of ascending rows; each page is read once."""
        pages, edges = np.unique(np.searchsorted(starts, rows, side="right") - 1, return_index=True)
        shares = zip(starts[pages].tolist(), np.split(rows, edges[1:]), strict=True)
        query = "SELECT ids, texts FROM ids WHERE first IN ({}) ORDER BY first"
        found = self._file.chosen(query, starts[pages].tolist())
        names: list[tuple[str, str]] = []
        for (first, share), columns in zip(shares, found, strict=True):
            ids, texts = (parse_json(_bytes(column)) for column in columns)
            names += [(ids[row], texts[row]) for row in (share - first).tolist()]
        return names


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


def _shares(keys: Rows, wanted: Callable[[slice], Array]) -> Iterator[Array]:
    """Places of wanted keys, ascending, in shares of bounded size such that equal keys are in one share."""
    shares = max(1, -(-len(keys) // _SHARE))
    for share in range(shares):
        found = [_NONE]
        for start in range(0, len(keys), _BLOCK):
            block = slice(start, min(len(keys), start + _BLOCK))
            mask = wanted(block)
            if shares > 1:
                mask = mask & (keys.view()[block, 1] % np.uint64(shares) == share)
            found.append(start + np.flatnonzero(mask))
        yield np.concatenate(found)


def _range(block: slice) -> Array:
    return np.arange(block.start, block.stop)


def _not_alone(values: Array) -> Array:
    """The places of values that occur more than once, ascending."""
    order = np.argsort(values)
    equal = values[order[1:]] == values[order[:-1]]
    again = np.zeros(len(values), dtype=np.bool_)
    again[order[1:][equal]] = again[order[:-1][equal]] = True
    return np.flatnonzero(again)


def _tags(keys: Array, occurrence: Array) -> Array:
    """Keys of (id, how often it came before): the id's own key the first time."""
    tags = np.array(keys, dtype=np.uint64)
    # An odd multiplier spreads the small numbers over all bits (Fibonacci hashing, D. Knuth, TAOCP 6.4).
    tags[:, 0] ^= occurrence.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return tags


def _bytes(value: Any) -> bytes:
    return cast(bytes, value)


def _pack(record: VectorRecord) -> bytes:
    return dump_json([encode_id(record.id), record.text, *to_json(record.metadata)])


def _unpack(packed: Any) -> VectorRecord:
    id_, text, body, types = parse_json(packed)
    return VectorRecord(id=decode_id(id_), text=text, metadata=from_json(body, types))
