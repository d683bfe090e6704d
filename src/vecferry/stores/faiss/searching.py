"""Nearest neighbours in a `Snapshot`: exact for Flat and where a filter is given, else as FAISS does."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from vecferry.errors import SchemaMismatchError
from vecferry.records import VectorRecord, Where, matches
from vecferry.records.metrics import scores
from vecferry.records.vectors import Array
from vecferry.stores.faiss.snapshot import Snapshot, blocks
from vecferry.stores.faiss.vectors import import_faiss

_BLOCK = 4096
_SPARE = 4


def search(
    snapshot: Snapshot,
    vector: Any,
    k: int,
    where: Where | None,
    *,
    ef_search: int | None,
    nprobe: int | None,
) -> list[VectorRecord]:
    """At most ``k`` records, best first.

    Raises:
        SchemaMismatchError: if the query has another shape than the vectors.
    """
    field = snapshot.field
    width = field.dtype.width(field.dim or 0)
    query = np.asarray(vector, dtype=field.dtype.numpy if field.dtype == "bit" else np.float32)
    if query.shape != (width,):
        raise SchemaMismatchError(f"the query has shape {query.shape}, the index holds ({width},)")
    if k <= 0 or not len(snapshot):
        return []
    if snapshot.index.index is None or snapshot.index.bits or where is not None:
        best, positions = _exact(snapshot, query, k, where)
    else:
        best, positions = _approximate(snapshot, query, k, ef_search, nprobe)
    records = snapshot.pick(positions).records()
    return [r.model_copy(update={"score": s}) for r, s in zip(records, best.tolist(), strict=True)]


def _exact(snapshot: Snapshot, query: Array, k: int, where: Where | None) -> tuple[Array, Array]:
    """Every vector is compared, block by block."""
    best, positions = np.empty(0, np.float32), np.empty(0, np.int64)
    for low, high in blocks(0, len(snapshot), _BLOCK):
        rows = np.arange(low, high)
        if where is not None:
            rows = rows[_passing(snapshot, low, high, where)]
            if not len(rows):
                continue
        found = scores(snapshot.field.metric, query, snapshot.vectors(low, high)[rows - low])
        best, positions = _top(np.concatenate([best, found]), np.concatenate([positions, rows]), k)
    return best, positions


def _passing(snapshot: Snapshot, low: int, high: int, where: Where) -> Array:
    if snapshot.sidecar is None:
        return np.full(high - low, matches(where, {}))
    entries = snapshot.entries(np.arange(low, high))
    return np.array([matches(where, entry.metadata) for entry in entries], dtype=np.bool_)


def _top(best: Array, positions: Array, k: int) -> tuple[Array, Array]:
    order = np.argsort(-best, kind="stable")[:k]
    return best[order], positions[order]


def _approximate(
    snapshot: Snapshot, query: Array, k: int, ef_search: int | None, nprobe: int | None
) -> tuple[Array, Array]:
    """FAISS's candidates, scored again with the field's own metric, which FAISS may lack (cosine)."""
    index = snapshot.index.index
    _tune(index, k, ef_search, nprobe)
    _, found = index.search(np.ascontiguousarray(query[None, :]), min(k * _SPARE, len(snapshot)))
    numbers = found[0][found[0] >= 0]
    positions = _positions(snapshot, numbers)
    rows = [snapshot.vectors(at, at + 1) for at in positions.tolist()]
    if not rows:
        return np.empty(0, np.float32), positions
    return _top(scores(snapshot.field.metric, query, np.concatenate(rows)), positions, k)


def _positions(snapshot: Snapshot, numbers: Array) -> Array:
    if snapshot.numbers is None:
        return np.asarray(numbers, dtype=np.int64)
    order = np.argsort(snapshot.numbers, kind="stable")
    return np.asarray(order[np.searchsorted(snapshot.numbers, numbers, sorter=order)], dtype=np.int64)


def _tune(index: Any, k: int, ef_search: int | None, nprobe: int | None) -> None:
    """Search wide enough for good recall: an IVF file asks for one list only, unless told otherwise."""
    faiss = import_faiss()
    space = faiss.ParameterSpace()
    with suppress(RuntimeError):  # FAISS raises where an index has no such parameter
        lists = int(faiss.extract_index_ivf(index).nlist)
        space.set_index_parameter(index, "nprobe", min(nprobe or max(16, lists // 10), lists))
    with suppress(RuntimeError):
        space.set_index_parameter(index, "efSearch", ef_search or max(64, 2 * k * _SPARE))
