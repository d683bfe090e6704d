"""The tables of LangChain and LlamaIndex, so that their apps open what is written here, and the reverse.

| layout | tables | read from |
|---|---|---|
| ``langchain`` | ``langchain_pg_collection``, ``langchain_pg_embedding``: every collection in one table | ``PGVector``, langchain-postgres 0.0.19 |
| ``langchain-v2`` | one a collection: ``langchain_id``, ``content``, ``embedding``, ``langchain_metadata`` | ``PGVectorStore``, langchain-postgres 0.0.19 |
| ``llamaindex`` | ``data_NAME``: ``id``, ``text``, ``metadata_``, ``node_id``, ``embedding`` | ``PGVectorStore``, llama-index 0.9.0 |

Both demand a text: a record without one gets ``""`` and a note in its envelope. Ids are text there; ids of
other types are written typed and come back as they were.
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from vecferry.errors import NotFoundError, SchemaMismatchError
from vecferry.layouts import open_envelope, seal
from vecferry.layouts.base import differing_copies
from vecferry.layouts.llamaindex import LlamaIndexLayout
from vecferry.model import ENVELOPE, CollectionSchema, DType, Loss, RecordBatch, parse_json
from vecferry.stores.pgvector.introspection import (
    DERIVED_TYPES,
    Relation,
    TableMetadata,
    as_sql,
    find_table,
    write_metadata,
)
from vecferry.stores.pgvector.server import Server, TableName
from vecferry.stores.pgvector.table import Table

COLLECTIONS, EMBEDDINGS = "langchain_pg_collection", "langchain_pg_embedding"
_NOTED = "vecferry"
_LOOKED_AT = 1000  # rows in which copies are compared

_PARTS: dict[str, dict[str, Any]] = {
    "langchain": {"id": "id", "text": "document", "json": "cmetadata"},
    "langchain-v2": {"id": "langchain_id", "text": "content", "json": "langchain_metadata"},
    "llamaindex": {"id": "node_id", "key": "id", "text": "text", "json": "metadata_"},
}
_MARKS = {
    "llamaindex": {"id", "node_id", "text", "metadata_", "embedding"},
    "langchain-v2": {"langchain_id", "content", "embedding"},
    "langchain": {"collection_id", "document", "cmetadata", "embedding"},
}
_DDL = {
    "langchain": """
        CREATE TABLE IF NOT EXISTS {collections} (
            uuid uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar NOT NULL UNIQUE, cmetadata json
        );
        CREATE TABLE IF NOT EXISTS {table} (
            id varchar PRIMARY KEY, collection_id uuid REFERENCES {collections} (uuid) ON DELETE CASCADE,
            embedding {vector}, document varchar, cmetadata jsonb
        );
        CREATE INDEX IF NOT EXISTS ix_cmetadata_gin ON {table} USING gin (cmetadata jsonb_path_ops)
    """,
    "langchain-v2": """
        CREATE TABLE {table} (
            langchain_id {id} PRIMARY KEY, content text NOT NULL, embedding {vector} NOT NULL,
            langchain_metadata json
        )
    """,
    "llamaindex": """
        CREATE TABLE {table} (
            id bigserial PRIMARY KEY, text varchar NOT NULL, metadata_ json, node_id varchar,
            embedding {vector}
        );
        CREATE INDEX ON {table} ((metadata_ ->> 'ref_doc_id'));
        CREATE INDEX ON {table} (node_id)
    """,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection lies: a table, or (``collection``) a share of LangChain's table.

    ``named`` says that each row of a table of langchain-community has an id of the application's own.
    """

    table: TableName
    layout: str | None = None
    collection: str | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    metadata: TableMetadata | None = None
    named: bool = False


def locate(connection: psycopg.Connection[Any], name: TableName, layout: str | None) -> Place | None:
    """Find a collection by the name its framework knows it by; ``None`` if there is none."""
    if layout == "langchain":
        return _langchain_place(connection, name)
    if layout == "llamaindex":
        name = physical_name(name, layout)
    found = find_table(connection, name)
    if found is not None:
        return Place(found, layout)
    if layout is not None:
        return None
    found = find_table(connection, physical_name(name, "llamaindex"))
    return Place(found, "llamaindex") if found else _langchain_place(connection, name)


def physical_name(name: TableName, layout: str | None) -> TableName:
    """The table of a collection: LlamaIndex puts ``data_`` before its lower-cased name."""
    if layout == "langchain":
        return name.sibling(EMBEDDINGS)
    if layout == "llamaindex" and not name.name.startswith("data_"):
        return name.sibling(f"data_{name.name.lower()}")
    return name


def _langchain_place(connection: psycopg.Connection[Any], name: TableName) -> Place | None:
    table, collections = find_table(connection, name.sibling(EMBEDDINGS)), name.sibling(COLLECTIONS)
    if table is None or find_table(connection, collections) is None:
        return None
    query = sql.SQL("SELECT uuid, cmetadata FROM {} WHERE name = %s").format(collections.quoted)
    row = connection.execute(query, [name.name]).fetchone()
    if row is None:
        return None
    noted = row[1].get(_NOTED) if isinstance(row[1], dict) else None
    metadata = TableMetadata.model_validate(noted) if noted else None
    named = _named(connection, table, row[0])
    return Place(table, "langchain", name.name, {"collection_id": row[0]}, metadata, named)


def _named(connection: psycopg.Connection[Any], table: TableName, collection: Any) -> bool:
    """Whether the rows of a collection have ids in ``custom_id`` (langchain-community), each its own."""
    has = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'custom_id'"
    if not connection.execute(has, [table.quoted.as_string(connection)]).fetchone():
        return False
    query = sql.SQL("SELECT count(*) = count(DISTINCT custom_id) FROM {} WHERE collection_id = %s")
    row = connection.execute(query.format(table.quoted), [collection]).fetchone()
    return bool(row and row[0])


def recognise(relation: Relation, place: Place | None) -> str:
    """The layout of a table by the names of its columns."""
    if relation.metadata and relation.metadata.made:
        return relation.metadata.collection.layout
    if place is not None and place.layout is not None:
        return place.layout
    names = set(relation.columns)
    return next((n for n, marks in _MARKS.items() if n != "langchain" and marks <= names), "plain")


def framework_table(layout: str, relation: Relation, place: Place | None) -> Table:
    """How records lie in a framework's table; columns that the application added are metadata.

    Raises:
        SchemaMismatchError: if the table lacks one of the layout's columns.
    """
    parts = dict(_PARTS[layout])
    community = layout == "langchain" and "id" not in relation.columns and "uuid" in relation.columns
    if community:  # langchain-community and before: a key of its own beside the id of the application
        named = place is not None and place.named
        parts |= {"key": "uuid", "id": "custom_id" if named else "uuid"}
    key, fixed = parts.get("key", parts["id"]), dict(place.fixed) if place else {}
    missing = sorted((_MARKS[layout] | {key, parts["id"]}) - relation.columns.keys())
    if missing:
        raise SchemaMismatchError(f"{relation.table} is no {layout} table: it has no column {missing[0]!r}")
    metadata = relation.metadata
    fields = metadata.collection.fields if metadata else ()
    known = {key, parts["id"], parts["text"], parts["json"], "embedding", *fixed}
    known |= {"custom_id"} if community else set()
    other = [c for c in relation.columns.values() if c.name not in known and c.type not in DERIVED_TYPES]
    return Table(
        relation,
        key=(key,),
        id=(parts["id"],),
        coded_ids=metadata.native_ids if metadata else "",
        text=parts["text"],
        vectors={fields[0].name if fields else "": "embedding"},
        json=parts["json"] if parts["json"] in relation.columns else None,
        typed={c.name: c.name for c in other if not c.is_vector},
        fixed=fixed,
        layout=layout,
        filled={"uuid": "gen_random_uuid()"} if community and parts["id"] != "uuid" else {},
        passed_over=tuple(c.name for c in other if c.is_vector),
    )


def create(
    connection: psycopg.Connection[Any], name: TableName, layout: str, schema: CollectionSchema
) -> None:
    """Make the framework's tables for a collection of ``schema``, in the running transaction.

    Raises:
        SchemaMismatchError: for anything but one dense vector field of floats.
    """
    if len(schema.fields) != 1 or schema.fields[0].kind != "dense" or schema.fields[0].dtype is DType.BIT:
        raise SchemaMismatchError(
            f"layout={layout!r} holds one dense vector field; choose it, or layout='plain'"
        )
    first = schema.fields[0]
    kind = "halfvec" if first.dtype is DType.FLOAT16 and layout == "llamaindex" else "vector"
    uuids = layout == "langchain-v2" and schema.id_type == "uuid"
    # LangChain's own default has no dimension, so that collections of several models share the table.
    vector = kind if layout == "langchain" or not first.dim else f"{kind}({first.dim})"
    table, collections = physical_name(name, layout), name.sibling(COLLECTIONS)
    connection.execute(
        sql.SQL(_DDL[layout]).format(
            table=table.quoted,
            collections=collections.quoted,
            vector=sql.SQL(vector),
            id=sql.SQL("uuid" if uuids else "text"),
        )
    )
    recorded = schema.model_copy(update={"losses": (), "count": None, "layout": layout})
    metadata = TableMetadata(collection=recorded, coded_ids=not uuids, made=True)
    if layout == "langchain":
        insert = sql.SQL("INSERT INTO {} (uuid, name, cmetadata) VALUES (gen_random_uuid(), %s, %s)")
        connection.execute(insert.format(collections.quoted), [name.name, _noted({}, metadata)])
    else:
        write_metadata(connection, table, metadata)


def note(connection: psycopg.Connection[Any], place: Place, metadata: TableMetadata) -> None:
    """Record a metadata where this collection keeps it."""
    if place.collection is None:
        write_metadata(connection, place.table, metadata)
        return
    collections = place.table.sibling(COLLECTIONS)
    query = sql.SQL("SELECT cmetadata FROM {} WHERE name = %s").format(collections.quoted)
    row = connection.execute(query, [place.collection]).fetchone()
    if row is None:
        raise NotFoundError(f"the collection {place.collection!r} is gone; create it again")
    update = sql.SQL("UPDATE {} SET cmetadata = %s WHERE name = %s").format(collections.quoted)
    connection.execute(update, [_noted(row[0] or {}, metadata), place.collection])


def _noted(words: dict[str, Any], metadata: TableMetadata) -> str:
    return json.dumps({**words, _NOTED: metadata.model_dump(mode="json", exclude_none=True)})


def find_differing(server: Server, table: Table) -> tuple[Loss, ...]:
    """Of the first rows of LlamaIndex, those in which its two copies of a value differ."""
    if table.layout != "llamaindex" or table.json is None:
        return ()
    document = sa.cast(table.column(table.json), sa.Text)
    query = sa.select(document).where(document.is_not(None), *table.own_rows()).limit(_LOOKED_AT)
    with server.raw() as connection:
        payloads = [parse_json(text) for (text,) in connection.execute(*as_sql(query))]
        connection.commit()
    rows = [payload for payload in payloads if isinstance(payload, dict)]
    return differing_copies(LlamaIndexLayout(remove_text=True), rows)


# -- records ↔ rows -------------------------------------------------------------------------------


class LangChainRows:
    """The text as a string, the metadata as an object; what it cannot hold goes to the envelope."""

    def encode(self, batch: RecordBatch) -> RecordBatch:
        sealed = []
        for text, metadata in zip(batch.text_list, batch.metadata_list, strict=True):
            body, envelope = seal(metadata, no_text=text is None)
            sealed.append({**body, ENVELOPE: envelope} if envelope else body)
        return batch.replace(texts=[text or "" for text in batch.text_list], metadata=sealed)

    def decode(self, batch: RecordBatch) -> RecordBatch:
        texts, metadata = list(batch.text_list), []
        for row, document in enumerate(batch.metadata_list):
            envelope = document.pop(ENVELOPE, None)
            if isinstance(envelope, dict) and envelope.get("no_text") and not texts[row]:
                texts[row] = None
            metadata.append(open_envelope(document, envelope)[1])
        return batch.replace(
            texts=None if batch.texts is None else texts,
            metadata=None if batch.metadata is None else metadata,
        )


class LlamaIndexRows:
    """Nodes: the text in its column, all else in ``metadata_``, where ``_node_content`` counts."""

    def __init__(self) -> None:
        self._layout = LlamaIndexLayout(remove_text=True)

    def encode(self, batch: RecordBatch) -> RecordBatch:
        payloads = self._layout.encode(batch.id_list, batch.text_list, batch.metadata_list)
        return batch.replace(texts=[text or "" for text in batch.text_list], metadata=payloads)

    def decode(self, batch: RecordBatch) -> RecordBatch:
        if batch.metadata is None:
            return batch
        texts = [
            None
            if isinstance(noted := document.get(ENVELOPE), dict) and noted.get("no_text") and not text
            else text
            for text, document in zip(batch.text_list, batch.metadata, strict=True)
        ]
        metadata = self._layout.decode(batch.metadata).metadata
        return batch.replace(texts=None if batch.texts is None else texts, metadata=metadata)


CODECS: dict[str, Callable[[], LangChainRows | LlamaIndexRows]] = {
    "langchain": LangChainRows,
    "langchain-v2": LangChainRows,
    "llamaindex": LlamaIndexRows,
}
