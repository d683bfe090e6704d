"""Making a table for a collection."""

from __future__ import annotations

import warnings
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import BYTEA, JSONB
from sqlalchemy.schema import CreateTable

from vecferry.errors import FatalStoreError, SchemaMismatchError, UnsupportedError
from vecferry.model import CollectionSchema, DType, Kind, VectorField
from vecferry.stores.pgvector.address import TableName
from vecferry.stores.pgvector.compiled import as_sql
from vecferry.stores.pgvector.errors import EXTENSION_HINT
from vecferry.stores.pgvector.memo import Memo, write_memo
from vecferry.stores.pgvector.settings import Settings, names

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
    connection: psycopg.Connection[Any], table: TableName, schema: CollectionSchema, settings: Settings
) -> Memo:
    """Create the table and record the schema with it, in the running transaction."""
    memo = plan_memo(schema, settings)
    columns = memo.columns
    id_type = sa.Text if memo.coded_ids else _ID_TYPES[memo.collection.id_type]
    parts: list[Any] = [sa.Column(columns["id"], id_type, primary_key=True, autoincrement=False)]
    parts += [sa.Column(columns["vectors"][f.name], vector_type(f, settings)) for f in schema.fields]
    parts += [sa.Column(columns["text"], sa.Text)]
    for key, column in columns["typed"].items():
        parts.append(sa.Column(column, VALUE_TYPES[schema.metadata_types[key]]))
    parts += [sa.Column(columns["json"], JSONB)]
    made = sa.Table(table.name, sa.MetaData(), *parts, schema=table.schema)
    connection.execute(*as_sql(CreateTable(made)))
    for column in columns["vectors"].values() if settings.storage else ():
        connection.execute(
            sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STORAGE {}").format(
                table.quoted, sql.Identifier(column), sql.SQL(settings.storage or "external")
            )
        )
    write_memo(connection, table, memo)
    return memo


def plan_memo(schema: CollectionSchema, settings: Settings) -> Memo:
    """Which columns a new table gets, and how ids lie in them."""
    if not schema.fields:
        raise SchemaMismatchError("a table needs at least one vector field; embed the records (embed=…)")
    ids = names(settings.id) or ("id",)
    if len(ids) > 1:
        raise UnsupportedError(
            "a new table has one id column (tuples are kept in it); make the table first"
        )
    id_type = settings.id_type or schema.id_type
    columns: dict[str, Any] = {
        "id": ids[0],
        "text": settings.text or "text",
        "json": "metadata",
        "vectors": {},
    }
    if settings.metadata not in (None, "columns"):
        columns["json"] = settings.metadata
    taken = {columns["id"], columns["text"], columns["json"]}
    wanted = {name: column for name, column in settings.vector_columns.items() if name is not None}
    for field in schema.fields:
        column = wanted.get(field.name) or field.name or "embedding"
        columns["vectors"][field.name] = _free(column, taken)
    columns["typed"] = {}
    if settings.metadata == "columns":
        for key, type_ in schema.metadata_types.items():
            if type_ in VALUE_TYPES:
                columns["typed"][key] = _free(key, taken)
    recorded = schema.model_copy(
        update={"losses": (), "count": None, "id_type": id_type, "layout": "plain"}
    )
    return Memo(collection=recorded, columns=columns, coded_ids=id_type not in _ID_TYPES, made=True)


def _free(name: str, taken: set[str]) -> str:
    """The name, cut to Postgres's 63 bytes and numbered if it is taken."""
    base = name.replace("\0", "").encode()[:60].decode(errors="ignore") or "column"
    found, number = base, 1
    while found in taken:
        number += 1
        found = f"{base}_{number}"
    taken.add(found)
    return found


def vector_type(field: VectorField, settings: Settings) -> Any:
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
    half = settings.dtype == "float16" if settings.dtype else field.dtype is DType.FLOAT16
    return HALFVEC(field.dim) if half else VECTOR(field.dim)
