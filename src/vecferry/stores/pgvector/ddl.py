"""Making a target ready: a new table, or one that is there and fits."""

from __future__ import annotations

import warnings
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import BYTEA, JSONB
from sqlalchemy.schema import CreateTable

from vecferry.errors import FatalStoreError, SchemaMismatchError, TargetExistsError, UnsupportedError
from vecferry.model import CollectionSchema, DType, Kind, VectorField
from vecferry.ports import WriteMode, check_fits
from vecferry.stores.pgvector import frameworks
from vecferry.stores.pgvector.frameworks import Place
from vecferry.stores.pgvector.introspection import (
    TableMetadata,
    as_sql,
    look_at_texts,
    write_metadata,
)
from vecferry.stores.pgvector.mapping import map_table, open_place
from vecferry.stores.pgvector.options import Options, names
from vecferry.stores.pgvector.server import EXTENSION_HINT, TableName
from vecferry.stores.pgvector.table import Table, has_rows, measured

MAX_SPARSE_DIM = 1_000_000_000
"""pgvector's own limit, used where a sparse field does not know its dimension."""

_ID_TYPES: dict[str, Any] = {"int": sa.BigInteger, "uuid": sa.Uuid}
VALUE_TYPES: dict[str, Any] = {
    "int": sa.BigInteger,
    "float": sa.Double,
    "str": sa.Text,
    "bool": sa.Boolean,
    "decimal": sa.Numeric,
    "uuid": sa.Uuid,
    "bytes": BYTEA,
    "datetime": sa.DateTime(timezone=True),
    "date": sa.Date,
    "time": sa.Time,
}


def ensure_extension(connection: psycopg.Connection[Any]) -> None:
    """Create the extension ``vector`` if it is not there.

    Raises:
        FatalStoreError: without the privilege or the server's package, saying what to do.
    """
    if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
        return
    try:
        with connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.errors.UniqueViolation:  # another session made it at the same moment
        return
    except psycopg.Error as error:
        name = connection.info.dbname
        reason = error.diag.message_primary or type(error).__name__
        raise FatalStoreError(f"database {name!r}: {reason}; {EXTENSION_HINT}") from error


def create_table(
    connection: psycopg.Connection[Any], table: TableName, schema: CollectionSchema, options: Options
) -> TableMetadata:
    """Create the table and record the schema with it, in the running transaction."""
    metadata = plan_metadata(schema, options)
    columns = metadata.columns
    id_type = sa.Text if metadata.coded_ids else _ID_TYPES[metadata.collection.id_type]
    parts: list[Any] = [sa.Column(columns["id"], id_type, primary_key=True, autoincrement=False)]
    parts += [sa.Column(columns["vectors"][f.name], vector_type(f, options)) for f in schema.fields]
    parts += [sa.Column(columns["text"], sa.Text)]
    for key, column in columns["typed"].items():
        parts.append(sa.Column(column, VALUE_TYPES[schema.metadata_types[key]]))
    parts += [sa.Column(columns["json"], JSONB)]
    made = sa.Table(table.name, sa.MetaData(), *parts, schema=table.schema)
    connection.execute(*as_sql(CreateTable(made)))
    for column in columns["vectors"].values() if options.storage else ():
        connection.execute(
            sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STORAGE {}").format(
                table.quoted, sql.Identifier(column), sql.SQL(options.storage or "external")
            )
        )
    write_metadata(connection, table, metadata)
    return metadata


def add_columns(connection: psycopg.Connection[Any], table: Table, *, text: bool, json: bool) -> None:
    """Places for texts and for metadata in a table under construction."""
    assert table.name is not None
    alter = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}")
    taken = set(table.columns)
    for wanted, type_, name in ((text, "text", "text"), (json, "jsonb", "metadata")):
        if wanted:
            column = sql.Identifier(_free(name, taken))
            connection.execute(alter.format(table.name.quoted, column, sql.SQL(type_)))


def plan_metadata(schema: CollectionSchema, options: Options) -> TableMetadata:
    """Which columns a new table gets, and how ids lie in them."""
    if not schema.fields:
        raise SchemaMismatchError("a table needs at least one vector field; embed the records (embed=…)")
    ids = names(options.id) or ("id",)
    if len(ids) > 1:
        raise UnsupportedError(
            "a new table has one id column (tuples are kept in it); make the table first"
        )
    id_type = options.id_type or schema.id_type
    columns: dict[str, Any] = {
        "id": ids[0],
        "text": options.text or "text",
        "json": "metadata",
        "vectors": {},
    }
    if options.metadata not in (None, "columns"):
        columns["json"] = options.metadata
    taken = {columns["id"], columns["text"], columns["json"]}
    wanted = {name: column for name, column in options.vector_columns.items() if name is not None}
    for field in schema.fields:
        column = wanted.get(field.name) or field.name or "embedding"
        columns["vectors"][field.name] = _free(column, taken)
    columns["typed"] = {}
    if options.metadata == "columns":
        for key, type_ in schema.metadata_types.items():
            if type_ in VALUE_TYPES:
                columns["typed"][key] = _free(key, taken)
    recorded = schema.model_copy(
        update={"losses": (), "count": None, "id_type": id_type, "layout": "plain"}
    )
    return TableMetadata(
        collection=recorded, columns=columns, coded_ids=id_type not in _ID_TYPES, made=True
    )


def _free(name: str, taken: set[str]) -> str:
    """The name, cut to Postgres's 63 bytes and numbered if it is taken."""
    base = name.replace("\0", "").encode()[:60].decode(errors="ignore") or "column"
    found, number = base, 1
    while found in taken:
        number += 1
        found = f"{base}_{number}"
    taken.add(found)
    return found


def vector_type(field: VectorField, options: Options) -> Any:
    """The pgvector type of a field, for SQLAlchemy.

    Raises:
        UnsupportedError: for multi-vectors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pgvector.sqlalchemy import BIT, HALFVEC, SPARSEVEC, VECTOR
    if field.kind is Kind.MULTI:
        raise UnsupportedError(
            f"pgvector has no multi-vectors (field {field.name!r}); migrate to qdrant: or parquet:"
        )
    if field.kind is Kind.SPARSE:
        return SPARSEVEC(field.dim or MAX_SPARSE_DIM)
    if field.dtype is DType.BIT:
        return BIT(field.dim)
    half = options.dtype == "float16" if options.dtype else field.dtype is DType.FLOAT16
    return HALFVEC(field.dim) if half else VECTOR(field.dim)


def prepare(
    connection: psycopg.Connection[Any],
    table: TableName,
    schema: CollectionSchema,
    mode: WriteMode,
    options: Options,
    url: str,
) -> bool:
    """Create or adopt the table in the running transaction.

    Returns whether most keys will be new, so that batches may be copied straight into it.

    Raises:
        TargetExistsError, SchemaMismatchError, SpaceMismatchError: as `vecferry.ports.Sink.prepare` does.
    """
    layout = options.layout if options.layout in frameworks.CODECS else None
    place = frameworks.locate(connection, table, layout)
    if place is not None:
        return _adopt(connection, place, schema, mode, options, url)
    if layout is not None:
        frameworks.create(connection, table, layout, schema)
    else:
        create_table(connection, table, schema, options)
    return True


def _adopt(
    connection: psycopg.Connection[Any],
    place: Place,
    schema: CollectionSchema,
    mode: WriteMode,
    options: Options,
    url: str,
) -> bool:
    """Check an existing table against the schema and record the spaces it did not know yet."""
    relation = open_place(connection, place, place.table)
    relation = look_at_texts(connection, relation, options.vector_columns.values())
    table = measured(connection, map_table(relation, options, place))
    filled = has_rows(connection, table)
    if mode is WriteMode.CREATE and filled:
        raise TargetExistsError(f'{url} holds records; pass mode="upsert" or mode="replace"')
    metadata = table.metadata or TableMetadata()
    have = _learned(table.schema(str(place.table)), metadata, schema)
    check_fits(have, schema, url)
    spaces = {field.name: field.space for field in schema.fields}
    fields = [f.model_copy(update={"space": f.space or spaces.get(f.name)}) for f in have.fields]
    if fields != list(metadata.collection.fields):
        collection = metadata.collection.model_copy(update={"fields": tuple(fields), "count": None})
        try:
            with connection.transaction():
                frameworks.note(connection, place, metadata.model_copy(update={"collection": collection}))
        except psycopg.errors.InsufficientPrivilege:
            if any(field.space for field in fields):  # a space must be recorded before the first record
                raise
    return not filled or mode is WriteMode.RESUME


def _learned(have: CollectionSchema, metadata: TableMetadata, schema: CollectionSchema) -> CollectionSchema:
    """What is there; where nothing is recorded, the first writer says which metric and dimension it is."""
    known = {field.name for field in metadata.collection.fields}
    wanted = {field.name: field for field in schema.fields}
    for field in have.fields:
        want = wanted.get(field.name)
        if field.name not in known and want is not None:
            metric = want.metric if not field.index else field.metric
            have = have.with_field(
                field.model_copy(update={"metric": metric, "dim": field.dim or want.dim})
            )
    return have
