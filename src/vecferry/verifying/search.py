"""Whether searches on the target find what an exact search over the expected vectors finds.

An approximate index finds less than an exact search, and that is no difference between two collections. So
where the target finds little it is asked again, exactly, or the collection that the vectors come from is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from vecferry.errors import VecferryError
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    Kind,
    Metric,
    MultiColumn,
    RecordBatch,
    RecordId,
    SparseColumn,
    SparseVector,
    VectorField,
    VectorRecord,
    encode_id,
)
from vecferry.model.metrics import score, scores_many
from vecferry.model.vectors import Array
from vecferry.ports import BatchSearchable, ExactSearchable, Fetchable, Fields, Searchable
from vecferry.verifying.result import SearchProof

_SPARE = 16  # kept beyond k, so that rows rounded apart and ties are still known
_LOOK = 16  # rows of a partition among which a query is sought, since some may lack the vector
_EPSILON = 1e-4  # two scores this near, relative to the greater, count as a tie

Vector: TypeAlias = Array | SparseVector


@dataclass
class _Query:
    """One query and the best rows of the expected stream so far, exact scores, best first."""

    vector: Vector
    best: list[tuple[float, str]] = field(default_factory=list)


class SearchCheck:
    """Sees the expected stream go by and keeps the exact nearest of a few query vectors.

    The queries are vectors stored in the target, a few from the beginning of each of its partitions: the
    same ones as long as the target is the same.

    Args:
        queries: how many for each field; 0 switches the check off.
        k: neighbours a query.
        sees_all: whether the expected stream is all that the target should hold.
    """

    def __init__(
        self, schema: CollectionSchema, target: Any, *, queries: int, k: int, sees_all: bool = True
    ) -> None:
        self._target, self._k, self._sees_all = target, k, sees_all
        able = isinstance(target, Searchable) and queries > 0
        self._fields = [f for f in schema.fields if not _is_rescored(f)] if able else []
        self._unasked = [f for f in schema.fields if _is_rescored(f)] if able else []
        self._queries = self._draw(queries) if self._fields else {}

    def _draw(self, queries: int) -> dict[str, list[_Query]]:
        drawn: dict[str, list[_Query]] = {f.name: [] for f in self._fields}
        parts = list(self._target.partitions(queries))[:queries]
        share = -(-queries // max(len(parts), 1))
        only = Fields(vectors=tuple(drawn), text=False, metadata=False)
        for part in parts:
            scan = self._target.scan(partition=part, batch_size=max(share, _LOOK), fields=only)
            batch = next(iter(scan), None)
            columns = dict(batch.columns()) if batch is not None else {}
            for name in drawn.keys() & columns.keys():
                column = columns[name]
                rows = (column[i] for i in np.flatnonzero(column.present).tolist())
                some = [_copy(row) for row in rows if row is not None and len(row)]
                drawn[name] += [_Query(row) for row in some[: min(share, queries - len(drawn[name]))]]
        return drawn

    def begin(self) -> None:
        """Forget what was observed; the queries stay."""
        for query in (query for queries in self._queries.values() for query in queries):
            query.best = []

    def observe(self, batch: RecordBatch) -> None:
        """Score a batch of the expected stream."""
        columns = dict(batch.columns())
        for f in self._fields:
            column, queries = columns.get(f.name), self._queries[f.name]
            rows = np.flatnonzero(column.present) if column is not None and queries else ()
            if column is not None and len(rows):
                some = column if len(rows) == len(batch) else column.take(np.asarray(rows))
                self._observe(f, [query.vector for query in queries], some, np.asarray(rows), batch)

    def _observe(
        self, f: VectorField, vectors: Sequence[Vector], column: Any, rows: Array, batch: RecordBatch
    ) -> None:
        keep = self._k + _SPARE
        points = _points(f, vectors, column)
        for query, line in zip(self._queries[f.name], points, strict=True):
            top = np.argpartition(-line, keep)[:keep] if len(line) > keep else np.arange(len(line))
            if f.kind is Kind.SPARSE:
                top = top[line[top] != 0]  # an inverted index does not find what shares no term
            if len(query.best) == keep:
                top = top[line[top] > query.best[-1][0]]
            if not len(top):
                continue
            ids = [batch.ids[i] for i in rows[top].tolist()]
            query.best += zip(line[top].tolist(), map(encode_id, ids), strict=True)
            # An id that comes again is kept once, with its later score.
            latest = {key: point for point, key in query.best}
            query.best = sorted(((p, key) for key, p in latest.items()), reverse=True)[:keep]

    def state(self) -> dict[str, Any]:
        """The queries and the best rows so far, as JSON."""
        return {
            name: [[_as_json(query.vector), query.best] for query in queries]
            for name, queries in self._queries.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored `state`; nothing of it (``{}``) leaves the check unmade."""
        self._queries = {f.name: [] for f in self._fields}
        for name in self._queries:
            for vector, best in state.get(name, ()):
                ranked = [(float(point), str(key)) for point, key in best]
                self._queries[name].append(_Query(_from_json(vector), ranked))

    # -- asking -------------------------------------------------------------------------------

    def proofs(self) -> tuple[list[SearchProof], list[str]]:
        """Ask the target, and compare. Also notes on what could not be asked."""
        found: list[SearchProof] = []
        notes = [
            f"searches in {_named(f)} were not compared: the server weighs its terms by their frequency"
            for f in self._unasked
        ]
        for f in self._fields:
            try:
                shares = self._shares(f, self._target)
            except VecferryError as error:
                notes.append(f"searches in {_named(f)} were not compared: {error}")
                continue
            if shares:
                overlap, worst = float(np.mean(shares)), float(min(shares))
                proof = SearchProof(
                    field=f.name, queries=len(shares), k=self._k, overlap=overlap, worst=worst
                )
                found.append(proof)
        return found, notes

    def excuse(self, proof: SearchProof, least: float, reference: Any = None) -> str | None:
        """Why an overlap below ``least`` is no difference but the index's doing; ``None`` if it is one."""
        f = next(f for f in self._fields if f.name == proof.field)
        told = f"searches in {_named(f)} find {proof.overlap:.0%} of the exact top {proof.k}"
        try:
            if isinstance(self._target, ExactSearchable):
                exact = float(np.mean(self._shares(f, self._target, exact=True)))
                if exact >= max(least, 0.9):
                    return f"{told} by the target's approximate index, {exact:.0%} without it"
            if reference is not None:
                other = float(np.mean(self._shares(f, reference)))
                if other <= proof.overlap + 0.1:
                    return f"{told}, and {other:.0%} where the records come from"
        except VecferryError:
            return None
        return None

    def _shares(self, f: VectorField, store: Any, *, exact: bool = False) -> list[float]:
        queries = [query for query in self._queries[f.name] if query.best]
        vectors: list[Any] = [query.vector for query in queries]
        if not queries:
            return []
        if exact:
            every = store.search_exact(vectors, self._k, field=f.name)
        elif isinstance(store, BatchSearchable):
            every = store.search_many(vectors, self._k, field=f.name, fields=Fields.IDS)
        else:
            every = [store.search(vector, self._k, field=f.name) for vector in vectors]
        return [self._share(f, store, q, hits) for q, hits in zip(queries, every, strict=True)]

    def _share(self, f: VectorField, store: Any, query: _Query, hits: list[VectorRecord]) -> float:
        wanted = query.best[: self._k]
        known = {key: point for point, key in query.best}
        known |= self._scored(f, store, query, [hit.id for hit in hits if encode_id(hit.id) not in known])
        keys = [encode_id(hit.id) for hit in hits]
        # A record that is not among the best is no nearer than the last of them, whatever the target says.
        most = query.best[-1][0] if self._sees_all and len(query.best) == self._k + _SPARE else np.inf
        points = [known.get(k, min(hit.score or 0.0, most)) for k, hit in zip(keys, hits, strict=True)]
        last = min(points, default=-np.inf) if len(hits) >= self._k else -np.inf
        slack = max(abs(last), 1e-6) * _EPSILON if np.isfinite(last) else 0.0
        good = [key in keys or point <= last + slack for point, key in wanted]
        return sum(good) / len(good)

    def _scored(
        self, f: VectorField, store: Any, query: _Query, ids: Sequence[RecordId]
    ) -> dict[str, float]:
        """The exact scores of hits that are not among the best known: of equal ones any may be found."""
        if not ids or not self._sees_all or not isinstance(store, Fetchable):
            return {}
        found = store.fetch(ids, fields=Fields(vectors=(f.name,), text=False, metadata=False))
        column = found.column(f.name)
        if column is None or not column.present.all():
            return {}
        [line] = _points(f, [query.vector], column)
        return dict(zip(found.ids.encoded(), line.tolist(), strict=True))


def _named(f: VectorField) -> str:
    return f.name or "the vector field"


def _is_rescored(f: VectorField) -> bool:
    """Whether the server multiplies the values of a sparse field by what it counts itself (IDF)."""
    vendor = [value for value in f.index.values() if isinstance(value, Mapping)]
    found = [settings.get("modifier") for settings in (f.index, *vendor)]
    return f.kind is Kind.SPARSE and any(value not in (None, "none") for value in found)


def _copy(vector: Any) -> Any:
    return vector if isinstance(vector, SparseVector) else vector.copy()


def _as_json(vector: Vector) -> list[Any]:
    if isinstance(vector, SparseVector):
        return ["sparse", vector.indices.tolist(), vector.values.tolist()]
    return [str(vector.dtype), vector.tolist()]


def _from_json(value: Sequence[Any]) -> Vector:
    if value[0] == "sparse":
        return SparseVector(value[1], value[2])
    return np.array(value[1], dtype=value[0])


# -- exact scores of a column -------------------------------------------------------------------


def _points(f: VectorField, queries: Sequence[Vector], column: Any) -> Iterator[Array]:
    """The scores of every row of a column with each query; for all of them as few passes as possible."""
    if isinstance(column, DenseColumn):
        yield from scores_many(f.metric, np.stack([np.asarray(query) for query in queries]), column.values)
        return
    for query in queries:
        if isinstance(column, SparseColumn) and f.metric is Metric.IP:
            yield _sparse_products(query, column)
        elif isinstance(column, MultiColumn) and column.lengths.all():
            pairs = scores_many(f.metric, np.atleast_2d(np.asarray(query)), column.values)
            yield np.maximum.reduceat(pairs, column.offsets[:-1], axis=1).sum(axis=0)
        else:
            yield np.array([score(f.metric, f.kind, query, column[row]) for row in range(len(column))])


def _sparse_products(query: Any, column: SparseColumn) -> Array:
    at = np.minimum(np.searchsorted(query.indices, column.indices), len(query) - 1)
    weights = np.where(query.indices[at] == column.indices, query.values[at], np.float32(0))
    owner = np.repeat(np.arange(len(column)), column.lengths)
    return np.bincount(owner, weights * column.values, minlength=len(column))
