"""What a store asks about a table beyond its structure."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from vecferry.errors import NotFoundError
from vecferry.model import CollectionSchema, Kind
from vecferry.stores.pgvector import filters
from vecferry.stores.pgvector.address import Server, TableName
from vecferry.stores.pgvector.columns import VECTOR_TYPES, RowMap
from vecferry.stores.pgvector.compiled import as_sql
from vecferry.stores.pgvector.frameworks import Place
from vecferry.stores.pgvector.memo import Memo
from vecferry.stores.pgvector.reflect import Relation, reflect_table


def reflect_place(connection: psycopg.Connection[Any], place: Place | None, name: TableName) -> Relation:
    """The relation at a place, with the memo that the place keeps.

    Raises:
        NotFoundError: if there is no such place.
    """
    if place is None:
        raise NotFoundError(f"there is no table {name}; check its name, schema and the search path")
    relation = reflect_table(connection, place.table)
    return relation if place.collection is None else replace(relation, memo=place.memo)


def with_dims(connection: psycopg.Connection[Any], relation: Relation, rows: RowMap) -> Relation:
    """Measure dense columns without a fixed dimension (LangChain's default): do all rows agree?"""
    dims = {}
    for name in rows.vectors.values():
        column = relation.columns[name]
        if column.dim is not None or VECTOR_TYPES[column.type][0] is Kind.SPARSE:
            continue
        size = sa.func.vector_dims(relation.clause.c[name])
        query = sa.select(sa.func.min(size), sa.func.max(size)).where(*filters.fixed(relation, rows))
        low, high = connection.execute(*as_sql(query)).fetchone() or (None, None)
        if low is not None and low == high:
            dims[name] = low
    return replace(relation, dims=dims)


def has_rows(connection: psycopg.Connection[Any], relation: Relation, rows: RowMap) -> bool:
    """Whether the collection holds a record."""
    one: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(relation.clause)
    query = sa.select(sa.exists(one.where(*filters.fixed(relation, rows))))
    row = connection.execute(*as_sql(query)).fetchone()
    return bool(row and row[0])


def learned(have: CollectionSchema, memo: Memo, schema: CollectionSchema) -> CollectionSchema:
    """What is there; where nothing is recorded, the first writer says which metric and dimension it is."""
    known = {field.name for field in memo.collection.fields}
    wanted = {field.name: field for field in schema.fields}
    for field in have.fields:
        want = wanted.get(field.name)
        if field.name not in known and want is not None:
            metric = want.metric if not field.index else field.metric
            have = have.with_field(
                field.model_copy(update={"metric": metric, "dim": field.dim or want.dim})
            )
    return have


def advance_sequence(server: Server, relation: Relation, rows: RowMap) -> None:
    """Let the sequence of an integer key go on behind the ids written, so that the app's inserts fit in."""
    if len(rows.id) != 1 or relation.columns[rows.id[0]].id_kind != "int" or relation.table is None:
        return
    table, name = relation.table.quoted, rows.id[0]
    with server.raw() as connection:
        query = "SELECT pg_get_serial_sequence(%s, %s)::regclass::text"
        row = connection.execute(query, [table.as_string(connection), name]).fetchone()
        if row and row[0]:
            advance = "SELECT setval({}, m) FROM (SELECT max({}) AS m FROM {}) AS x"
            advance += " WHERE m > (SELECT last_value FROM {})"
            parts = [sql.Literal(row[0]), sql.Identifier(name), table, sql.SQL(row[0])]
            # A role that may insert but not set the sequence leaves it to the owner.
            with suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(sql.SQL(advance).format(*parts))
        connection.commit()
