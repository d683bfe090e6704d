"""What is there: columns, keys and indexes of a table, view or select, and what is recorded with a table.

vecferry records schema, embedding spaces and version in ``COMMENT ON TABLE``, as the last line,
``vecferry: {json}``; whatever a person wrote above stays. A comment follows its table through RENAME, SET
SCHEMA and pg_dump, costs no table of its own, and is written in the transaction of the DDL it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import psycopg
import sqlalchemy as sa
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from vecferry.errors import ConfigurationError, NotFoundError
from vecferry.model import CollectionSchema, DType, Kind
from vecferry.stores.pgvector.server import TableName

VECTOR_TYPES: dict[str, tuple[Kind, DType]] = {
    "vector": (Kind.DENSE, DType.FLOAT32),
    "halfvec": (Kind.DENSE, DType.FLOAT16),
    "bit": (Kind.DENSE, DType.BIT),
    "sparsevec": (Kind.SPARSE, DType.FLOAT32),
}

# Postgres type → the type name of its Python value (see `vecferry.model.type_name`).
VALUE_TYPES: dict[str, str] = {
    "bool": "bool",
    **dict.fromkeys(("int2", "int4", "int8", "oid"), "int"),
    **dict.fromkeys(("float4", "float8"), "float"),
    "numeric": "decimal",
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "char"), "str"),
    "uuid": "uuid",
    "bytea": "bytes",
    **dict.fromkeys(("timestamptz", "timestamp"), "datetime"),
    "date": "date",
    **dict.fromkeys(("time", "timetz"), "time"),
    **dict.fromkeys(("json", "jsonb"), "object"),
}
DERIVED_TYPES = frozenset({"tsvector"})
"""Made from other columns: never part of a record."""


@dataclass(frozen=True, slots=True)
class PgColumn:
    """One column as the server describes it. ``type`` is the base type of a domain.

    ``dim`` is the dimension of a vector column, ``None`` where it is not fixed. ``element`` is the
    type of an array's elements. ``category`` is ``pg_type.typcategory``,
    ``sql_type`` the type as a cast names it. ``writable`` is false where the server generates the value;
    ``defaulted`` says that it may not be NULL and has a default, which stands in for a missing value.
    ``held_as`` says of a column that is to be read as vectors that it is an ``array`` of numbers or
    ``text`` (JSON, or numbers between commas).
    """

    name: str
    type: str
    oid: int
    modifier: int = -1
    category: str = "U"
    element: str | None = None
    sql_type: str = "text"
    nullable: bool = True
    writable: bool = True
    defaulted: bool = False
    held_as: str = ""
    element_oid: int = 0

    @property
    def is_vector(self) -> bool:
        known = self.type in VECTOR_TYPES and (self.type != "bit" or self.modifier > 1)
        return known or self.is_multi or bool(self.held_as)

    @property
    def is_multi(self) -> bool:
        """Whether a row holds several vectors."""
        return self.category == "A" and self.element in ("vector", "halfvec")

    @property
    def is_vectorlike(self) -> bool:
        """An array of vectors of a kind that is not read."""
        return self.category == "A" and self.element == "sparsevec"

    @property
    def kind_and_dtype(self) -> tuple[Kind, DType]:
        """Of a vector column."""
        if self.held_as:
            return Kind.DENSE, DType.FLOAT32
        if self.is_multi:
            return Kind.MULTI, VECTOR_TYPES[self.element or ""][1]
        return VECTOR_TYPES[self.type]

    @property
    def vector_type(self) -> str:
        """The pgvector type in which its vectors are read."""
        return "vector" if self.held_as else (self.element or "") if self.is_multi else self.type

    def as_vector(self, clause: Any) -> Any:
        """The column as vectors, whatever it holds them as."""
        if self.held_as == "array":
            return sa.cast(clause, _VECTOR)
        if self.held_as == "text":
            return sa.cast("[" + sa.func.nullif(_numbers(clause), "") + "]", _VECTOR)
        return clause

    def rounded(self, clause: Any) -> Any:
        """Whether a vector held as an array or as text has a number that float32 does not hold."""
        exact = clause if self.held_as == "array" else "{" + sa.func.nullif(_numbers(clause), "") + "}"
        kept = sa.cast(sa.cast(self.as_vector(clause), sa.ARRAY(sa.REAL)), sa.ARRAY(sa.Double))
        return sa.cast(exact, sa.ARRAY(sa.Double)).is_distinct_from(kept)

    @property
    def dim(self) -> int | None:
        return self.modifier if self.modifier > 0 else None

    @property
    def is_text(self) -> bool:
        """Strings and enumerations: their binary form is their text."""
        return self.category in ("S", "E")

    @property
    def is_json(self) -> bool:
        return self.type in ("json", "jsonb")

    @property
    def value_type(self) -> str:
        """The type name of its values in metadata."""
        if self.category == "A":
            return "list"
        return "str" if self.is_text else VALUE_TYPES.get(self.type, "str")

    @property
    def id_kind(self) -> str:
        """The type of ids in such a column: everything but integers and UUIDs is read as text."""
        if self.type in ("int2", "int4", "int8"):
            return "int"
        return "uuid" if self.type == "uuid" else "str"

    @property
    def native(self) -> bool:
        """Whether its binary form is decoded; everything else is read as text (``::text``)."""
        known = self.is_text or self.type in VALUE_TYPES
        return known if self.category != "A" else (self.element or "") in VALUE_TYPES


class _Vector(sa.types.UserDefinedType[Any]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "vector"


_VECTOR = _Vector()


def _numbers(clause: Any) -> Any:
    """The numbers of a list in a text column, without its brackets."""
    return sa.func.translate(sa.cast(clause, sa.Text), "[](){} \n\t", "")


_NUMBERS = re.compile(r"[\[({\s]*[-+0-9.eE]+(\s*,\s*[-+0-9.eE]+)*[\])}\s]*")
_LINE = re.compile(r"(?:^|\n)vecferry: (\{.*\})\s*$", re.DOTALL)


class TableMetadata(BaseModel):
    """The record of one table.

    Attributes:
        collection: the schema as given to ``prepare``.
        columns: where its parts lie; empty for tables that were there before and framework tables.
        coded_ids: whether the id column is text in which other types are written typed.
        made: whether this adapter made the table.
        like: whether the table is made, or was replaced, in the shape of another, see `shape`.
        indexes: names of its indexes → those they have on the live table.
        mode: in which a table under construction was prepared.
        tag, serial, created: of a published version, see `vecferry.stores.pgvector.publish`.
    """

    model_config = ConfigDict(extra="ignore")

    version: int = 1
    collection: CollectionSchema = Field(default_factory=CollectionSchema)
    columns: dict[str, Any] = Field(default_factory=dict)
    coded_ids: bool = False
    made: bool = False
    like: bool = False
    indexes: dict[str, str] = Field(default_factory=dict)
    mode: str = ""
    tag: str = ""
    serial: int = 0
    created: str = ""

    @property
    def native_ids(self) -> str:
        """The type whose ids stand in a coded text column as they are; empty if ids are not coded."""
        if not self.coded_ids:
            return ""
        return self.collection.id_type if self.collection.id_type in ("int", "uuid") else "str"


def parse_metadata(comment: str | None) -> TableMetadata | None:
    """The metadata in a table's comment, if there is one that can be read."""
    match = _LINE.search(comment or "")
    if not match:
        return None
    try:
        return TableMetadata.model_validate(orjson.loads(match[1]))
    except (ValidationError, orjson.JSONDecodeError):
        return None


def read_metadata(connection: psycopg.Connection[Any], table: TableName) -> TableMetadata | None:
    return parse_metadata(_comment(connection, table))


def write_metadata(connection: psycopg.Connection[Any], table: TableName, metadata: TableMetadata) -> None:
    """Record ``metadata`` in the running transaction, keeping the words of people."""
    words = words_of(connection, table)
    line = "vecferry: " + orjson.dumps(metadata.model_dump(mode="json", exclude_none=True)).decode()
    text = f"{words}\n{line}" if words else line
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table.quoted, sql.Literal(text)))


def words_of(connection: psycopg.Connection[Any], table: TableName) -> str:
    """What people wrote about a table."""
    return _LINE.sub("", _comment(connection, table) or "").rstrip()


def _comment(connection: psycopg.Connection[Any], table: TableName) -> str | None:
    query = "SELECT obj_description(to_regclass(%s), 'pg_class')"
    row = connection.execute(query, [table.quoted.as_string(connection)]).fetchone()
    return row[0] if row else None


# The modifier −1 asks for a name that cuts nothing: a cast to ``character`` or ``bit`` keeps one of them.
_TYPES = """
    SELECT t.oid, t.typname, t.typcategory, e.typname, format_type(t.oid, -1), t.typelem
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
        number_lists: text and json columns that hold lists of numbers, as far as they were looked at.
    """

    clause: sa.FromClause
    columns: dict[str, PgColumn]
    table: TableName | None = None
    kind: str = "s"
    estimate: int = -1
    indexes: tuple[PgIndex, ...] = ()
    metadata: TableMetadata | None = None
    dims: dict[str, int] = field(default_factory=dict)
    inherited: bool = False
    number_lists: frozenset[str] = frozenset()

    @property
    def is_table(self) -> bool:
        return self.kind in ("r", "p")

    @property
    def primary_key(self) -> tuple[str, ...]:
        return next((i.columns for i in self.indexes if i.primary), ())

    def with_column(self, column: PgColumn) -> Relation:
        """A copy in which a column is described otherwise."""
        return replace(self, columns={**self.columns, column.name: column})

    def with_place(self, name: str) -> Relation:
        """A copy that has the system column of the rows' places, too."""
        place = PgColumn(name, "tid", 27, sql_type="tid", nullable=False, writable=False)
        clause = sa.table(self.table.name, *map(sa.column, [*self.columns, name]), schema=self.table.schema)  # type: ignore[union-attr]
        return replace(self, clause=clause, columns={**self.columns, name: place})

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
    """Columns, indexes and metadata of a table or view.

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
    indexes, metadata = _indexes(connection, oid), parse_metadata(comment)
    return Relation(clause, columns, table, kind, estimate, indexes, metadata, inherited=inherited)


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


def look_at_texts(
    connection: psycopg.Connection[Any], relation: Relation, wanted: Iterable[str]
) -> Relation:
    """Find out which of the text and json columns ``wanted`` hold lists of numbers."""
    found = set()
    for name in wanted:
        column = relation.columns.get(name)
        if column is None or not (column.is_json or column.category == "S"):
            continue
        text = sa.cast(relation.clause.c[name], sa.Text)
        query = sa.select(text).where(text.is_not(None)).limit(1)
        row = connection.execute(*as_sql(query)).fetchone()
        if row and _NUMBERS.fullmatch(row[0]):
            found.add(name)
    return replace(relation, number_lists=frozenset(found))


def _columns(
    connection: psycopg.Connection[Any], probe: sql.Composed, values: dict[str, Any] | None
) -> list[PgColumn]:
    result = connection.execute(probe, values).pgresult
    assert result is not None
    oids = [result.ftype(i) for i in range(result.nfields)]
    types = {oid: rest for oid, *rest in connection.execute(_TYPES, [oids])}
    columns = []
    for i, oid in enumerate(oids):
        type_, category, element, sql_type, element_oid = types[oid]
        name = (result.fname(i) or b"").decode()
        column = PgColumn(name, type_, oid, result.fmod(i), category, element, sql_type)
        columns.append(replace(column, element_oid=element_oid))
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


# -- SQLAlchemy's expressions as text ------------------------------------------------------------

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


def as_sql(clause: Any) -> tuple[sql.SQL, dict[str, Any]]:
    """The statement, and its parameters by name, ready for psycopg."""
    compiled = clause.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    try:
        values = dict(compiled.construct_params() or {})
    except sa.exc.InvalidRequestError as error:  # ":name" in a text, and no value for it
        reason = str(error).split(" (Background")[0]
        raise ConfigurationError(f"{reason}; give it in params={{…}}, or write \\: for a colon") from None
    for name, process in getattr(compiled, "_bind_processors", {}).items():
        if callable(process) and name in values:
            values[name] = process(values[name])
    return sql.SQL(str(compiled)), values
