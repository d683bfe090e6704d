"""Making a target ready: a new table, or one that is there and fits."""

from __future__ import annotations

from typing import Any

import psycopg

from vecferry.errors import TargetExistsError
from vecferry.model import CollectionSchema
from vecferry.ports import WriteMode, check_fits
from vecferry.stores.pgvector import ddl, frameworks
from vecferry.stores.pgvector.address import TableName
from vecferry.stores.pgvector.frameworks import Place
from vecferry.stores.pgvector.looking import has_rows, learned, reflect_place, with_dims
from vecferry.stores.pgvector.mapping import describe, map_rows
from vecferry.stores.pgvector.memo import Memo
from vecferry.stores.pgvector.settings import Settings


def prepare(
    connection: psycopg.Connection[Any],
    table: TableName,
    schema: CollectionSchema,
    mode: WriteMode,
    settings: Settings,
    url: str,
) -> bool:
    """Create or adopt the table in the running transaction.

    Returns whether most keys will be new, so that batches may be copied straight into it.

    Raises:
        TargetExistsError, SchemaMismatchError, SpaceMismatchError: as `vecferry.ports.Sink.prepare` does.
    """
    layout = settings.layout if settings.layout in frameworks.CODECS else None
    place = frameworks.locate(connection, table, layout)
    if place is not None:
        return _adopt(connection, place, schema, mode, settings, url)
    if layout is not None:
        frameworks.create(connection, table, layout, schema)
    else:
        ddl.create_table(connection, table, schema, settings)
    return True


def _adopt(
    connection: psycopg.Connection[Any],
    place: Place,
    schema: CollectionSchema,
    mode: WriteMode,
    settings: Settings,
    url: str,
) -> bool:
    """Check an existing table against the schema and record the spaces it did not know yet."""
    relation = reflect_place(connection, place, place.table)
    rows = map_rows(relation, settings, place)
    relation = with_dims(connection, relation, rows)
    filled = has_rows(connection, relation, rows)
    if mode is WriteMode.CREATE and filled:
        raise TargetExistsError(f'{url} holds records; pass mode="upsert" or mode="replace"')
    memo = relation.memo or Memo()
    have = learned(describe(relation, rows, str(place.table)), memo, schema)
    check_fits(have, schema, url)
    spaces = {field.name: field.space for field in schema.fields}
    fields = [f.model_copy(update={"space": f.space or spaces.get(f.name)}) for f in have.fields]
    if fields != list(memo.collection.fields):
        collection = memo.collection.model_copy(update={"fields": tuple(fields), "count": None})
        try:
            with connection.transaction():
                frameworks.note(connection, place, memo.model_copy(update={"collection": collection}))
        except psycopg.errors.InsufficientPrivilege:
            if any(field.space for field in fields):  # a space must be recorded before the first record
                raise
    return not filled or mode is WriteMode.RESUME
