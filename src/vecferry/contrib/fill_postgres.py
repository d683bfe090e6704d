"""Filling a vector column of a table in place: a second model, or rows whose vector is NULL.

A batch is read in one short transaction, embedded outside any, and written in another one that takes row
locks only: rows that a writer holds are passed over (SKIP LOCKED) and met again in the next pass, and a
vector is stored only where there is still none and the text is still the one that was embedded. So it may
be stopped and started again at any time; what is done is what is no longer NULL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg import sql

from vecferry.core.retry import RetryPolicy
from vecferry.errors import RejectedRecord, SchemaMismatchError, SpaceMismatchError
from vecferry.model import DenseColumn, DType, EmbeddingSpace, Metric, VectorField
from vecferry.model.vectors import Array
from vecferry.ports import Embedder, OnProgress, Progress, ShouldStop, ignore_progress, never_stop
from vecferry.stores.pgvector import filters, wire
from vecferry.stores.pgvector.introspection import (
    Relation,
    TableMetadata,
    as_sql,
    reflect_table,
    write_metadata,
)
from vecferry.stores.pgvector.mapping import map_table
from vecferry.stores.pgvector.options import Options
from vecferry.stores.pgvector.server import TableName
from vecferry.stores.pgvector.store import PgVectorStore
from vecferry.stores.pgvector.table import Table

_STAGE = sql.Identifier("pg_temp", "vecferry_fill")
_PASSES, _PAUSE = 20, 0.5


@dataclass(slots=True)
class Filled:
    """What `fill_column` did.

    Attributes:
        rows: vectors stored.
        rejected: keys (as text) of rows whose text the embedder refuses, with the reason.
        waiting: rows left because writers held or changed them in every pass; run again to get them.
        stopped: whether ``should_stop`` ended it.
    """

    rows: int = 0
    rejected: dict[tuple[str, ...], str] = field(default_factory=dict)
    waiting: int = 0
    stopped: bool = False


def fill_column(
    store: PgVectorStore | Any,
    column: str,
    embedder: Embedder,
    *,
    text: str | None = None,
    where: Any = None,
    batch_size: int = 256,
    half: bool = False,
    same_space: bool = False,
    retry: RetryPolicy | None = None,
    on_progress: OnProgress = ignore_progress,
    should_stop: ShouldStop = never_stop,
) -> Filled:
    """Embed the text of every row whose ``column`` is NULL, and store the vector.

    Args:
        store: a `PgVectorStore`, or a collection of one.
        column: the vector column; added to the table if it is not there.
        text: the column of the text; by default the one that the store reads.
        where: which of the store's rows (a filter, an SQLAlchemy expression, SQL text).
        half: make a new column ``halfvec`` instead of ``vector``.
        same_space: says that vectors already in the column, of which nothing is recorded, are of the
            embedder's space.

    Raises:
        SpaceMismatchError: if the column holds vectors of another space, or of an unknown one.
        SchemaMismatchError: if the column is no dense vector of the embedder's dimension.
        RetryableError: when the retry policy gives up; run again to go on.
    """
    store = getattr(store, "store", store)
    policy = retry or RetryPolicy()
    table = policy.call(
        lambda: _ready(store, column, embedder.space, text=text, half=half, same_space=same_space)
    )
    job = _Job(store, table, column, embedder, where, batch_size)
    done = Filled()
    for _ in range(_PASSES):
        before = done.rows
        done.waiting = job.one_pass(done, policy, on_progress, should_stop)
        if done.stopped or not done.waiting:
            break
        if done.rows == before:
            time.sleep(_PAUSE)
    store._forget()
    return done


class _Job:
    """The reading and writing of batches; `table.text` is the column embedded."""

    def __init__(
        self,
        store: PgVectorStore,
        table: Table,
        column: str,
        embedder: Embedder,
        where: Any,
        batch_size: int,
    ) -> None:
        assert table.name is not None and table.text is not None
        self.server, self.table, self.column = store._server, table, column
        self.name: TableName = table.name
        self.text: str = table.text
        self.embedder, self.batch_size = embedder, batch_size
        clause = table.clause.c
        self.conditions = [
            clause[column].is_(None),
            clause[self.text].is_not(None),
            *table.own_rows(),
            *filters.conditions(table, store.options.where, store.options.params),
            *filters.conditions(table, where, store.options.params),
        ]

    def one_pass(
        self, done: Filled, policy: RetryPolicy, on_progress: OnProgress, should_stop: ShouldStop
    ) -> int:
        """Once through the table in key order; returns how many rows it had to leave."""
        cursor, left, begun = None, 0, time.monotonic()
        while not should_stop():
            found = policy.call(lambda at=cursor: self._read(at), should_stop=should_stop)  # type: ignore[misc]
            if not found:
                return left
            cursor = list(found[-1][0])
            todo = [(key, text) for key, text in found if key not in done.rejected]
            stored, wanted = self._embed_and_store(todo, done, policy, should_stop)
            done.rows += stored
            left += wanted - stored
            on_progress(
                Progress(
                    "stream",
                    done.rows,
                    written=done.rows,
                    rejected=len(done.rejected),
                    seconds=time.monotonic() - begun,
                )
            )
        done.stopped = True
        return left

    def _embed_and_store(
        self,
        todo: list[tuple[tuple[str, ...], str]],
        done: Filled,
        policy: RetryPolicy,
        should_stop: Callable[[], bool],
    ) -> tuple[int, int]:
        """How many vectors were stored, and how many could be made."""
        if not todo:
            return 0, 0
        try:
            texts = [text for _, text in todo]
            vectors = policy.call(lambda: self.embedder.embed(texts), should_stop=should_stop)
        except RejectedRecord as error:
            bad = {int(i) for i in error.ids if isinstance(i, int) and i < len(todo)} or (
                {0} if len(todo) == 1 else set()
            )
            done.rejected.update({todo[i][0]: str(error) for i in bad})
            half = len(todo) // 2
            parts = (
                [[row for i, row in enumerate(todo) if i not in bad]] if bad else [todo[:half], todo[half:]]
            )
            counts = [self._embed_and_store(part, done, policy, should_stop) for part in parts]
            return sum(c[0] for c in counts), sum(c[1] for c in counts)
        return policy.call(lambda: self._store(todo, vectors), should_stop=should_stop), len(todo)

    def _read(self, after: list[str] | None) -> list[tuple[tuple[str, ...], str]]:
        keys = [sa.cast(column, sa.Text) for column in self.table.ordered()]
        query = (
            sa.select(*keys, sa.cast(self.table.clause.c[self.text], sa.Text))
            .where(*self.conditions, *self.table.in_range(after, None))
            .order_by(*self.table.ordered())
            .limit(self.batch_size)
        )
        with self.server.raw() as connection:
            rows = connection.execute(*as_sql(query)).fetchall()
            connection.commit()
        return [(tuple(row[:-1]), row[-1]) for row in rows]

    def _store(self, rows: Sequence[tuple[tuple[str, ...], str]], vectors: Array) -> int:
        type_ = self.table.columns[self.column].type
        keys = [wire.text_cells([key[i] for key, _ in rows]) for i in range(len(self.table.key))]
        texts = wire.text_cells([text for _, text in rows])
        cells = wire.dense_cells(DenseColumn(np.asarray(vectors, np.float32)), type_, None)
        names = [f"k{i}" for i in range(len(keys))]
        with self.server.raw() as connection:
            self._stage(connection, names)
            copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
                _STAGE, sql.SQL(", ").join(map(sql.Identifier, [*names, "body", "vector"]))
            )
            with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
                copy.write(wire.HEADER + wire.rows([*keys, texts, cells], len(rows)) + wire.TRAILER)
            stored = connection.execute(self._update(names)).rowcount
            connection.execute(sql.SQL("DROP TABLE {}").format(_STAGE))
            connection.commit()
        return stored

    def _stage(self, connection: psycopg.Connection[Any], names: list[str]) -> None:
        keys = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in names)
        vector = sql.SQL(self.table.columns[self.column].sql_type)
        make = sql.SQL("CREATE TEMP TABLE vecferry_fill ({}, body text, vector {}) ON COMMIT DROP")
        connection.execute(make.format(keys, vector))

    def _update(self, names: list[str]) -> sql.Composed:
        """Lock what is free, in key order, then fill it where nothing has changed."""
        types = [self.table.columns[name].sql_type for name in self.table.key]

        def same(alias: str) -> sql.Composed:
            return sql.SQL(" AND ").join(
                sql.SQL("t.{} = CAST({}.{} AS {})").format(
                    sql.Identifier(column), sql.SQL(alias), sql.Identifier(name), sql.SQL(type_)
                )
                for column, name, type_ in zip(self.table.key, names, types, strict=True)
            )

        return sql.SQL(
            "WITH free AS MATERIALIZED (SELECT s.* FROM {stage} s JOIN {table} t ON {joined}"
            " WHERE t.{column} IS NULL AND CAST(t.{text} AS text) = s.body"
            " ORDER BY {keys} FOR UPDATE OF t SKIP LOCKED)"
            " UPDATE {table} AS t SET {column} = free.vector FROM free WHERE {again} AND t.{column} IS NULL"
        ).format(
            stage=_STAGE,
            table=self.name.quoted,
            joined=same("s"),
            column=sql.Identifier(self.column),
            text=sql.Identifier(self.text),
            keys=sql.SQL(", ").join(sql.SQL("s.{}").format(sql.Identifier(name)) for name in names),
            again=same("free"),
        )


# -- the column -----------------------------------------------------------------------------------


def _ready(
    store: PgVectorStore,
    column: str,
    space: EmbeddingSpace,
    *,
    text: str | None,
    half: bool,
    same_space: bool,
) -> Table:
    """The column exists, fits, and its space is recorded."""
    table = store._look(afresh=True)
    if table.name is None or not table.relation.is_table:
        raise SchemaMismatchError(f"{store.name} is not a table; fill the table itself")
    if (text or table.text) is None:
        raise SchemaMismatchError(f"{store.name} has no known text column; name it with text=…")
    store._check_key(table)
    with store._server.raw() as connection:
        if column not in table.columns:
            _add_column(connection, table.name, column, space.dim, half=half)
        relation = reflect_table(connection, table.name)
        found = relation.columns[column]
        if found.type not in ("vector", "halfvec") or found.dim not in (None, space.dim):
            raise SchemaMismatchError(
                f"{store.name}: column {column!r} is {found.type}({found.dim}), "
                f"{space} needs vector({space.dim}); fill another column"
            )
        table = _remember(connection, relation, column, space, store.options, same_space=same_space)
        connection.commit()
    return replace(table, text=text or table.text, vectors={}, layout="plain")


def _add_column(
    connection: psycopg.Connection[Any], table: TableName, column: str, dim: int, *, half: bool
) -> None:
    """Without a rewrite; waits five seconds at most for the table's lock, so that nobody queues behind."""
    connection.execute("SET LOCAL lock_timeout = '5s'")
    type_ = sql.SQL(f"{'halfvec' if half else 'vector'}({int(dim)})")
    add = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}")
    connection.execute(add.format(table.quoted, sql.Identifier(column), type_))
    connection.commit()


def _remember(
    connection: psycopg.Connection[Any],
    relation: Relation,
    column: str,
    space: EmbeddingSpace,
    options: Options,
    *,
    same_space: bool,
) -> Table:
    """Check and record the space of the column, under the field's name as it will be read."""
    assert relation.table is not None
    everything = Options(text=options.text, id=options.id, key=options.key, metadata=options.metadata)
    table = map_table(relation, everything if options.vector else options)
    metadata = relation.metadata or TableMetadata()
    # One column was the unnamed field; beside a second one it goes by its own name.
    known = {f.name: f for f in metadata.collection.fields}
    others = [name for name in table.vectors.values() if name != column]
    if "" in known and "" not in table.vectors and len(others) == 1:
        known[others[0]] = known.pop("").model_copy(update={"name": others[0]})
    name = next(f for f, c in table.vectors.items() if c == column)
    old = known.get(name)
    if old and old.space and not old.space.same_as(space):
        raise SpaceMismatchError(
            f"column {column!r} holds vectors of {old.space}, not of {space}; fill another column"
        )
    if not (old and old.space) and not same_space and _has_vectors(connection, table, column):
        raise SpaceMismatchError(
            f"column {column!r} holds vectors of an unknown space; fill another column, "
            f"or pass same_space=True if they are of {space}"
        )
    known[name] = VectorField(
        name=name,
        dim=space.dim,
        dtype=DType.FLOAT16 if table.columns[column].type == "halfvec" else DType.FLOAT32,
        space=space,
        metric=old.metric if old else Metric.COSINE,
    )
    collection = metadata.collection.model_copy(update={"fields": tuple(known.values())})
    write_metadata(connection, relation.table, metadata.model_copy(update={"collection": collection}))
    return table


def _has_vectors(connection: psycopg.Connection[Any], table: Table, column: str) -> bool:
    one: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(table.clause)
    query = sa.select(sa.exists(one.where(table.clause.c[column].is_not(None))))
    row = connection.execute(*as_sql(query)).fetchone()
    return bool(row and row[0])
