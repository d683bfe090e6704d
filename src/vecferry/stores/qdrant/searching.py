"""Finding the nearest records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vecferry.errors import SchemaMismatchError
from vecferry.ports import Fields
from vecferry.records import (
    Kind,
    Metric,
    RecordBatch,
    SparseVector,
    VectorField,
    VectorRecord,
    Where,
    check_where,
    matches,
)
from vecferry.stores.qdrant.connection import Connection
from vecferry.stores.qdrant.facts import Facts


def find(
    at: Connection,
    facts: Facts,
    vector: Any,
    k: int,
    field: str,
    where: Where | None,
    params: dict[str, Any],
) -> list[VectorRecord]:
    """As `vecferry.ports.Searchable.search`; ``params`` are Qdrant's ``SearchParams``."""
    from qdrant_client import models

    target = facts.schema.field(field)
    request = {
        "query": _query(vector, target),
        "using": target.name or None,
        "query_filter": facts.bounds(check_where(where)).upper if where else None,
        "search_params": models.SearchParams(**params) if params else None,
        "with_payload": True,
        "with_vectors": True,
    }
    asked = k
    while True:
        points = at.call("query_points", facts.schema.name, limit=asked, **request).points
        hits = _hits(facts.batch(points, Fields.ALL), points, target.metric)
        hits = [hit for hit in hits if where is None or matches(where, hit.metadata)]
        if len(hits) >= k or len(points) < asked:
            return hits[:k]
        asked *= 4  # the server could not apply the whole filter: look further down


def _query(vector: Any, field: VectorField) -> Any:
    from qdrant_client import models

    if field.kind is Kind.SPARSE:
        if not isinstance(vector, SparseVector):
            raise SchemaMismatchError("a sparse field is searched with a SparseVector")
        return models.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
    if isinstance(vector, SparseVector) or np.shape(vector)[-1:] != (field.dim,):
        shape = "sparse" if isinstance(vector, SparseVector) else f"of shape {np.shape(vector)}"
        raise SchemaMismatchError(f"the query is {shape}, the field {field.name!r} holds ({field.dim},)")
    rows = np.asarray(vector, dtype=np.float32)
    return np.atleast_2d(rows).tolist() if field.kind is Kind.MULTI else rows.tolist()


def _hits(batch: RecordBatch, points: Sequence[Any], metric: Metric) -> list[VectorRecord]:
    # Qdrant answers with the distance itself, and with its negative for a multi-vector.
    distance = metric in (Metric.L2, Metric.L1)
    scores = [-abs(p.score) if distance else p.score for p in points]
    records = zip(batch.records(), scores, strict=True)
    return [record.model_copy(update={"score": float(score)}) for record, score in records]
