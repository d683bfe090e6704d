"""``sqlite:FILE#TABLE``: a table of a SQLite file as a collection. Brute force, one dense field."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from vecferry.errors import ConfigurationError, NotFoundError, SchemaMismatchError, TargetExistsError
from vecferry.model import (
    CollectionSchema,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
    decode_id,
    encode_id,
    from_json,
    matches,
    to_json,
)
from vecferry.model.metrics import scores
from vecferry.ports import (
    Capabilities,
    Cursor,
    Fields,
    Partition,
    StoreURL,
    WriteMode,
    WriteReceipt,
    check_fits,
)

_CATALOGUE = "create table if not exists vecferry_schemas (name text primary key, schema text not null)"
_TABLE = (
    'create table if not exists "{}" '
    "(id text primary key, content text, metadata text not null, types text not null, vector blob)"
)


class SqliteStore:
    """One table. Every call opens the file for itself, so that threads need not share a connection."""

    def __init__(self, file: Path, table: str) -> None:
        self.file, self.table, self.url = file, table, f"sqlite:{file}#{table}"

    @classmethod
    def from_url(cls, url: StoreURL, **options: Any) -> SqliteStore:
        if options:
            raise ConfigurationError(f"sqlite: has no option {sorted(options)[0]!r}")
        return cls(Path(url.path), url.fragment or "vectors")

    # -- reading ------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        schema = self._schema()
        if schema is None:
            raise NotFoundError(f"{self.url} does not exist; check the file and the name behind #")
        return schema

    def count(self) -> int:
        self.describe()
        return int(self._all(f'select count(*) from "{self.table}"')[0][0])

    def partitions(self, want: int) -> Sequence[Partition]:
        return [Partition("all")]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | None = None,
    ) -> Iterator[RecordBatch]:
        self.describe()
        last = "" if after is None else str(after)
        page = f'select * from "{self.table}" where id > ? order by id limit ?'
        while rows := self._all(page, last, batch_size):
            last = rows[-1][0]
            records = [r for r in map(_record, rows) if where is None or matches(where, r.metadata)]
            yield _batch(records, fields, cursor=last)

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        one = f'select * from "{self.table}" where id = ?'
        rows = [row for id_ in ids for row in self._all(one, encode_id(id_))]
        return _batch([_record(row) for row in rows], fields)

    def search(
        self, vector: Any, k: int = 10, *, field: str = "", where: Where | None = None
    ) -> list[VectorRecord]:
        known = self.describe().field(field)
        query = np.asarray(vector, np.float32)
        if query.shape != (known.dim,):
            raise SchemaMismatchError(f"{self.url} holds {known.dim} components, not {query.shape}")
        found = [r for b in self.scan(where=where) for r in b.records() if r.vector is not None]
        similar = scores(known.metric, query, np.array([r.vector for r in found]).reshape(len(found), -1))
        best = np.argsort(-similar, kind="stable")[:k]
        return [found[i].model_copy(update={"score": float(similar[i])}) for i in best]

    # -- writing ------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        return Capabilities(several_fields=False, field_names=False)

    def exists(self) -> bool:
        return self._schema() is not None

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        have = self._schema()
        if have is not None and mode is WriteMode.CREATE:
            raise TargetExistsError(f"{self.url} exists; pass mode='upsert', or name another table")
        if mode is WriteMode.REPLACE:
            raise ConfigurationError("sqlite: cannot replace in one step; write to another table")
        if have is None and mode is WriteMode.RESUME:
            raise NotFoundError(f"{self.url} was not begun")
        if have is not None:
            return check_fits(have, schema, self.url)
        self._all(_TABLE.format(self.table))
        self._all("insert into vecferry_schemas values (?, ?)", self.table, schema.model_dump_json())
        return None

    def write(self, batch: RecordBatch) -> WriteReceipt:
        dim = self.describe().field("").dim
        rows = []
        for record in batch.records():
            if record.vector is not None and record.vector.shape != (dim,):
                raise SchemaMismatchError(
                    f"{record.id!r} has {record.vector.shape}, {self.url} holds {dim}"
                )
            metadata, types = map(json.dumps, to_json(record.metadata))
            blob = None if record.vector is None else record.vector.astype("<f4").tobytes()
            rows.append((encode_id(record.id), record.text, metadata, types, blob))
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.executemany(f'insert or replace into "{self.table}" values (?, ?, ?, ?, ?)', rows)
        return WriteReceipt(len(batch))

    def finish(self) -> None:
        """Nothing to build: the search is brute force."""

    def close(self) -> None:
        """Nothing is held open."""

    def delete(self, ids: Sequence[RecordId]) -> int:
        with closing(sqlite3.connect(self.file)) as connection, connection:
            gone = f'delete from "{self.table}" where id = ?'
            return sum(connection.execute(gone, (encode_id(i),)).rowcount for i in ids)

    # -- helpers ------------------------------------------------------------------------------

    def _all(self, statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute(_CATALOGUE)
            return connection.execute(statement, values).fetchall()

    def _schema(self) -> CollectionSchema | None:
        if not self.file.exists():
            return None
        found = self._all("select schema from vecferry_schemas where name = ?", self.table)
        return CollectionSchema.model_validate_json(found[0][0]) if found else None


def _record(row: Sequence[Any]) -> VectorRecord:
    id_, text, metadata, types, blob = row
    vectors = {} if blob is None else {"": np.frombuffer(blob, "<f4")}
    restored = from_json(json.loads(metadata), json.loads(types))
    return VectorRecord(id=decode_id(id_), text=text, vectors=vectors, metadata=restored)


def _batch(records: list[VectorRecord], fields: Fields, **more: Any) -> RecordBatch:
    batch = RecordBatch.from_records(records).replace(**more)
    return batch.replace(
        vectors={name: column for name, column in batch.vectors.items() if fields.wants(name)},
        texts=batch.texts if fields.text else None,
        metadata=batch.metadata if fields.metadata else None,
    )
