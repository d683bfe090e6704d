"""What is recorded with a table: the schema with its embedding spaces, and the version it is.

It lies in ``COMMENT ON TABLE``, as the last line, ``vecferry: {json}``; whatever a person wrote above
stays. A comment follows its table through RENAME, SET SCHEMA and pg_dump, costs no table of its own, and
is written in the same transaction as the DDL it belongs to.
"""

from __future__ import annotations

import re
from typing import Any

import orjson
import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vecferry.model import CollectionSchema
from vecferry.stores.pgvector.address import TableName

_LINE = re.compile(r"(?:^|\n)vecferry: (\{.*\})\s*$", re.DOTALL)


class Memo(BaseModel):
    """The record of one table.

    Attributes:
        collection: the schema as given to ``prepare``.
        columns: where its parts lie; empty for tables that were there before and framework tables.
        coded_ids: whether the id column is text in which other types are written typed.
        made: whether this adapter made the table.
        tag, serial, created: of a published version, see `vecferry.stores.pgvector.publish`.
    """

    model_config = ConfigDict(extra="ignore")

    version: int = 1
    collection: CollectionSchema = Field(default_factory=CollectionSchema)
    columns: dict[str, Any] = Field(default_factory=dict)
    coded_ids: bool = False
    made: bool = False
    tag: str = ""
    serial: int = 0
    created: str = ""

    @property
    def native_ids(self) -> str:
        """The type whose ids stand in a coded text column as they are; empty if ids are not coded."""
        if not self.coded_ids:
            return ""
        return self.collection.id_type if self.collection.id_type in ("int", "uuid") else "str"


def parse_memo(comment: str | None) -> Memo | None:
    """The memo in a table's comment, if there is one that can be read."""
    match = _LINE.search(comment or "")
    if not match:
        return None
    try:
        return Memo.model_validate(orjson.loads(match[1]))
    except (ValidationError, orjson.JSONDecodeError):
        return None


def read_memo(connection: psycopg.Connection[Any], table: TableName) -> Memo | None:
    return parse_memo(_comment(connection, table))


def write_memo(connection: psycopg.Connection[Any], table: TableName, memo: Memo) -> None:
    """Record ``memo`` in the running transaction, keeping the words of people."""
    words = _LINE.sub("", _comment(connection, table) or "").rstrip()
    line = "vecferry: " + orjson.dumps(memo.model_dump(mode="json", exclude_none=True)).decode()
    text = f"{words}\n{line}" if words else line
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table.quoted, sql.Literal(text)))


def _comment(connection: psycopg.Connection[Any], table: TableName) -> str | None:
    query = "SELECT obj_description(to_regclass(%s), 'pg_class')"
    row = connection.execute(query, [table.quoted.as_string(connection)]).fetchone()
    return row[0] if row else None
