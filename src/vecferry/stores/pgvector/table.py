"""`Table`: a relation and what lies in which of its columns: the mapped table.

What a record is made of is decided in `mapping`; everything that reads or writes rows takes a `Table`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.sql.util import ClauseAdapter

from vecferry.errors import SchemaMismatchError
from vecferry.model import CollectionSchema, DType, Kind, Loss, Metric, VectorField
from vecferry.ports import Partition
from vecferry.stores.pgvector.introspection import (
    PgColumn,
    PgIndex,
    Relation,
    TableMetadata,
    as_sql,
)
from vecferry.stores.pgvector.server import Server, TableName

VENDOR = "pgvector"
"""The key of a schema's settings under which a table says which metadata has columns."""
PLACE = "ctid"
"""The system column that names a row's place: the key of a table that has none."""

_METRIC_OF_OPERATORS = {
    "cosine_ops": Metric.COSINE,
    "l2_ops": Metric.L2,
    "ip_ops": Metric.IP,
    "l1_ops": Metric.L1,
    "hamming_ops": Metric.HAMMING,
    "jaccard_ops": Metric.JACCARD,
}
_SAMPLED_PAGES = 400
_PAGES = "SELECT pg_relation_size(to_regclass(%s)) / current_setting('block_size')::bigint"


@dataclass(frozen=True, slots=True)
class Table:
    """How a record lies in a row of a relation.

    Attributes:
        relation: what rows are read from.
        key: the columns of a unique key: they order a scan and name its cursors.
        id: the columns that make the record's id; several make a tuple.
        coded_ids: for a text column made by this adapter, the type whose ids stand in it as they are
            (``str``, ``int``, ``uuid``); ids of other types are written typed. Empty: only text fits.
        text: the column of the text.
        vectors: vector field → column.
        json: the json(b) column whose object is the metadata (or what typed columns do not hold).
        typed: metadata key → column. Columns of a key of several columns are metadata, too.
        fixed: column → value, the same in all rows of the collection: read as a filter, written as is.
        layout: ``plain`` or a framework's; see `frameworks`.
        filled: column → SQL of its value in a new row, where neither the record nor the server has one.
        passed_over: vector columns that are not read.
        odd: the number of vectors whose dimension is not that of most, by column.
        inexact: the number of vectors that float32 does not hold exactly, by column.
    """

    relation: Relation
    key: tuple[str, ...]
    id: tuple[str, ...]
    coded_ids: str = ""
    text: str | None = None
    vectors: dict[str, str] = field(default_factory=dict)
    json: str | None = None
    typed: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    layout: str = "plain"
    filled: dict[str, str] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    odd: dict[str, int] = field(default_factory=dict)
    inexact: dict[str, int] = field(default_factory=dict)

    # -- of the relation ----------------------------------------------------------------------

    @property
    def columns(self) -> dict[str, PgColumn]:
        return self.relation.columns

    @property
    def clause(self) -> sa.FromClause:
        return self.relation.clause

    @property
    def name(self) -> TableName | None:
        return self.relation.table

    @property
    def indexes(self) -> tuple[PgIndex, ...]:
        return self.relation.indexes

    @property
    def metadata(self) -> TableMetadata | None:
        return self.relation.metadata

    @property
    def made(self) -> bool:
        """Whether this adapter made the table."""
        return bool(self.metadata and self.metadata.made)

    @property
    def shown(self) -> str:
        return str(self.name) if self.name else "the select"

    # -- columns ------------------------------------------------------------------------------

    def column(self, name: str) -> Any:
        return self.clause.c[name]

    def vector(self, name: str) -> Any:
        """The vectors of a column, also of one that holds them as an array or as text."""
        return self.columns[name].as_vector(self.clause.c[name])

    def field_of(self, name: str) -> str:
        """The field called ``name``, also when it is given by its column's name, or is the only one."""
        if name in self.vectors:
            return name
        for known, column in self.vectors.items():
            if column == name:
                return known
        if not name and len(self.vectors) == 1:
            return next(iter(self.vectors))
        raise KeyError(f"no vector field {name!r}; there are {sorted(self.vectors)}")

    @property
    def ours(self) -> set[str]:
        """The columns that this adapter made and writes as a whole; the others are the application's."""
        if not self.made or self.metadata is None:
            return set()
        noted = self.metadata.columns
        if noted:
            return {noted["id"], noted["text"], noted["json"], *noted["vectors"].values()} | {
                *noted["typed"].values()
            }
        parts = {*self.key, *self.id, *self.vectors.values(), *self.fixed}
        return parts | {name for name in (self.text, self.json) if name}

    def keeps(self, name: str, known: set[str]) -> bool:
        """Whether an update leaves a typed column as it is when the record brings no value for it.

        ``known`` are keys that have a column in the source: there no value is a value, too.
        """
        column = self.columns[name]
        return column.defaulted or not column.writable or (name not in self.ours | known)

    @property
    def by_place(self) -> bool:
        """Whether rows have no key and are named by their place."""
        return self.id == (PLACE,)

    @property
    def key_is_unique(self) -> bool:
        return self.key == (PLACE,) or self.relation.is_unique(self.key)

    def in_order_of_places(self) -> Table:
        """The same, scanned as the rows lie: in the order of writing, and without a jump for each.

        For a table that nobody else writes to: an update moves a row.
        """
        if self.relation.kind != "r" or self.relation.inherited or self.by_place:
            return self
        return replace(self, relation=self.relation.with_place(PLACE), key=(PLACE,))

    # -- conditions ---------------------------------------------------------------------------

    def own_rows(self) -> list[Any]:
        """What tells the rows of this collection from others in the same table."""
        return [self.clause.c[name] == value for name, value in self.fixed.items()]

    def ordered(self) -> list[Any]:
        return [self.clause.c[name] for name in self.key]

    def in_range(self, low: list[str] | None, high: list[str] | None) -> list[Any]:
        """``low < key`` and ``key ≤ high``; a row comparison where there are several columns."""
        conditions = []
        if low is not None:
            conditions.append(self._row() > self._bound(low))
        if high is not None:
            conditions.append(self._row() <= self._bound(high))
        return conditions

    def _row(self) -> Any:
        columns = self.ordered()
        return columns[0] if len(columns) == 1 else sa.tuple_(*columns)

    def _bound(self, texts: list[str]) -> Any:
        types = [self.columns[name].sql_type for name in self.key]
        values = [cast_text(text, type_) for text, type_ in zip(texts, types, strict=True)]
        return values[0] if len(values) == 1 else sa.tuple_(*values)

    # -- the schema ---------------------------------------------------------------------------

    def schema(self, name: str) -> CollectionSchema:
        """Recorded settings and spaces, and the columns as they are."""
        recorded = self.metadata.collection if self.metadata else CollectionSchema()
        spaces = {field.name: field for field in recorded.fields}
        fields = [self._field(f, column, spaces.get(f)) for f, column in self.vectors.items()]
        types = {key: self.columns[column].value_type for key, column in self.typed.items()}
        return recorded.model_copy(
            update={
                "name": name,
                "fields": tuple(fields),
                "id_type": self._id_type(recorded),
                "ids_unique": self.by_place or (self.id == self.key and self.relation.is_unique(self.id)),
                "has_text": self.text is not None,
                "metadata_types": {**recorded.metadata_types, **types},
                "layout": self.layout,
                "losses": tuple(self._losses()),
            }
        )

    def _field(self, name: str, column_name: str, recorded: VectorField | None) -> VectorField:
        column = self.columns[column_name]
        kind, dtype = column.kind_and_dtype
        index = next((i for i in self.indexes if column_name in vector_columns(i, self.relation)), None)
        base = Metric.IP if kind is Kind.SPARSE else Metric.HAMMING if dtype is DType.BIT else Metric.COSINE
        metric = recorded.metric if recorded else (metric_of(index) if index else None) or base
        known = self.relation.dims.get(column_name) or (recorded.dim if recorded else None)
        dim = column.dim or known if kind is not Kind.SPARSE else recorded.dim if recorded else None
        space = (
            recorded.space
            if recorded and (dim is None or not recorded.space or recorded.space.dim == dim)
            else None
        )
        settings = {**(recorded.index if recorded else {}), **(index_settings(index) if index else {})}
        return VectorField(
            name=name, kind=kind, dim=dim, dtype=dtype, metric=metric, space=space, index=settings
        )

    def _id_type(self, recorded: CollectionSchema) -> str:
        if self.coded_ids:
            return recorded.id_type
        if len(self.id) > 1:
            return "tuple"
        return self.columns[self.id[0]].id_kind

    def _losses(self) -> list[Loss]:
        """What was seen and is not carried."""
        losses = [
            Loss(
                kind="field",
                detail=f"vector column {name!r} is not read; name it with vector=",
                where="source",
            )
            for name in self.passed_over
        ]
        for name, count in self.odd.items():
            losses.append(
                Loss(
                    kind="vector",
                    detail=f"vectors of column {name!r} have another dimension than "
                    f"{self.relation.dims[name]}, which most have: such records are rejected",
                    count=count,
                    where="source",
                )
            )
        for name, count in self.inexact.items():
            losses.append(
                Loss(
                    kind="vector",
                    detail=f"vectors of column {name!r} are rounded to float32",
                    count=count,
                    where="source",
                )
            )
        if self.by_place:
            losses.append(
                Loss(
                    kind="id",
                    detail="the table has no key: each row is named by its place (ctid), which holds as "
                    "long as nobody writes to the table; name a unique key with key= where there is one",
                    reversible=True,
                    where="source",
                )
            )
        return losses


def known_columns(schema: CollectionSchema, url: str) -> set[str]:
    """The metadata keys that have columns in a source of this kind, if that is another than ``url``."""
    noted = schema.settings.get(VENDOR) or {}
    return set(noted.get("columns", ())) if noted.get("of") != url else set()


# -- indexes --------------------------------------------------------------------------------------


def vector_columns(index: PgIndex, relation: Relation) -> list[str]:
    """The vector column an index is on, directly or through an expression on it alone."""
    if index.method not in ("hnsw", "ivfflat"):
        return []
    if index.columns:
        return list(index.columns)
    return [
        c.name
        for c in relation.columns.values()
        if c.is_vector and f"({c.name})" in index.definition.replace('"', "")
    ]


def metric_of(index: PgIndex) -> Metric | None:
    """By the index's operator class, such as ``vector_cosine_ops``."""
    suffix = index.operators[0].split("_", 1)[1] if index.operators else ""
    return _METRIC_OF_OPERATORS.get(suffix)


def index_settings(index: PgIndex) -> dict[str, int]:
    """Under the common names."""
    if index.method == "ivfflat":
        return {"ivf_lists": int(index.options.get("lists", 100))}
    return {
        "hnsw_m": int(index.options.get("m", 16)),
        "hnsw_ef_construct": int(index.options.get("ef_construction", 64)),
    }


# -- what is measured -----------------------------------------------------------------------------


def measured(connection: psycopg.Connection[Any], table: Table) -> Table:
    """With the dimensions of dense columns that fix none (LangChain's default), as most rows have them."""
    dims: dict[str, int] = {}
    odd: dict[str, int] = {}
    inexact: dict[str, int] = {}
    for name in table.vectors.values():
        column = table.columns[name]
        if column.dim is not None or column.kind_and_dtype[0] is Kind.SPARSE:
            continue
        clause = table.vector(name)
        size = sa.func.vector_dims(clause)
        if column.kind_and_dtype[0] is Kind.MULTI:
            continue
        number = sa.func.count()
        query = sa.select(size, number).where(clause.is_not(None), *table.own_rows())
        query = query.group_by(size).order_by(number.desc())
        found = connection.execute(*as_sql(query)).fetchall()
        total = sum(count for _, count in found)
        if found and found[0][1] * 2 > total:
            dims[name] = found[0][0]
            if len(found) > 1:
                odd[name] = total - found[0][1]
        if column.held_as:
            query = sa.select(number).where(column.rounded(table.column(name)), *table.own_rows())
            row = connection.execute(*as_sql(query)).fetchone()
            if row and row[0]:
                inexact[name] = row[0]
    return replace(table, relation=replace(table.relation, dims=dims), odd=odd, inexact=inexact)


def has_rows(connection: psycopg.Connection[Any], table: Table) -> bool:
    """Whether the collection holds a record."""
    one: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(table.clause)
    query = sa.select(sa.exists(one.where(*table.own_rows())))
    row = connection.execute(*as_sql(query)).fetchone()
    return bool(row and row[0])


def rows_of_others(connection: psycopg.Connection[Any], table: Table) -> int:
    """How many rows of the same table belong to other collections."""
    if not table.fixed:
        return 0
    mine = sa.and_(*table.own_rows())
    query = sa.select(sa.func.count()).select_from(table.clause).where(mine.is_not(sa.true()))
    row = connection.execute(*as_sql(query)).fetchone()
    return int(row[0]) if row else 0


def check_unique(connection: psycopg.Connection[Any], table: Table, name: str) -> None:
    """Whether the key is really one, for views and selects, where nothing promises it.

    Raises:
        SchemaMismatchError: naming a key that stands twice or is NULL.
    """
    key = table.ordered()
    nulls = sa.or_(*(column.is_(None) for column in key))
    found = sa.select(*key).group_by(*key).having(sa.or_(sa.func.count() > 1, nulls)).limit(1)
    row = connection.execute(*as_sql(found)).fetchone()
    connection.rollback()
    if row is not None:
        raise SchemaMismatchError(
            f"{name}: the key ({', '.join(table.key)}) is not unique or NULL, e.g. {row!r}; "
            "name the columns of a unique key with key='a,b'"
        )


def advance_sequence(server: Server, table: Table) -> None:
    """Let the sequence of an integer key go on behind the ids written, so that the app's inserts fit in."""
    if len(table.id) != 1 or table.columns[table.id[0]].id_kind != "int" or table.name is None:
        return
    target, name = table.name.quoted, table.id[0]
    with server.raw() as connection:
        query = "SELECT pg_get_serial_sequence(%s, %s)::regclass::text"
        row = connection.execute(query, [target.as_string(connection), name]).fetchone()
        if row and row[0]:
            advance = "SELECT setval({}, m) FROM (SELECT max({}) AS m FROM {}) AS x"
            advance += " WHERE m > (SELECT last_value FROM {})"
            parts = [sql.Literal(row[0]), sql.Identifier(name), target, sql.SQL(row[0])]
            # A role that may insert but not set the sequence leaves it to the owner.
            with suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(sql.SQL(advance).format(*parts))
        connection.commit()


# -- partitions -----------------------------------------------------------------------------------


def find_partitions(
    connection: psycopg.Connection[Any], table: Table, want: int, conditions: list[Any], total: int
) -> list[Partition]:
    """About ``want`` ranges of similar size that cover every possible key, also those added later."""
    edges = _edges(connection, table, want, conditions) if want > 1 else []
    bounds = [None, *edges, None]
    share = -(-total // (len(bounds) - 1))
    return [Partition(str(i), [low, high], share) for i, (low, high) in enumerate(pairwise(bounds))]


def _edges(
    connection: psycopg.Connection[Any], table: Table, want: int, conditions: list[Any]
) -> list[list[str]]:
    """Up to ``want − 1`` keys that cut the rows (or a sample of a large table's pages) evenly."""
    source = _sample(connection, table.relation)
    sampled = ClauseAdapter(source)
    keys = [sampled.traverse(c).label(f"k{i}") for i, c in enumerate(table.ordered())]
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


# -- types by the server's names ------------------------------------------------------------------


def cast_text(text: str, type_: str) -> Any:
    """``CAST(:text AS type)`` for any type of the server."""
    parameter = sa.bindparam(None, text, type_=sa.Text(), unique=True)
    return sa.cast(parameter, NamedType(type_))


class NamedType(sa.types.UserDefinedType[Any]):
    """A type by the server's own name for it."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name
