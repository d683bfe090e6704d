"""Finding the nearest records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vecferry.errors import SchemaMismatchError
from vecferry.model import (
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
from vecferry.ports import Fields
from vecferry.stores.qdrant.connection import Connection
from vecferry.stores.qdrant.facts import Facts

_AT_ONCE = 32


def find(
    at: Connection,
    facts: Facts,
    vectors: Sequence[Any],
    k: int,
    *,
    field: str,
    where: Where | None,
    fields: Fields = Fields.ALL,
    params: dict[str, Any] | None = None,
) -> list[list[VectorRecord]]:
    """As `vecferry.ports.BatchSearchable.search_many`; ``params`` are Qdrant's ``SearchParams``."""
    from qdrant_client import models

    if k < 1:  # a server refuses to be asked for nothing
        return [[] for _ in vectors]
    target = facts.schema.field(field)
    queries = [_query(vector, target) for vector in vectors]
    seen = fields if where is None else replace(fields, metadata=True)
    request = {
        "using": target.name or None,
        "filter": facts.bounds(check_where(where)).upper if where else None,
        "params": models.SearchParams(**params) if params else None,
        "with_payload": facts.payload_selector(seen),
        "with_vector": facts.vector_names(seen),
    }
    found: dict[int, list[VectorRecord]] = {}
    asked = k
    while open_ := [i for i in range(len(queries)) if i not in found]:
        for low in range(0, len(open_), _AT_ONCE):
            some = open_[low : low + _AT_ONCE]
            answers = _ask(at, facts.schema.name, [queries[i] for i in some], {**request, "limit": asked})
            for i, points in zip(some, answers, strict=True):
                hits = _hits(facts.batch(points, seen), points, target.metric)
                hits = [hit for hit in hits if where is None or matches(where, hit.metadata)]
                if len(hits) >= k or len(points) < asked:
                    found[i] = hits[:k]
        asked *= 4  # the server could not apply the whole filter: look further down
    return [found[i] for i in range(len(queries))]


def _ask(at: Connection, collection: str, queries: list[Any], request: dict[str, Any]) -> list[list[Any]]:
    from qdrant_client import models

    if len(queries) == 1:
        names = {"filter": "query_filter", "params": "search_params", "with_vector": "with_vectors"}
        one = {names.get(name, name): value for name, value in request.items()}
        return [at.call("query_points", collection, queries[0], **one).points]
    requests = [models.QueryRequest(query=query, **request) for query in queries]
    answers = at.call("query_batch_points", collection, requests)
    return [answer.points for answer in answers]


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
