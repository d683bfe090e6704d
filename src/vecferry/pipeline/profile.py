"""What the source holds, seen in one pass before anything is written: types, doubled ids, odd vectors.

The first records are read with their vectors, further ones without, and, where the store does not promise
unique ids, the ids of all the rest: one reading of the source, each part going on where the one before
ended.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np

from vecferry.core.retry import RetryPolicy, reopened
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    Loss,
    RecordBatch,
    RecordId,
    Where,
    encode_id,
    id_type,
    type_name,
)
from vecferry.model.typed import survives_json
from vecferry.model.vectors import Array
from vecferry.ports import Cursor, Fields, ShouldStop, Source, never_stop

SAMPLE = 50_000
"""Records whose metadata is looked at, unless the caller asks for another number."""
HEAD = 1024
"""Records whose vectors are looked at."""
_BATCH = 4096
_INT64 = (-(2**63), 2**63 - 1)
_MOST_EXAMPLES = 10


@dataclass
class SourceProfile:
    """What was seen.

    Attributes:
        records: whose metadata was looked at; ``complete`` says whether that is all of them.
        types, keys, examples: of metadata values: how many of each type, the types of each key, one value
            of each type as ``key=value``.
        bytes: of these records as they lie in memory, vectors not counted.
        norms: the lengths of the vectors looked at, by dense field; ``looked_at`` records had them read,
            and ``missing`` of those lack one; ``seconds`` is what reading them took.
        changes: what the target will change in these records, as far as its sink foresees it.
        duplicates: some ids that stand more than once; ``duplicate_count`` the surplus records.
    """

    records: int = 0
    complete: bool = True
    id_types: Counter[str] = field(default_factory=Counter)
    id_examples: dict[str, str] = field(default_factory=dict)
    types: Counter[str] = field(default_factory=Counter)
    keys: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    without_text: int = 0
    characters: int = 0
    bytes: int = 0
    duplicates: list[RecordId] = field(default_factory=list)
    duplicate_count: int = 0
    norms: dict[str, Array] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    changes: list[Loss] = field(default_factory=list)
    looked_at: int = 0
    seconds: float = 0.0

    def estimate(self, schema: CollectionSchema, total: int | None) -> dict[str, str]:
        """The size of what travels, and how long reading it takes, from what was measured here."""
        rows = self.records if total is None else total
        if not self.looked_at or not rows:
            return {}
        vectors = sum(f.dtype.width(f.dim or 0) * np.dtype(f.dtype.numpy).itemsize for f in schema.fields)
        size = rows * (vectors + self.bytes / self.records)
        seconds = rows * self.seconds / self.looked_at
        return {
            "size": f"about {size / 1e6:,.1f} MB",
            "reading": f"about {seconds:,.1f} s, as measured on {self.looked_at:,} records",
        }


@dataclass
class _Look:
    """One pass over a source, through faults that pass."""

    source: Source
    where: Where | None
    retry: RetryPolicy
    should_stop: ShouldStop
    cursor: Cursor = None
    ended: bool = False

    def read(self, fields: Fields, most: int | None, size: int = _BATCH) -> Iterator[RecordBatch]:
        """Batches behind the last one, until ``most`` records have come, or all have."""
        seen = 0
        size = size if most is None else max(1, min(size, most))

        def open_stream(after: Cursor, size: int) -> Iterator[RecordBatch]:
            return self.source.scan(after=after, batch_size=size, fields=fields, where=self.where)

        if self.ended or most == 0:
            return
        backoff = self.retry.backoff(should_stop=self.should_stop)
        with closing(reopened(open_stream, self.cursor, size, backoff)) as batches:  # type: ignore[type-var]
            for batch in batches:
                self.cursor = batch.cursor
                yield batch
                seen += len(batch)
                if most is not None and seen >= most:
                    return
        self.ended = True


def profile_source(
    source: Source,
    schema: CollectionSchema,
    *,
    where: Where | None = None,
    sample: int | None = SAMPLE,
    head: int = HEAD,
    on_head: Callable[[RecordBatch], None] = lambda _: None,
    changes: Callable[[RecordBatch], Iterable[Loss]] | None = None,
    retry: RetryPolicy | None = None,
    should_stop: ShouldStop = never_stop,
) -> SourceProfile:
    """Read what the plan needs to know.

    Args:
        sample: how many records' metadata is looked at; ``None`` for all.
        head: how many are read with their vectors.
        on_head: shown the batches that are read with everything.
        changes: what writing a batch would change; see `vecferry.ports.ForeseesChanges`.
    """
    profile = SourceProfile()
    look = _Look(source, where, retry or RetryPolicy(), should_stop)
    keys: list[Array] = []
    foreseen: list[Loss] = []
    unique = schema.ids_unique
    head = head if sample is None else min(head, sample)
    start = time.perf_counter()
    for batch in look.read(Fields.ALL, head, min(_BATCH, head)):
        profile.seconds += time.perf_counter() - start
        _look(profile, batch)
        _measure(profile, batch)
        on_head(batch)
        foreseen += changes(batch) if changes else ()
        keys += [] if unique else [_hashes(batch)]
        start = time.perf_counter()
    left = None if sample is None else max(0, sample - profile.records)
    for batch in look.read(Fields.NO_VECTORS, left):
        _look(profile, batch)
        foreseen += changes(batch) if changes else ()
        keys += [] if unique else [_hashes(batch)]
    profile.changes = _summed(foreseen)
    known = schema.count is not None and where is None and profile.records >= schema.count
    profile.complete = look.ended or known
    if not unique:
        keys += [_hashes(batch) for batch in look.read(Fields.IDS, None, 2 * _BATCH)]
        profile.duplicates, profile.duplicate_count = _duplicates(source, where, keys)
    return profile


def _summed(losses: Iterable[Loss]) -> list[Loss]:
    """Losses of one kind and detail as one, with the sum of their counts and the first example."""
    found: dict[tuple[str, str], Loss] = {}
    for loss in losses:
        before = found.get((loss.kind, loss.detail))
        count = (loss.count or 0) + ((before.count or 0) if before else 0)
        found[loss.kind, loss.detail] = (before or loss).model_copy(update={"count": count or None})
    return list(found.values())


# -- ids --------------------------------------------------------------------------------------


def _duplicates(source: Source, where: Where | None, keys: Sequence[Array]) -> tuple[list[RecordId], int]:
    """Some ids that stand more than once, and how many surplus records there are. 8 bytes an id."""
    if not keys:
        return [], 0
    values = np.sort(np.concatenate(keys))
    suspects = np.unique(values[1:][values[1:] == values[:-1]])
    return _confirm(source, where, suspects) if len(suspects) else ([], 0)


def _confirm(source: Source, where: Where | None, suspects: Array) -> tuple[list[RecordId], int]:
    """Equal hashes may be chance: count the ids themselves."""
    seen: Counter[str] = Counter()
    examples: dict[str, RecordId] = {}
    for batch in source.scan(batch_size=2 * _BATCH, fields=Fields.IDS, where=where):
        for row in np.flatnonzero(np.isin(_hashes(batch), suspects)).tolist():
            id_ = batch.id_list[row]
            seen[encode_id(id_)] += 1
            examples.setdefault(encode_id(id_), id_)
    twice = [key for key, n in seen.items() if n > 1]
    return [examples[key] for key in twice[:_MOST_EXAMPLES]], sum(seen[key] - 1 for key in twice)


def _hashes(batch: RecordBatch) -> Array:
    """uint64 ``(n,)``: the first half of each id's key."""
    return np.ascontiguousarray(batch.ids.keys.view(np.uint64)[::2])


# -- metadata, texts --------------------------------------------------------------------------


def _look(profile: SourceProfile, batch: RecordBatch) -> None:
    profile.records += len(batch)
    profile.bytes += batch.nbytes - sum(column.nbytes for _, column in batch.columns())
    _count_ids(profile, batch)
    texts = [text for text in batch.texts or () if text]
    profile.without_text += len(batch) - len(texts)
    profile.characters += sum(map(len, texts))
    if batch.metadata is not None:
        _count_tables(profile, list(batch.metadata))


def _count_ids(profile: SourceProfile, batch: RecordBatch) -> None:
    if batch.ids.kind != "mixed":
        kinds = {batch.ids.kind: (len(batch), batch.ids[0])} if len(batch) else {}
    else:
        values = batch.ids.values
        counts = Counter(map(id_type, values))
        kinds = {kind: (n, next(i for i in values if id_type(i) == kind)) for kind, n in counts.items()}
    for kind, (n, first) in kinds.items():
        profile.id_types[kind] += n
        profile.id_examples.setdefault(kind, repr(first))


def _count_tables(profile: SourceProfile, rows: Sequence[Mapping[str, Any]]) -> None:
    """The metadata of many records, key by key: a column of one type is counted as a whole."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    for key, values in columns.items():
        kinds = profile.keys.setdefault(key, Counter())
        for kind, found in _by_type(values):
            kinds[type_name(found[0])] += len(found)
            _count_column(profile, key, kind, found)


def _by_type(values: Sequence[Any]) -> Iterator[tuple[type, Sequence[Any]]]:
    kinds = set(map(type, values))
    if len(kinds) == 1:
        yield kinds.pop(), values
        return
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        yield kind, [value for value in values if type(value) is kind]


def _count_column(profile: SourceProfile, key: str, kind: type, values: Sequence[Any]) -> None:
    """Count values of one Python type, and those inside them."""
    if kind is int:
        fits = min(values) >= _INT64[0] and max(values) <= _INT64[1]
        _split(profile, key, "int", "big int", values, None if fits else _fits_int64)
    elif kind is float:
        plain = _all_plain(values)
        finite = values if plain else [value for value in values if isfinite(value)]
        _note(profile, key, "non-finite float", [] if plain else [v for v in values if not isfinite(v)])
        _split(profile, key, "float", "unusual float", finite, None if plain else survives_json)
    elif issubclass(kind, Mapping):
        _split(profile, key, "object", "non-text-keyed object", values, _has_text_keys)
        _count_inside(profile, key, list(chain.from_iterable(v.values() for v in values)))
    else:
        _note(profile, key, type_name(values[0]), values)
        if issubclass(kind, list | tuple | set | frozenset):
            _count_inside(profile, key, list(chain.from_iterable(values)))


def _count_inside(profile: SourceProfile, key: str, values: Sequence[Any]) -> None:
    for kind, found in _by_type(values) if values else ():
        _count_column(profile, key, kind, found)


def _split(
    profile: SourceProfile,
    key: str,
    name: str,
    odd: str,
    values: Sequence[Any],
    test: Callable[[Any], bool] | None,
) -> None:
    """Count the values that pass ``test`` (``None``: all do) under ``name``, the others under ``odd``."""
    if test is None:
        _note(profile, key, name, values)
        return
    _note(profile, key, name, [value for value in values if test(value)])
    _note(profile, key, odd, [value for value in values if not test(value)])


def _note(profile: SourceProfile, key: str, name: str, values: Sequence[Any]) -> None:
    if not values:
        return
    profile.types[name] += len(values)
    if name not in profile.examples:
        shown = repr(values[0])
        profile.examples[name] = f"{key}={shown if len(shown) <= 40 else shown[:37] + '…'}"


def _fits_int64(value: int) -> bool:
    return _INT64[0] <= value <= _INT64[1]


def _has_text_keys(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in value)


def _all_plain(values: Sequence[float]) -> bool:
    """Whether `survives_json` is true of all: nothing non-finite, no negative zero, no huge whole
    number.
    """
    array = np.array(values)
    return bool(np.all(np.abs(array) < 1e15) and not np.any((array == 0) & np.signbit(array)))


# -- vectors ----------------------------------------------------------------------------------


def _measure(profile: SourceProfile, batch: RecordBatch) -> None:
    profile.looked_at += len(batch)
    for name, column in batch.columns():
        profile.missing[name] += int((~column.present).sum())
        if isinstance(column, DenseColumn) and column.values.dtype.kind == "f":
            rows = column.values[column.present].astype(np.float64)
            lengths = np.linalg.norm(rows, axis=1)
            before = profile.norms.get(name)
            profile.norms[name] = lengths if before is None else np.concatenate([before, lengths])
