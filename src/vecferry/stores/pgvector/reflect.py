"""Looking at what exists: columns, keys and indexes of a table, view or select."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from vecferry.errors import NotFoundError
from vecferry.stores.pgvector.address import TableName
from vecferry.stores.pgvector.columns import PgColumn
from vecferry.stores.pgvector.compiled import as_sql
from vecferry.stores.pgvector.memo import Memo, parse_memo

# The modifier −1 asks for a name that cuts nothing: a cast to ``character`` or ``bit`` keeps one of them.
_TYPES = """
    SELECT t.oid, t.typname, t.typcategory, e.typname, format_type(t.oid, -1)
    FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
    WHERE t.oid = ANY(%s)
"""
_TABLE = """
    SELECT c.oid, c.relkind, c.reltuples::bigint, n.nspname, obj_description(c.oid, 'pg_class'),
           c.relkind = 'r' AND EXISTS (SELECT 1 FROM pg_inherits h WHERE h.inhparent = c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)
"""
_ATTRIBUTES = """
    SELECT attname, attnotnull, attgenerated <> '' OR attidentity = 'a', attidentity <> '' OR atthasdef
    FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
"""
_INDEXES = """
    SELECT i.relname, am.amname,
           x.indisunique AND x.indimmediate AND x.indpred IS NULL AND x.indexprs IS NULL,
           x.indisprimary, x.indisvalid, i.reloptions, pg_get_indexdef(x.indexrelid),
           array(SELECT a.attname::text FROM unnest(x.indkey[:x.indnkeyatts - 1]) WITH ORDINALITY k(n, o)
                 JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.n ORDER BY k.o),
           array(SELECT o.opcname::text FROM unnest(x.indclass) WITH ORDINALITY k(n, o2)
                 JOIN pg_opclass o ON o.oid = k.n ORDER BY k.o2),
           x.indpred IS NOT NULL
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am am ON am.oid = i.relam
    WHERE x.indrelid = %s ORDER BY x.indisprimary DESC, i.relname
"""


@dataclass(frozen=True, slots=True)
class PgIndex:
    """An index: ``columns`` without expressions, ``operators`` the names of its operator classes."""

    name: str
    method: str
    unique: bool
    primary: bool
    valid: bool
    options: dict[str, str]
    definition: str
    columns: tuple[str, ...]
    operators: tuple[str, ...]
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Relation:
    """Something that rows are read from.

    Attributes:
        clause: for the FROM of an SQLAlchemy select.
        columns: by name, in the order of the table.
        table: its name with schema; ``None`` for a select.
        kind: ``pg_class.relkind`` (``r`` table, ``p`` partitioned, ``v`` view, ``m`` materialised view),
            or ``s`` for a select.
        estimate: rows by the server's statistics, −1 if never analysed.
        dims: of dense columns without a fixed dimension, where all rows have the same.
        inherited: whether other tables inherit from it: their rows are read too, which no index of its own
            covers.
    """

    clause: sa.FromClause
    columns: dict[str, PgColumn]
    table: TableName | None = None
    kind: str = "s"
    estimate: int = -1
    indexes: tuple[PgIndex, ...] = ()
    memo: Memo | None = None
    dims: dict[str, int] = field(default_factory=dict)
    inherited: bool = False

    @property
    def is_table(self) -> bool:
        return self.kind in ("r", "p")

    @property
    def primary_key(self) -> tuple[str, ...]:
        return next((i.columns for i in self.indexes if i.primary), ())

    def is_unique(self, names: tuple[str, ...]) -> bool:
        """Whether an index of the table itself guarantees that no two rows agree in these columns.

        A column that may be NULL takes no part: any number of rows may agree in that.
        """
        have = {name for name in names if name in self.columns and not self.columns[name].nullable}
        return not self.inherited and any(
            index.unique and index.valid and index.columns and set(index.columns) <= have
            for index in self.indexes
        )


def find_table(connection: psycopg.Connection[Any], name: TableName) -> TableName | None:
    """The table with its schema filled in, or ``None`` if there is none of that name."""
    row = connection.execute(_TABLE, [name.quoted.as_string(connection)]).fetchone()
    return TableName(name.name, row[3]) if row else None


def reflect_table(connection: psycopg.Connection[Any], name: TableName) -> Relation:
    """Columns, indexes and memo of a table or view.

    Raises:
        NotFoundError: if there is none of that name.
    """
    row = connection.execute(_TABLE, [name.quoted.as_string(connection)]).fetchone()
    if row is None:
        raise NotFoundError(f"there is no table {name}; check its name, schema and the search path")
    oid, kind, estimate, schema, comment, inherited = row
    table = TableName(name.name, schema)
    flags = {n: rest for n, *rest in connection.execute(_ATTRIBUTES, [oid])}
    columns = {}
    for column in _columns(connection, sql.SQL("SELECT * FROM {} LIMIT 0").format(table.quoted), None):
        notnull, generated, default = flags[column.name]
        columns[column.name] = replace(
            column,
            nullable=not notnull,
            writable=not generated,
            defaulted=notnull and default and not generated,
        )
    clause = sa.table(name.name, *(sa.column(n) for n in columns), schema=schema)
    indexes, memo = _indexes(connection, oid), parse_memo(comment)
    return Relation(clause, columns, table, kind, estimate, indexes, memo, inherited=inherited)


def reflect_select(
    connection: psycopg.Connection[Any], select: str | sa.Select[Any], params: dict[str, Any]
) -> Relation:
    """Columns of a user-given select, which becomes a subquery."""
    if isinstance(select, str):
        text = sa.text(select.strip().rstrip(";"))
        query: Any = text.bindparams(**params) if params else text
    else:
        query = select.params(params) if params else select
    statement, values = as_sql(query)
    columns = _columns(connection, sql.SQL("SELECT * FROM ({}) AS probe LIMIT 0").format(statement), values)
    if isinstance(query, sa.TextClause):
        query = query.columns(*(sa.column(c.name) for c in columns))
    return Relation(query.subquery("selected"), {c.name: c for c in columns})


def _columns(
    connection: psycopg.Connection[Any], probe: sql.Composed, values: dict[str, Any] | None
) -> list[PgColumn]:
    result = connection.execute(probe, values).pgresult
    assert result is not None
    oids = [result.ftype(i) for i in range(result.nfields)]
    types = {oid: rest for oid, *rest in connection.execute(_TYPES, [oids])}
    columns = []
    for i, oid in enumerate(oids):
        type_, category, element, sql_type = types[oid]
        name = (result.fname(i) or b"").decode()
        columns.append(PgColumn(name, type_, oid, result.fmod(i), category, element, sql_type))
    return columns


def _indexes(connection: psycopg.Connection[Any], oid: int) -> tuple[PgIndex, ...]:
    found = []
    for (
        name,
        method,
        unique,
        primary,
        valid,
        options,
        definition,
        columns,
        operators,
        partial,
    ) in connection.execute(_INDEXES, [oid]):
        settings = dict(option.split("=", 1) for option in options or ())
        found.append(
            PgIndex(
                name,
                method,
                unique,
                primary,
                valid,
                settings,
                definition,
                tuple(columns),
                tuple(operators),
                partial,
            )
        )
    return tuple(found)
