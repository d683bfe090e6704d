"""Shares of a table by ranges of its key."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.sql.util import ClauseAdapter

from vecferry.ports import Partition
from vecferry.stores.pgvector.columns import RowMap
from vecferry.stores.pgvector.compiled import as_sql
from vecferry.stores.pgvector.reflect import Relation

_SAMPLED_PAGES = 400
_PAGES = "SELECT pg_relation_size(to_regclass(%s)) / current_setting('block_size')::bigint"


def in_range(relation: Relation, rows: RowMap, low: list[str] | None, high: list[str] | None) -> list[Any]:
    """The conditions ``low < key`` and ``key ≤ high``; a row comparison where there are several columns."""
    conditions = []
    if low is not None:
        conditions.append(_key(relation, rows) > _values(relation, rows, low))
    if high is not None:
        conditions.append(_key(relation, rows) <= _values(relation, rows, high))
    return conditions


def ordered(relation: Relation, rows: RowMap) -> list[Any]:
    return [relation.clause.c[name] for name in rows.key]


def find_partitions(
    connection: psycopg.Connection[Any],
    relation: Relation,
    rows: RowMap,
    want: int,
    conditions: list[Any],
    total: int,
) -> list[Partition]:
    """About ``want`` ranges of similar size that cover every possible key, also those added later."""
    edges = _edges(connection, relation, rows, want, conditions) if want > 1 else []
    bounds = [None, *edges, None]
    share = -(-total // (len(bounds) - 1))
    return [Partition(str(i), [low, high], share) for i, (low, high) in enumerate(pairwise(bounds))]


def _edges(
    connection: psycopg.Connection[Any], relation: Relation, rows: RowMap, want: int, conditions: list[Any]
) -> list[list[str]]:
    """Up to ``want − 1`` keys that cut the rows (or a sample of a large table's pages) evenly."""
    source = _sample(connection, relation)
    sampled = ClauseAdapter(source)
    keys = [sampled.traverse(c).label(f"k{i}") for i, c in enumerate(ordered(relation, rows))]
    chosen = [sampled.traverse(condition) for condition in conditions]
    inner = sa.select(*keys).select_from(source).where(*chosen).subquery("keys")
    order = [inner.c[f"k{i}"] for i in range(len(keys))]
    number = sa.func.row_number().over(order_by=order).label("number")
    numbered = sa.select(*order, number, sa.func.count().over().label("total")).subquery("numbered")
    at = numbered.c.number
    # Integer division: the last row of each of the first want − 1 shares.
    last: Any = sa.literal_column(f"numbered.number * {want} / numbered.total")
    before: Any = sa.literal_column(f"(numbered.number - 1) * {want} / numbered.total")
    texts = [sa.cast(numbered.c[f"k{i}"], sa.Text) for i in range(len(keys))]
    query = sa.select(*texts).where(last != before, at < numbered.c.total).order_by(at)
    statement, values = as_sql(query)
    return [list(row) for row in connection.execute(statement, values)]


def _sample(connection: psycopg.Connection[Any], relation: Relation) -> sa.FromClause:
    """The relation itself, or some hundreds of random pages of a large table."""
    if relation.kind != "r" or relation.table is None:
        return relation.clause
    row = connection.execute(_PAGES, [relation.table.quoted.as_string(connection)]).fetchone()
    pages = row[0] if row and row[0] else 0
    if pages <= 2 * _SAMPLED_PAGES:
        return relation.clause
    share: Any = sa.literal_column(f"{100 * _SAMPLED_PAGES / pages:.6f}")
    return sa.tablesample(relation.clause, sa.func.system(share), name=relation.table.name)


def _key(relation: Relation, rows: RowMap) -> Any:
    columns = ordered(relation, rows)
    return columns[0] if len(columns) == 1 else sa.tuple_(*columns)


def _values(relation: Relation, rows: RowMap, texts: list[str]) -> Any:
    types = [relation.columns[name].sql_type for name in rows.key]
    values = [cast_text(text, type_) for text, type_ in zip(texts, types, strict=True)]
    return values[0] if len(values) == 1 else sa.tuple_(*values)


def cast_text(text: str, type_: str) -> Any:
    """``CAST(:text AS type)`` for any type of the server."""
    parameter = sa.bindparam(None, text, type_=sa.Text(), unique=True)
    return sa.cast(parameter, _Named(type_))


class _Named(sa.types.UserDefinedType[Any]):
    """A type by the server's own name for it."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name
