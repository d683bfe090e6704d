"""Nearest records, records by id, and deletion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, cast

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg import sql

from vecferry.errors import SchemaMismatchError, UnsupportedError
from vecferry.model import (
    CollectionSchema,
    DType,
    Kind,
    Metric,
    RecordBatch,
    RecordId,
    SparseVector,
    VectorField,
    VectorRecord,
    encode_id,
)
from vecferry.ports import Fields
from vecferry.stores.pgvector.ddl import MAX_SPARSE_DIM
from vecferry.stores.pgvector.introspection import PgColumn, as_sql
from vecferry.stores.pgvector.options import Options
from vecferry.stores.pgvector.reading import RowReader, begin_read, code_id
from vecferry.stores.pgvector.server import Server
from vecferry.stores.pgvector.table import NamedType, Table, cast_text
from vecferry.stores.pgvector.wire import fits_id, text_fault, uuid_of

OPERATORS = {
    Metric.COSINE: "<=>",
    Metric.L2: "<->",
    Metric.IP: "<#>",
    Metric.L1: "<+>",
    Metric.HAMMING: "<~>",
    Metric.JACCARD: "<%>",
}
_SCORE_COLUMN = "vecferry_distance"
_OVERSAMPLED = 4  # candidates per hit where the index holds float16 and the column float32
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for. ``conditions`` are SQLAlchemy expressions."""

    vector: Any
    k: int
    field: str
    conditions: Sequence[Any]
    options: Options
    exact: bool = False


def search(server: Server, table: Table, schema: CollectionSchema, query: Query) -> list[VectorRecord]:
    """At most ``k`` records, best first. A row whose vector is NULL is never a hit."""
    try:
        field = schema.field(table.field_of(query.field))
    except KeyError as error:
        raise SchemaMismatchError(f"{table.name}: {error.args[0]}") from None
    column = table.columns[table.vectors[field.name]]
    if field.kind is Kind.MULTI:
        raise SchemaMismatchError(
            f"{table.name}: field {field.name!r} is an array of vectors; search another"
        )
    text = _vector_text(query.vector, field, column)
    clause = table.vector(column.name)
    exact = clause.op(OPERATORS[field.metric])(cast_text(text, _cast_type(column, field)))
    reader = RowReader(table, Fields.ALL)
    hits = (
        reader.select()
        .add_columns(exact.label(_SCORE_COLUMN))
        .where(clause.is_not(None), *query.conditions)
    )
    if field.kind is Kind.DENSE and field.dim is None:  # vectors of another dimension have no distance
        hits = hits.where(sa.func.vector_dims(clause) == len(query.vector))
    if query.exact:
        hits = hits.order_by(exact).limit(query.k)
    else:
        hits = _nearest(hits, table, field, column, text, exact, query.k)
    with server.raw() as connection:
        begin_read(connection)
        if query.exact:
            connection.execute("SET LOCAL enable_indexscan = off")
        _tune(connection, table, column.name, query.options)
        return _records(connection, reader, hits, field.metric)


def _nearest(
    hits: Any, table: Table, field: VectorField, column: PgColumn, text: str, exact: Any, k: int
) -> Any:
    """Order and limit; through the index's own expression where it is on another type than the column."""
    type_ = _indexed_as(table, field, column)
    if not type_:
        return hits.order_by(exact).limit(k)
    near = sa.cast(table.clause.c[column.name], NamedType(type_)).op(OPERATORS[field.metric])(
        cast_text(text, type_)
    )
    candidates = hits.order_by(near).limit(k * _OVERSAMPLED).subquery("candidates")
    return sa.select(*candidates.c).order_by(candidates.c[_SCORE_COLUMN]).limit(k)


def _indexed_as(table: Table, field: VectorField, column: PgColumn) -> str:
    """The type an index casts this column to, if it does."""
    wanted = f"halfvec({field.dim})" if column.type == "vector" else f"{column.type}({field.dim})"
    casts = [f"{column.type}({field.dim})", wanted]
    for index in table.indexes:
        definition = index.definition.replace('"', "")
        for type_ in casts:
            if index.method in ("hnsw", "ivfflat") and f"(({column.name})::{type_})" in definition:
                return type_
    return ""


def _cast_type(column: PgColumn, field: VectorField) -> str:
    return f"bit({field.dim})" if column.type == "bit" else column.vector_type


def _vector_text(vector: Any, field: VectorField, column: PgColumn) -> str:
    """The query in the type's own text form."""
    if field.kind is Kind.SPARSE:
        if not isinstance(vector, SparseVector):
            raise SchemaMismatchError(f"field {field.name!r} is sparse; search with a SparseVector")
        pairs = ",".join(
            f"{i + 1}:{v!r}"
            for i, v in zip(vector.indices.tolist(), vector.values.tolist(), strict=True)
            if v
        )
        return f"{{{pairs}}}/{column.dim or MAX_SPARSE_DIM}"
    values = np.asarray(vector)
    width = field.dtype.width(field.dim) if field.dim else None
    if values.ndim != 1 or (width is not None and len(values) != width):
        raise SchemaMismatchError(
            f"the query has shape {values.shape}, the field {field.name!r} holds ({width},)"
        )
    if field.dtype is DType.BIT:
        return "".join(map(str, np.unpackbits(values.astype(np.uint8))[: field.dim].tolist()))
    if not np.isfinite(values).all():
        raise SchemaMismatchError("the query holds NaN or an infinity; search with finite numbers")
    return "[" + ",".join(map(repr, values.astype(np.float32).tolist())) + "]"


def _tune(connection: psycopg.Connection[Any], table: Table, column: str, options: Options) -> None:
    """Options of this query alone (SET LOCAL). Those of pgvector exist once its library is loaded."""
    wanted = {"hnsw.ef_search": options.ef_search, "ivfflat.probes": options.probes}
    if options.iterative_scan:
        wanted["hnsw.iterative_scan"] = options.iterative_scan  # type: ignore[assignment]
        strict = options.iterative_scan == "strict_order"  # IVFFlat knows the relaxed order only
        wanted["ivfflat.iterative_scan"] = "relaxed_order" if strict else options.iterative_scan  # type: ignore[assignment]
    for name, value in wanted.items():
        if value is not None:
            connection.execute("SELECT '[1]'::vector")
            connection.execute(sql.SQL("SET LOCAL {} = {}").format(sql.SQL(name), sql.Literal(value)))


def _records(
    connection: psycopg.Connection[Any], reader: RowReader, select: Any, metric: Metric
) -> list[VectorRecord]:
    found: list[VectorRecord] = []
    distances: list[float] = []
    for batch in reader.stream(connection, select, _CHUNK, extra=(_SCORE_COLUMN, distances)):
        found.extend(batch.records())
    pairs = zip(found, distances, strict=True)
    return [record.model_copy(update={"score": _score(metric, distance)}) for record, distance in pairs]


def _score(metric: Metric, distance: float) -> float:
    if isnan(distance):  # the cosine with a vector of length 0
        return 0.0
    return 1.0 - distance if metric is Metric.COSINE else -distance


# -- by id ----------------------------------------------------------------------------------------


def fetch(
    server: Server,
    table: Table,
    ids: list[RecordId],
    fields: Fields,
    conditions: list[Any],
) -> RecordBatch:
    """The records found, in the order of ``ids``."""
    reader = RowReader(table, fields)
    batches: list[RecordBatch] = []
    with server.raw() as connection:
        begin_read(connection)
        for start in range(0, len(ids), _CHUNK):
            condition = _ids_condition(table, ids[start : start + _CHUNK])
            batches += reader.stream(connection, reader.select().where(condition, *conditions), _CHUNK)
    if not batches:
        return reader.empty()
    try:
        batch = RecordBatch.concat(batches)
    except ValueError as error:  # a batch holds one dimension
        raise SchemaMismatchError(
            f"{table.name}: these records have vectors of several dimensions; fetch them apart"
        ) from error
    at = {encode_id(id_): row for row, id_ in enumerate(batch.id_list)}
    wanted = [(id_, at.get(encode_id(_as_held(id_, table)))) for id_ in ids]
    there = [(id_, row) for id_, row in wanted if row is not None]
    found = batch.take([row for _, row in there]).replace(cursor=None)
    asked = [id_ for id_, _ in there]
    return (
        found if found.id_list == asked else found.replace(ids=asked)
    )  # a UUID that was asked for as text


def _as_held(id_: RecordId, table: Table) -> RecordId:
    """The id as the key gives it back: a uuid column also finds UUIDs that are given as text."""
    if table.coded_ids:
        return id_
    parts = id_ if isinstance(id_, tuple) else (id_,)
    if len(parts) != len(table.id):
        return id_
    columns = [table.columns[name] for name in table.id]
    held = [
        (uuid_of(part) or part) if column.id_kind == "uuid" else part
        for part, column in zip(parts, columns, strict=True)
    ]
    return tuple(held) if isinstance(id_, tuple) else held[0]


def delete(server: Server, table: Table, ids: list[RecordId]) -> int:
    """Delete by id in one transaction; returns how many there were."""
    if table.by_place:
        raise UnsupportedError(
            f"{table.name} has no key, so a record cannot be told from its neighbour; add one"
        )
    gone, target = 0, cast(sa.TableClause, table.clause)
    fixed = table.own_rows()
    with server.raw() as connection:
        for start in range(0, len(ids), _CHUNK):
            condition = _ids_condition(table, ids[start : start + _CHUNK])
            statement, values = as_sql(sa.delete(target).where(condition, *fixed))
            gone += connection.execute(statement, values).rowcount
        connection.commit()
    return gone


def _ids_condition(table: Table, ids: Sequence[RecordId]) -> Any:
    """``id IN (…)``; ids whose type is not that of the column match nothing."""
    columns = [table.columns[name] for name in table.id]
    keys = []
    for id_ in ids:
        parts: Any = (
            (code_id(id_, table.coded_ids),)
            if table.coded_ids
            else id_
            if isinstance(id_, tuple)
            else (id_,)
        )
        if len(parts) == len(columns) and all(_may_be(p, c) for p, c in zip(parts, columns, strict=True)):
            keys.append([str(part) for part in parts])
    if not keys:
        return sa.false()
    if len(columns) == 1:
        texts = sa.bindparam(None, [key[0] for key in keys], type_=sa.ARRAY(sa.Text), unique=True)
        array = sa.cast(texts, NamedType(f"{columns[0].sql_type}[]"))
        return table.clause.c[columns[0].name] == sa.any_(array)
    values = [sa.tuple_(*(cast_text(p, c.sql_type) for p, c in zip(k, columns, strict=True))) for k in keys]
    return sa.tuple_(*(table.clause.c[c.name] for c in columns)).in_(values)


def _may_be(part: Any, column: PgColumn) -> bool:
    return fits_id(part, column) and not (isinstance(part, str) and text_fault(part))
