"""Deciding which column holds what: from what is recorded, from the options, or by looking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg

from vecferry.errors import NotFoundError, SchemaMismatchError
from vecferry.model.foreign import METADATA_NAMES, TEXT_NAMES
from vecferry.stores.pgvector.frameworks import Place, framework_table, recognise
from vecferry.stores.pgvector.introspection import (
    DERIVED_TYPES,
    PgColumn,
    Relation,
    TableMetadata,
    reflect_table,
)
from vecferry.stores.pgvector.options import Options, names
from vecferry.stores.pgvector.server import TableName
from vecferry.stores.pgvector.table import PLACE, Table

_ARRAYS = frozenset({"float4", "float8", "numeric", "int2", "int4", "int8"})


def open_place(connection: psycopg.Connection[Any], place: Place | None, name: TableName) -> Relation:
    """The relation at a place, with what the place records of it.

    Raises:
        NotFoundError: if there is no such place.
    """
    if place is None:
        raise NotFoundError(f"there is no table {name}; check its name, schema and the search path")
    relation = reflect_table(connection, place.table)
    return relation if place.collection is None else replace(relation, metadata=place.metadata)


def map_table(relation: Relation, options: Options, place: Place | None = None) -> Table:
    """How the records of this relation lie in its rows.

    A table made by this adapter says so itself. Elsewhere the id is the primary key, the text is the
    column called ``text``, ``content``, ``document`` …, the metadata is the object in ``metadata`` (or
    the like) together with all other columns, and a single vector column is the unnamed field, so that
    it stays unnamed wherever it goes; several are named as their columns are. A table without any key
    is read by the places of its rows.

    Raises:
        SchemaMismatchError: if there is no vector column, no unique key, or an option names a wrong column.
    """
    metadata = relation.metadata
    layout = options.layout or recognise(relation, place)
    if layout != "plain" and not _overridden(options):
        return framework_table(layout, relation, place)
    if metadata and metadata.columns and not _overridden(options):
        return _as_recorded(relation, metadata)
    relation, vectors = _vectors(relation, options)
    id_ = names(options.id) or relation.primary_key or _some_unique(relation) or names(options.key)
    if not id_ and relation.kind == "r" and not relation.inherited:
        relation, id_ = relation.with_place(PLACE), (PLACE,)
    key = names(options.key) or (relation.primary_key if not relation.is_unique(id_) else ()) or id_
    text = _text(relation, options, (*id_, *key))
    json = _json(relation, options)
    # A part of a key stands in no other place of the record: it can be filtered by only as metadata.
    taken = {*(id_ if len(id_) == 1 else ()), PLACE, *vectors.values(), text, json}
    typed = _typed(relation, options, taken)
    other = tuple(c.name for c in relation.columns.values() if c.is_vector and c.name not in taken)
    found = Table(relation, key, id_, text=text, vectors=vectors, json=json, typed=typed, passed_over=other)
    _check(found)
    return found


def _overridden(options: Options) -> bool:
    given = (options.vector, options.text, options.id, options.key, options.columns)
    return any(option is not None for option in given)


def _as_recorded(relation: Relation, metadata: TableMetadata) -> Table:
    """As this adapter made it, and with the columns that the application has added since."""
    noted = metadata.columns
    vectors = {name: column for name, column in noted["vectors"].items() if column in relation.columns}
    known = {*noted["vectors"].values(), noted["id"], noted["text"], noted["json"]}
    known |= {*noted["typed"].values()}
    added = {c.name: c.name for c in relation.columns.values() if c.is_vector and c.name not in known}
    typed = {key: column for key, column in noted["typed"].items() if column in relation.columns}
    fresh = {
        c.name: c.name for c in relation.columns.values() if _is_value(c) and c.name not in {*known, *typed}
    }
    found = Table(
        relation,
        key=(noted["id"],),
        id=(noted["id"],),
        coded_ids=metadata.native_ids,
        text=noted["text"] if noted["text"] in relation.columns else None,
        vectors={**vectors, **added},
        json=noted["json"] if noted["json"] in relation.columns else None,
        typed={**typed, **fresh},
    )
    _check(found)
    return found


def _vectors(relation: Relation, options: Options) -> tuple[Relation, dict[str, str]]:
    have = [c.name for c in relation.columns.values() if c.is_vector]
    wanted = options.vector_columns
    if not wanted:
        return relation, ({"": have[0]} if len(have) == 1 else {name: name for name in have})
    found: dict[str, str] = {}
    for name, column in wanted.items():
        if column not in relation.columns:
            raise SchemaMismatchError(
                f"{_where(relation)} has no column {column!r}; there are {sorted(relation.columns)}"
            )
        if not relation.columns[column].is_vector:
            relation = relation.with_column(_as_vectors(relation, column, have))
        found[column if name is None else name] = column
    return relation, found


def _as_vectors(relation: Relation, name: str, have: list[str]) -> PgColumn:
    """A column that holds vectors as an array of numbers, as JSON, or as text.

    Raises:
        SchemaMismatchError: for a column of any other type, or of text that is no list of numbers.
    """
    column = relation.columns[name]
    if column.category == "A" and column.element in _ARRAYS:
        return replace(column, held_as="array")
    if name in relation.number_lists:
        return replace(column, held_as="text")
    raise SchemaMismatchError(
        f"{_where(relation)}: column {name!r} is {column.type}, not a vector; choose of {have}"
    )


def _some_unique(relation: Relation) -> tuple[str, ...]:
    """A unique key of columns that are never NULL."""
    for index in relation.indexes:
        columns = [relation.columns[name] for name in index.columns]
        if index.unique and index.valid and columns and not any(c.nullable for c in columns):
            return index.columns
    return ()


def _text(relation: Relation, options: Options, taken: tuple[str, ...]) -> str | None:
    if options.text is not None:
        return options.text or None
    columns = relation.columns
    free = [n for n in TEXT_NAMES if n in columns and columns[n].is_text and n not in taken]
    return next((n for n in free if not columns[n].held_as), None)


def _json(relation: Relation, options: Options) -> str | None:
    if options.metadata not in (None, "columns"):
        return options.metadata or None
    columns = relation.columns
    found = (n for n in METADATA_NAMES if n in columns and columns[n].is_json and not columns[n].held_as)
    return next(found, None)


def _typed(relation: Relation, options: Options, taken: set[str | None]) -> dict[str, str]:
    if options.columns is not None:
        return {name: name for name in names(options.columns) if name}
    return {c.name: c.name for c in relation.columns.values() if c.name not in taken and _is_value(c)}


def _is_value(column: PgColumn) -> bool:
    """Whether a column is metadata: no vector, and not made from others."""
    return not column.is_vector and not column.is_vectorlike and column.type not in DERIVED_TYPES


def _check(found: Table) -> None:
    where, relation = _where(found.relation), found.relation
    if not found.key:
        raise SchemaMismatchError(
            f"{where} has no primary key; name the columns of a unique key: key='a,b'"
        )
    if not found.vectors:
        raise SchemaMismatchError(f"{where} has no vector column; there are {sorted(relation.columns)}")
    used = [*found.key, *found.id, *found.typed.values(), *(c for c in (found.text, found.json) if c)]
    for column in used:
        if column not in relation.columns:
            raise SchemaMismatchError(
                f"{where} has no column {column!r}; there are {sorted(relation.columns)}"
            )
    if found.json and not relation.columns[found.json].is_json:
        raise SchemaMismatchError(
            f"{where}: metadata column {found.json!r} is not json; leave the option out"
        )


def _where(relation: Relation) -> str:
    return str(relation.table) if relation.table else "the select"
