"""What the file stores check and compute on batches: columns against a schema, filters, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vecferry.errors import SchemaMismatchError
from vecferry.model import (
    CollectionSchema,
    Kind,
    RecordBatch,
    SparseVector,
    VectorField,
    Where,
    predicate,
)
from vecferry.model.metrics import score, scores_many
from vecferry.model.vectors import Array, Column, DenseColumn
from vecferry.ports import Fields


def kind_of(batch: RecordBatch) -> str:
    """The kind of a batch's ids, as the log names it."""
    return batch.ids.kind


def filtered(batch: RecordBatch, where: Where, fields: Fields) -> RecordBatch:
    """The rows that pass; metadata that was read only for the filter is left out again."""
    passes = predicate(where)
    rows = [i for i, metadata in enumerate(batch.metadata_list) if passes(metadata)]
    kept = batch.take(rows)
    return kept if fields.metadata else kept.replace(metadata=None)


def check_columns(batch: RecordBatch, schema: CollectionSchema, url: str) -> None:
    """Whether each vector column is a field of the schema, in kind and width.

    Raises:
        SchemaMismatchError: naming the field.
    """
    fields = {field.name: field for field in schema.fields}
    for name, column in batch.columns():
        field = fields.get(name)
        if field is None:
            raise SchemaMismatchError(f"{url} has no vector field {name!r}, only {sorted(fields)}")
        if field.dim is None or field.kind is Kind.SPARSE:
            continue
        width, due = column.values.shape[-1], field.dtype.width(field.dim)
        if width != due and column.present.any():
            raise SchemaMismatchError(
                f"vectors {name!r} have {width} components where {url} holds {due}; write to another target"
            )


def field_named(name: str, schema: CollectionSchema, url: str) -> VectorField:
    """The field that a query names.

    Raises:
        SchemaMismatchError: naming the fields that exist.
    """
    try:
        return schema.field(name)
    except KeyError as error:
        raise SchemaMismatchError(f"{url} has {error.args[0]}; search in one of these") from None


def check_query(vector: Any, field: VectorField) -> None:
    """Whether a query has the shape of the field.

    Raises:
        SchemaMismatchError: naming both shapes.
    """
    if isinstance(vector, SparseVector) or field.kind is Kind.SPARSE or not field.dim:
        return
    width = field.dtype.width(field.dim)
    if np.shape(vector)[-1:] != (width,) or (field.kind is Kind.DENSE and np.ndim(vector) != 1):
        raise SchemaMismatchError(
            f"the query has shape {np.shape(vector)}, the field {field.name!r} holds ({width},)"
        )


def score_batch(
    batch: RecordBatch, field: VectorField, vectors: Sequence[Any], where: Where | None
) -> Array:
    """float32 ``(queries, n)``: the scores of each row; −inf where it has no vector or fails the filter."""
    side: Mapping[str, Column] = batch.sparse_vectors if field.kind is Kind.SPARSE else batch.vectors
    column = side.get(field.name)
    points = np.full((len(vectors), len(batch)), -np.inf, dtype=np.float32)
    if column is None:
        return points
    fits = column.present.copy()
    if where is not None:
        fits &= np.array(list(map(predicate(where), batch.metadata_list)), dtype=np.bool_)
    rows = np.flatnonzero(fits)
    if isinstance(column, DenseColumn):
        values = column.values if len(rows) == len(batch) else column.values[rows]
        points[:, rows] = scores_many(field.metric, np.stack(vectors), values)
    else:
        for at, vector in enumerate(vectors):
            points[at, rows] = [score(field.metric, field.kind, vector, column[i]) for i in rows.tolist()]
    return points
