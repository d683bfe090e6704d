"""Nearest neighbours in a `Snapshot`: exact for Flat and where a filter is given, else as FAISS does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from vecferry.model import VectorRecord, Where, matches
from vecferry.model.metrics import scores, scores_many
from vecferry.model.vectors import Array
from vecferry.ports import Fields
from vecferry.stores.faiss.snapshot import Snapshot, blocks
from vecferry.stores.faiss.vectors import import_faiss
from vecferry.stores.kit.checks import check_query

_BLOCK = 4096
_OVERSAMPLE = 4
Hits = tuple[Array, Array]
"""Scores, best first, and the positions they belong to."""


def search(
    snapshot: Snapshot,
    vectors: Sequence[Any],
    k: int,
    where: Where | None,
    fields: Fields,
    *,
    ef_search: int | None = None,
    nprobe: int | None = None,
    exact: bool = False,
) -> list[list[VectorRecord]]:
    """For each query at most ``k`` records, best first.

    Raises:
        SchemaMismatchError: if a query has another shape than the vectors.
    """
    for vector in vectors:
        check_query(vector, snapshot.field)
    if k <= 0 or not len(snapshot) or not len(vectors):
        return [[] for _ in vectors]
    queries = np.stack([np.asarray(v, np.uint8 if snapshot.index.bits else np.float32) for v in vectors])
    whole = snapshot.is_whole and snapshot.index.index is not None and not snapshot.index.bits
    if exact or not whole or where is not None:
        found = _exact(snapshot, queries, k, where)
    else:
        found = _approximate(snapshot, queries, k, ef_search, nprobe)
    return [_records(snapshot, hits, fields) for hits in found]


def _records(snapshot: Snapshot, hits: Hits, fields: Fields) -> list[VectorRecord]:
    best, positions = hits
    records = snapshot.pick(positions, fields).records()
    return [r.model_copy(update={"score": s}) for r, s in zip(records, best.tolist(), strict=True)]


def _exact(snapshot: Snapshot, queries: Array, k: int, where: Where | None) -> list[Hits]:
    """Every vector is compared, block by block."""
    found = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    for low, high in blocks(0, len(snapshot), _BLOCK):
        rows = np.arange(low, high)
        if where is not None:
            rows = rows[_passing(snapshot, low, high, where)]
        if not len(rows):
            continue
        values = snapshot.vectors(low, high)
        values = values if len(rows) == len(values) else values[rows - low]
        points = scores_many(snapshot.field.metric, queries, values)
        found = [_merged(hits, (points[i], rows), k) for i, hits in enumerate(found)]
    return found


def _passing(snapshot: Snapshot, low: int, high: int, where: Where) -> Array:
    if snapshot.sidecar is None:
        return np.full(high - low, matches(where, {}))
    entries = snapshot.entries(np.arange(low, high))
    return np.array([matches(where, entry.metadata) for entry in entries], dtype=np.bool_)


def _merged(one: Hits, other: Hits, k: int) -> Hits:
    best, positions = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    order = np.argsort(-best, kind="stable")[:k]
    return best[order], positions[order]


def _approximate(
    snapshot: Snapshot, queries: Array, k: int, ef_search: int | None, nprobe: int | None
) -> list[Hits]:
    """FAISS's candidates, scored again with the field's own metric, which FAISS may lack (cosine)."""
    index = snapshot.index.index
    _tune(index, k, ef_search, nprobe)
    try:
        _, found = index.search(np.ascontiguousarray(queries), min(k * _OVERSAMPLE, len(snapshot)))
    except RuntimeError:  # as SQ and PQ under L1: FAISS stores what it cannot search
        return _exact(snapshot, queries, k, None)
    return [
        _scored_again(snapshot, query, snapshot.positions_at(row[row >= 0]), k)
        for query, row in zip(queries, found, strict=True)
    ]


def _scored_again(snapshot: Snapshot, query: Array, positions: Array, k: int) -> Hits:
    nothing = (np.empty(0, np.float32), np.empty(0, np.int64))
    if not len(positions):
        return nothing
    rows = np.concatenate([snapshot.vectors(at, at + 1) for at in positions.tolist()])
    return _merged(nothing, (scores(snapshot.field.metric, query, rows), positions), k)


def _tune(index: Any, k: int, ef_search: int | None, nprobe: int | None) -> None:
    """Search wide enough for good recall: an IVF file asks for one list only, unless told otherwise."""
    faiss = import_faiss()
    space = faiss.ParameterSpace()
    with suppress(RuntimeError):  # FAISS raises where an index has no such parameter
        lists = int(faiss.extract_index_ivf(index).nlist)
        space.set_index_parameter(index, "nprobe", min(nprobe or max(16, lists // 10), lists))
    with suppress(RuntimeError):
        space.set_index_parameter(index, "efSearch", ef_search or max(64, 2 * k * _OVERSAMPLE))
