"""Look at the records before anything is written: types, ids that stand twice, odd vectors.

Everything is read, without vectors, when the collection is small enough; else a sample, and the plan
says so. Ids are always read whole where the store does not promise that they are unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from typing import Any

import numpy as np

from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    RecordBatch,
    RecordId,
    Where,
    id_type,
    type_name,
)
from vecferry.model.typed import survives_json
from vecferry.ports import Fields, Source

SAMPLE = 50_000
"""Records whose metadata is looked at, unless the caller asks for another number."""
_VECTORS = 1024


@dataclass
class Census:
    """What was seen.

    ``examples`` holds one value for each type name, written as ``key=value``; ``norms`` the lengths of
    some vectors of each dense field; ``missing`` how many of those records lack a vector.
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
    duplicates: list[RecordId] = field(default_factory=list)
    duplicate_count: int = 0
    norms: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    looked_at: int = 0


def take_census(
    source: Source, schema: CollectionSchema, *, where: Where | None = None, sample: int | None = SAMPLE
) -> Census:
    """Read what the plan needs to know. ``sample=None`` reads all metadata."""
    census = Census()
    size = 4096 if sample is None else min(4096, max(1, sample))
    for batch in source.scan(batch_size=size, fields=Fields.NO_VECTORS, where=where):
        _look(census, batch)
        if sample is not None and census.records >= sample:
            census.complete = schema.count is not None and census.records >= schema.count
            break
    for batch in islice(source.scan(batch_size=_VECTORS, where=where), 1):
        _measure(census, batch)
    if not schema.ids_unique:
        census.duplicates, census.duplicate_count = find_duplicates(source, where)
    return census


def find_duplicates(source: Source, where: Where | None = None) -> tuple[list[RecordId], int]:
    """Some ids that stand more than once, and how many surplus records there are. 16 bytes an id."""
    hashes = [batch.ids.keys for batch in source.scan(batch_size=8192, fields=Fields.IDS, where=where)]
    if not hashes:
        return [], 0
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return [], 0
    return _named(source, where, twice), int((counts[counts > 1] - 1).sum())


def _named(source: Source, where: Where | None, keys: np.ndarray[Any, Any]) -> list[RecordId]:
    """The first ids that have one of the keys."""
    found: dict[RecordId, None] = {}
    for batch in source.scan(batch_size=8192, fields=Fields.IDS, where=where):
        for row in np.flatnonzero(np.isin(batch.ids.keys, keys)).tolist():
            found.setdefault(batch.ids[row])
        if len(found) >= min(10, len(keys)):
            break
    return list(found)[:10]


def _look(census: Census, batch: RecordBatch) -> None:
    census.records += len(batch)
    if batch.ids.kind == "mixed":
        for id_ in batch.ids:
            census.id_types[id_type(id_)] += 1
            census.id_examples.setdefault(id_type(id_), repr(id_))
    elif len(batch):
        census.id_types[batch.ids.kind] += len(batch)
        census.id_examples.setdefault(batch.ids.kind, repr(batch.ids[0]))
    for text in batch.texts or ():
        census.without_text += not text
        census.characters += len(text or "")
    if batch.texts is None:
        census.without_text += len(batch)
    for metadata in batch.metadata or ():
        for key, value in metadata.items():
            kind = type_name(value)
            census.keys.setdefault(key, Counter())[kind] += 1
            _count_types(census, key, value, kind)


def _count_types(census: Census, key: str, value: Any, kind: str) -> None:
    if kind == "int" and not -(2**63) <= value < 2**63:
        kind = "big int"
    elif kind == "float" and not survives_json(value):
        kind = "unusual float" if isfinite(value) else "non-finite float"
    elif kind == "object" and not all(isinstance(name, str) for name in value):
        kind = "non-text-keyed object"
    census.types[kind] += 1
    if kind not in census.examples:
        shown = repr(value)
        census.examples[kind] = f"{key}={shown if len(shown) <= 40 else shown[:37] + '…'}"
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        for child in value.values() if isinstance(value, Mapping) else value:
            _count_types(census, key, child, type_name(child))


def _measure(census: Census, batch: RecordBatch) -> None:
    census.looked_at = len(batch)
    for name, column in batch.columns():
        census.missing[name] += int((~column.present).sum())
        if isinstance(column, DenseColumn) and column.values.dtype.kind == "f":
            rows = column.values[column.present].astype(np.float64)
            census.norms[name] = np.linalg.norm(rows, axis=1)
