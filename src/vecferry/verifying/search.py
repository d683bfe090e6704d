"""Whether searches on the target find what an exact search over the expected vectors finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vecferry.errors import VecferryError
from vecferry.model import (
    CollectionSchema,
    Kind,
    RecordBatch,
    VectorField,
    VectorRecord,
    encode_id,
)
from vecferry.model.metrics import scores_many
from vecferry.model.vectors import Array, DenseColumn
from vecferry.ports import BatchSearchable, Fields, Searchable
from vecferry.verifying.result import SearchProof

_SPARE = 16  # kept beyond k, so that rows rounded apart and ties are still known
_LOOK = 16  # rows of a partition among which a query is sought, since some may lack the vector
_EPSILON = 1e-4  # two scores this near, relative to the greater, count as a tie


@dataclass
class _Query:
    """One query and the best rows of the expected stream so far, exact scores, best first."""

    vector: Array
    best: list[tuple[float, str]] = field(default_factory=list)


class SearchCheck:
    """Sees the expected stream go by and keeps the exact nearest of a few query vectors.

    The queries are vectors stored in the target, a few from the beginning of each of its partitions: the
    same ones as long as the target is the same.

    Args:
        queries: how many; 0 switches the check off.
        k: neighbours a query.
        sees_all: whether the expected stream is all that the target should hold.
    """

    def __init__(
        self, schema: CollectionSchema, target: Any, *, queries: int, k: int, sees_all: bool = True
    ) -> None:
        self._target, self._k, self._sees_all = target, k, sees_all
        dense = [f for f in schema.fields if f.kind is Kind.DENSE]
        able = isinstance(target, Searchable) and queries > 0
        self._fields = dense if able else []
        self._queries = self._draw(queries) if self._fields else {}

    def _draw(self, queries: int) -> dict[str, list[_Query]]:
        drawn: dict[str, list[_Query]] = {f.name: [] for f in self._fields}
        parts = list(self._target.partitions(queries))[:queries]
        share = -(-queries // max(len(parts), 1))
        for part in parts:
            only = Fields(vectors=tuple(drawn), text=False, metadata=False)
            batch = next(
                iter(self._target.scan(partition=part, batch_size=max(share, _LOOK), fields=only)), None
            )
            for name in drawn if batch is not None else ():
                column = batch.vectors.get(name) if batch is not None else None
                if isinstance(column, DenseColumn):
                    rows = [column.values[i].copy() for i in np.flatnonzero(column.present)]
                    drawn[name] += [_Query(row) for row in rows[: min(share, queries - len(drawn[name]))]]
        return drawn

    def observe(self, batch: RecordBatch) -> None:
        """Score a batch of the expected stream."""
        for f in self._fields:
            column = batch.vectors.get(f.name)
            if not isinstance(column, DenseColumn) or not self._queries[f.name]:
                continue
            rows = np.flatnonzero(column.present)
            values = column.values if len(rows) == len(batch) else column.values[rows]
            self._observe(f, values, rows, batch)

    def _observe(self, f: VectorField, values: Array, rows: Array, batch: RecordBatch) -> None:
        queries = self._queries[f.name]
        points = scores_many(f.metric, np.stack([q.vector for q in queries]), values)
        keep = self._k + _SPARE
        for query, line in zip(queries, points, strict=True):
            top = np.argpartition(-line, keep)[:keep] if len(line) > keep else np.arange(len(line))
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
            name: [[str(q.vector.dtype), q.vector.tolist(), q.best] for q in queries]
            for name, queries in self._queries.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored `state`; nothing of it (``{}``) leaves the check unmade."""
        self._queries = {f.name: [] for f in self._fields}
        for name in self._queries:
            for dtype, vector, best in state.get(name, ()):
                ranked = [(float(point), str(key)) for point, key in best]
                self._queries[name].append(_Query(np.array(vector, dtype=dtype), ranked))

    def proofs(self) -> tuple[list[SearchProof], list[str]]:
        """Ask the target, and compare. Also notes on what could not be asked."""
        found: list[SearchProof] = []
        notes: list[str] = []
        for f in self._fields:
            queries = [query for query in self._queries[f.name] if query.best]
            try:
                shares = [self._share(q, h) for q, h in zip(queries, self._ask(f, queries), strict=True)]
            except VecferryError as error:
                notes.append(f"searches in {f.name or 'the vector field'} were not compared: {error}")
                continue
            if shares:
                found.append(
                    SearchProof(
                        field=f.name,
                        queries=len(shares),
                        k=self._k,
                        overlap=float(np.mean(shares)),
                        worst=float(min(shares)),
                    )
                )
        return found, notes

    def _ask(self, f: VectorField, queries: list[_Query]) -> list[list[VectorRecord]]:
        vectors = [query.vector for query in queries]
        if isinstance(self._target, BatchSearchable):
            return self._target.search_many(vectors, self._k, field=f.name, fields=Fields.IDS)
        return [self._target.search(vector, self._k, field=f.name) for vector in vectors]

    def _share(self, query: _Query, hits: list[VectorRecord]) -> float:
        wanted = query.best[: self._k]
        known = {key: point for point, key in query.best}
        keys = [encode_id(hit.id) for hit in hits]
        # A record that is not among the best is no nearer than the last of them, whatever the target says.
        most = query.best[-1][0] if self._sees_all and len(query.best) == self._k + _SPARE else np.inf
        points = [known.get(k, min(hit.score or 0.0, most)) for k, hit in zip(keys, hits, strict=True)]
        last = min(points, default=-np.inf) if len(hits) >= self._k else -np.inf
        slack = max(abs(last), 1e-6) * _EPSILON if np.isfinite(last) else 0.0
        good = [key in keys or point <= last + slack for point, key in wanted]
        return sum(good) / len(good)
