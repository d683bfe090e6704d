"""`FirstPass`: look at everything, then decide rule by rule.

It keeps 16 to 40 bytes a record and exact rule (the vector or the signature for the others) in temporary
files, decides with bounded memory, and leaves one file for `Decisions`.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vecferry.dedupe.decisions import TABLES, pack, tags_of, unpack
from vecferry.dedupe.features import Features, dtype_of, features, id_keys, times
from vecferry.dedupe.ledger import first_of_equals
from vecferry.dedupe.log import packed_ids, packed_texts
from vecferry.dedupe.matchers import matcher_for
from vecferry.dedupe.merge import union
from vecferry.dedupe.rules import Dedupe
from vecferry.dedupe.similar import SimilarMatcher
from vecferry.dedupe.spill import Rows
from vecferry.errors import ConfigurationError
from vecferry.model import RecordBatch, VectorRecord
from vecferry.model.vectors import Array

_BUCKET = 4_000_000
_CHUNK = 100_000
_NO_TIME = np.iinfo(np.int64).min
_LAST_OF_ALL = np.iinfo(np.int64).max
_NONE = np.empty(0, dtype=np.int64)


class FirstPass:
    """Takes in a whole source, then decides.

    Args:
        path: the file to make; it appears, complete, when `resolve` returns.
    """

    def __init__(self, rules: Sequence[Dedupe], memory_keys: int, path: Path) -> None:
        self._rules, self._memory_keys, self._path = rules, memory_keys, path
        self._part = path.with_suffix(".part")
        self._part.unlink(missing_ok=True)
        self._file = sqlite3.connect(self._part, check_same_thread=False)
        # The file is thrown away unless it is renamed, so nothing needs to be synced before.
        self._file.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES)
        self._count = self._pinned = 0
        self._keys = Rows(np.uint64, 2)
        self._values: dict[int, Rows] = {}
        self._has = [Rows(np.bool_, 1) for _ in rules]
        self._groups = [Rows(np.uint64, 1) for _ in rules]
        self._times = [Rows(np.int64, 1) for _ in rules]
        self._stored = any(rule.needs_records for rule in rules)

    def add(self, batch: RecordBatch, *, pinned: bool = False) -> None:
        """Take in one batch. ``pinned`` ones come first and always stay: they lie in the target."""
        if not len(batch):
            return
        every = np.arange(len(batch))
        self._keys.append(id_keys(batch))
        self._file.execute(
            "INSERT INTO ids VALUES (?,?,?)",
            (self._count, packed_ids(batch, every), packed_texts(batch, every)),
        )
        for number, rule in enumerate(self._rules):
            self._take_in(number, rule, batch, pinned=pinned)
        if self._stored:
            rows = enumerate(batch.records(), self._count)
            self._file.executemany("INSERT INTO records VALUES (?,?)", ((n, pack(r)) for n, r in rows))
        self._count += len(batch)
        self._pinned += len(batch) if pinned else 0

    def _take_in(self, number: int, rule: Dedupe, batch: RecordBatch, *, pinned: bool) -> None:
        found = features(rule, batch)
        has = found.has & (rule.against_target or not pinned)
        width = found.values.shape[1]
        if number not in self._values and width:
            self._values[number] = Rows(dtype_of(rule), width)
            self._values[number].append(np.zeros((self._count, width), dtype_of(rule)))
        if number in self._values:  # batches without any vector have rows of width 0
            rows = self._values[number]
            rows.append(found.values if width else np.zeros((len(batch), rows.width), rows.dtype))
        self._has[number].append(has[:, None])
        if found.group is not None:
            self._groups[number].append(found.group[:, None])
        if rule.keep in ("newest", "oldest"):
            stamps = times(rule, batch)
            unreadable = int((stamps == _NO_TIME).sum())
            self._note("unreadable_times", unreadable)
            self._times[number].append(stamps[:, None])

    def _note(self, key: str, value: int) -> None:
        self._file.execute(
            "INSERT INTO notes VALUES (?,?) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value",
            (key, value),
        )

    # -- deciding -----------------------------------------------------------------------------

    def resolve(self) -> None:
        """Decide rule by rule, and leave the file."""
        alive = np.ones(self._count, dtype=np.bool_)
        occurrence = self._occurrences()
        for number, rule in enumerate(self._rules):
            if number not in self._values:
                continue
            removed, kept, scores = self._resolve(number, rule, alive)
            ours = removed >= self._pinned
            removed, kept = removed[ours], kept[ours]
            alive[removed] = False
            self._write_pairs(number, removed, kept, occurrence, None if scores is None else scores[ours])
            if rule.merge:
                self._merge(removed, kept, occurrence)
        self._file.execute("DROP TABLE records")
        self._file.commit()
        self._file.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._part.replace(self._path)

    def _resolve(self, number: int, rule: Dedupe, alive: Array) -> tuple[Array, Array, Array | None]:
        rows = np.flatnonzero(alive & self._has[number].view()[:, 0])
        if rule.near:
            return self._resolve_near(number, rule, rows)
        removed, kept = [], []
        for part in self._buckets(number, rows):
            keys = self._values[number].take(part)
            gone, stays = self._equals(number, rule, part, keys)
            removed.append(gone)
            kept.append(stays)
        return np.concatenate([*removed, _NONE]), np.concatenate([*kept, _NONE]), None

    def _buckets(self, number: int, rows: Array) -> Iterator[Array]:
        """Shares of the rows such that equal keys are in one share."""
        shares = max(1, -(-len(rows) // _BUCKET))
        if shares == 1:
            yield rows
            return
        bucket = (self._values[number].view()[:, 1] % np.uint64(shares))[rows]
        for share in range(shares):
            yield rows[bucket == share]

    def _rank(self, number: int, rule: Dedupe, rows: Array) -> Array:
        """Who comes first is kept: lower is better; equals in the order of the source."""
        if rule.keep == "last":
            rank = -rows
        elif rule.keep in ("newest", "oldest"):
            stamps = self._times[number].view()[rows, 0]
            known = np.where(stamps == _NO_TIME, 0, stamps)
            rank = np.where(stamps == _NO_TIME, _LAST_OF_ALL, -known if rule.keep == "newest" else known)
        else:
            rank = rows.copy()
        pinned = rows < self._pinned
        rank[pinned] = np.iinfo(np.int64).min + rows[pinned]
        return rank

    def _equals(self, number: int, rule: Dedupe, rows: Array, keys: Array) -> tuple[Array, Array]:
        """Losers and their winners among rows with equal keys."""
        order = np.lexsort((rows, self._rank(number, rule, rows), keys[:, 1], keys[:, 0]))
        ordered = keys[order]
        starts = np.ones(len(order), dtype=np.bool_)
        starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        heads = np.flatnonzero(starts)[np.cumsum(starts) - 1]
        losers = np.flatnonzero(~starts)
        removed, kept = rows[order[losers]], rows[order[heads[losers]]]
        return self._chosen(rule, removed, kept) if callable(rule.keep) else (removed, kept)

    def _chosen(self, rule: Dedupe, removed: Array, kept: Array) -> tuple[Array, Array]:
        """Let the user's function choose within each cluster; what lies in the target stays."""
        assert callable(rule.keep)
        clusters: dict[int, list[int]] = defaultdict(list)
        for gone, stays in zip(removed.tolist(), kept.tolist(), strict=True):
            clusters[stays].append(gone)
        losers, winners = [], []
        for head, others in clusters.items():
            members = sorted([head, *others])
            best = head if head < self._pinned else self._choose(rule, members)
            losers += [row for row in members if row != best]
            winners += [best] * (len(members) - 1)
        return np.array(losers, dtype=np.int64), np.array(winners, dtype=np.int64)

    def _choose(self, rule: Dedupe, members: list[int]) -> int:
        assert callable(rule.keep)
        records = [self._record(row) for row in members]
        chosen = rule.keep(records)
        for row, record in zip(members, records, strict=True):
            if record is chosen:
                return row
        raise ConfigurationError(
            "keep=callable must return one of the records it was given; "
            f"for {records[0].id!r} it returned {type(chosen).__name__}"
        )

    def _resolve_near(self, number: int, rule: Dedupe, rows: Array) -> tuple[Array, Array, Array]:
        """As the stream would, but best first: the winner of a cluster is met before the others."""
        rows = rows[np.argsort(self._rank(number, rule, rows), kind="stable")]
        matcher = matcher_for(rule, self._memory_keys)
        groups = self._groups[number]
        kept_rows = Rows(np.int64, 1)
        removed, kept, scores = [], [], []
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            group = groups.take(part)[:, 0] if len(groups) else None
            found = Features(self._values[number].take(part), np.ones(len(part), np.bool_), group)
            verdicts = matcher.match(found)
            kept_rows.append(part[verdicts.new][:, None])
            gone = np.flatnonzero(verdicts.entries >= 0)
            removed.append(part[gone])
            kept.append(kept_rows.take(verdicts.entries[gone])[:, 0])
            assert verdicts.scores is not None
            scores.append(verdicts.scores[gone])
        if isinstance(matcher, SimilarMatcher):
            found_all, due = matcher.sample
            self._note(f"recall_found_{number}", found_all)
            self._note(f"recall_due_{number}", due)
        return (
            np.concatenate([*removed, _NONE]),
            np.concatenate([*kept, _NONE]),
            np.concatenate([*scores, np.empty(0, np.float32)]),
        )

    # -- writing down -------------------------------------------------------------------------

    def _occurrences(self) -> Array:
        """How often the id of each record of the source came before; ids that repeat are written down."""
        count = np.zeros(self._count, dtype=np.int64)
        keys = self._keys.view()[self._pinned :]
        rows = np.arange(len(keys))
        shares = max(1, -(-len(keys) // _BUCKET))
        for share in range(shares):
            part = rows if shares == 1 else rows[keys[:, 1] % np.uint64(shares) == share]
            heads, group = first_of_equals(keys[part])
            order = np.argsort(group, kind="stable")
            starts = np.searchsorted(group[order], np.arange(len(heads)))
            place = np.empty(len(part), dtype=np.int64)
            place[order] = np.arange(len(part)) - starts[group[order]]
            count[part + self._pinned] = place
            again = np.bincount(group, minlength=len(heads)) > 1
            if again.any():
                values = np.ascontiguousarray(keys[part[heads[again]]]).tobytes()
                self._file.execute("INSERT INTO repeated VALUES (?)", (values,))
        return count

    def _write_pairs(
        self, number: int, removed: Array, kept: Array, occurrence: Array, scores: Array | None
    ) -> None:
        for start in range(0, len(removed), _CHUNK):
            part = slice(start, start + _CHUNK)
            tags = tags_of(self._keys.take(removed[part]), occurrence[removed[part]])
            alike = None if scores is None else scores[part].astype(np.float32).tobytes()
            values = (number, removed[part].tobytes(), kept[part].tobytes(), tags.tobytes(), alike)
            self._file.execute("INSERT INTO pairs VALUES (?,?,?,?,?)", values)

    def _merge(self, removed: Array, kept: Array, occurrence: Array) -> None:
        """Give each winner in the source the metadata of its losers, in the order of the source."""
        order = np.lexsort((removed, kept))
        clusters: dict[int, list[int]] = defaultdict(list)
        for row in order.tolist():
            clusters[int(kept[row])].append(int(removed[row]))
        for winner, losers in clusters.items():
            if winner < self._pinned:
                continue
            record = self._record(winner)
            metadata = union(record.metadata, [self._record(row).metadata for row in losers])
            packed = pack(record.replace(metadata=metadata))
            self._file.execute("UPDATE records SET record = ? WHERE row = ?", (packed, winner))
            one = np.array([winner])
            tag = tags_of(self._keys.take(one), occurrence[one]).tobytes()
            self._file.execute("INSERT OR REPLACE INTO merged VALUES (?,?)", (tag, packed))

    def _record(self, row: int) -> VectorRecord:
        query = "SELECT record FROM records WHERE row = ?"
        return unpack(self._file.execute(query, (row,)).fetchone()[0])
