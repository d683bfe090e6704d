"""`PgVectorStore`: a table (view, select) of vectors in Postgres, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from vecferry.errors import (
    ConfigurationError,
    NotFoundError,
    SchemaMismatchError,
    UnsupportedError,
)
from vecferry.model import (
    CollectionSchema,
    DType,
    Kind,
    Metric,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
)
from vecferry.ports import (
    Capabilities,
    Changes,
    Cursor,
    Fields,
    Partition,
    StoreURL,
    Version,
    WriteMode,
    WriteReceipt,
)
from vecferry.stores.pgvector import ddl, filters, frameworks, indexes, preparing, publish, searching
from vecferry.stores.pgvector.address import LIBPQ_OPTIONS, Server, TableName
from vecferry.stores.pgvector.columns import RowMap
from vecferry.stores.pgvector.compiled import as_sql
from vecferry.stores.pgvector.copy_write import TableWriter
from vecferry.stores.pgvector.looking import advance_sequence, reflect_place, with_dims
from vecferry.stores.pgvector.mapping import describe, map_rows
from vecferry.stores.pgvector.partitions import find_partitions, in_range, ordered
from vecferry.stores.pgvector.reading import RowReader
from vecferry.stores.pgvector.reflect import Relation, reflect_select
from vecferry.stores.pgvector.settings import Settings
from vecferry.stores.pgvector.snapshot import Snapshot, begin_read
from vecferry.stores.pgvector.tracking import Journal

_JSON = frozenset({"str", "int", "float", "bool", "null", "list", "object"})
_CAPABILITIES = Capabilities(
    kinds=frozenset({Kind.DENSE, Kind.SPARSE}),
    metrics=frozenset(Metric),
    dtypes=frozenset({DType.FLOAT32, DType.FLOAT16, DType.BIT}),
    max_dim=((DType.FLOAT32, 16_000), (DType.FLOAT16, 16_000)),
    id_types=frozenset({"int", "str", "uuid"}),
    metadata_types=_JSON,
)


class PgVectorStore:
    """Source, sink and every ability on one table.

    Args:
        server: the database, or an SQLAlchemy engine of the application.
        table: its name, as text (``schema.table``) or `TableName`; ``None`` with ``select=``.
        settings: see `Settings`; given as keyword arguments too.
    """

    def __init__(
        self,
        server: Server | sa.Engine,
        table: TableName | str | None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(server, Server):
            shown = server.url.render_as_string(hide_password=True)
            server = Server(shown, engine=server)
        self.settings = replace(settings or Settings(), **options)
        self._table = TableName.parse(table) if isinstance(table, str) else table
        self._server = server
        self.url = server.url
        self._snapshot = Snapshot(server)
        self._seen: tuple[Relation, RowMap] | None = None
        self._writer: TableWriter | None = None
        self._straight = self._key_checked = False
        self._replacement: PgVectorStore | None = None

    @classmethod
    def from_url(cls, url: StoreURL, *, engine: sa.Engine | None = None, **options: Any) -> PgVectorStore:
        """``pgvector://user@host:port/db#schema.table`` or ``pgvector:FOLDER#table``."""
        libpq = {name: options.pop(name) for name in LIBPQ_OPTIONS & options.keys()}
        server = Server(str(url), engine=engine) if engine is not None else Server.from_url(url, libpq)
        if not url.fragment and "select" not in options:
            raise ConfigurationError(f"{url} names no table; write it behind a #: {url}#documents")
        table = TableName.parse(url.fragment) if url.fragment else None
        return cls(server, table, Settings(**options))

    def __repr__(self) -> str:
        return f"<PgVectorStore {self.url}>"

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        relation, rows = self._look()
        schema = describe(relation, rows, self.name)
        return schema.model_copy(update={"count": self.count()})

    def count(self) -> int:
        relation, _ = self._look()
        query = sa.select(sa.func.count()).select_from(relation.clause).where(*self._conditions(None))
        statement, values = as_sql(query)
        with self._server.raw() as connection:
            row = connection.execute(statement, values).fetchone()
        return int(row[0]) if row else 0

    def partitions(self, want: int) -> Sequence[Partition]:
        relation, rows = self._look(afresh=True)
        self._check_key(relation, rows)
        conditions, total = self._conditions(None), self.count()
        with self._server.raw() as connection:
            begin_read(connection, self._snapshot.name())
            return find_partitions(connection, relation, rows, want, conditions, total)

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | Any = None,
    ) -> Iterator[RecordBatch]:
        relation, rows = self._look()
        self._check_key(relation, rows)
        low, high = partition.bounds if partition and partition.bounds else (None, None)
        low = low if after is None else after
        reader = RowReader(relation, rows, fields)
        conditions = [*self._conditions(where), *in_range(relation, rows, low, high)]
        select = reader.select().where(*conditions).order_by(*ordered(relation, rows))
        snapshot = self._snapshot.name() if partition else None
        with self._server.raw() as connection:
            begin_read(connection, snapshot)
            yield from reader.stream(connection, select, batch_size)

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        able = _CAPABILITIES
        if self.settings.metadata == "columns":
            able = replace(able, metadata_types=_JSON | ddl.VALUE_TYPES.keys())
        if self._layout is not None:
            able = replace(
                able,
                kinds=frozenset({Kind.DENSE}),
                dtypes=able.dtypes - {DType.BIT},
                several_fields=False,
                missing_vectors=self._layout != "langchain-v2",
            )
        halves = self.settings.dtype == "float16" or self._holds_halves()
        return replace(able, dtypes=able.dtypes - {DType.FLOAT32}) if halves else able

    def exists(self) -> bool:
        with self._server.raw() as connection:
            if self._table is None:
                return True
            return frameworks.locate(connection, self._table, self._layout) is not None

    def prepare(self, schema: CollectionSchema, mode: WriteMode) -> None:
        table = self._writable()
        if mode is WriteMode.REPLACE and not publish.is_shadow(table):
            self._replacement = self.shadow("replacement")
            self._replacement.prepare(schema, mode)
            return
        self._replacement = None
        self._forget()
        with self._server.raw() as connection:
            connection.autocommit = False
            ddl.ensure_extension(connection)
            if mode is WriteMode.REPLACE:
                publish.drop(connection, table)
            self._straight = preparing.prepare(connection, table, schema, mode, self.settings, self.url)
            connection.commit()

    def write(self, batch: RecordBatch) -> WriteReceipt:
        if self._replacement is not None:
            return self._replacement.write(batch)
        self._snapshot.release()  # what this store reads next includes what it wrote
        return self._table_writer().write(batch)

    def finish(self) -> None:
        if self._replacement is not None:
            self._replacement.finish()
            self._replacement.close()
            self._replacement = None
            self.publish("replacement")
            return
        wrote = self._writer is not None
        self._close_writer()
        self._straight = False
        relation, rows = self._look(afresh=True)
        if wrote:
            advance_sequence(self._server, relation, rows)
        indexes.build(self._server, relation, rows, describe(relation, rows, self.name), self.settings)
        self._forget()

    def close(self) -> None:
        self._close_writer()
        self._snapshot.release()
        self._server.close()

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        relation, rows = self._look()
        return searching.fetch(self._server, relation, rows, list(ids), fields, self._conditions(None))

    def search(
        self,
        vector: Any,
        k: int = 10,
        *,
        field: str = "",
        where: Where | Any = None,
        ef_search: int | None = None,
        probes: int | None = None,
        iterative_scan: str | None = None,
    ) -> list[VectorRecord]:
        """See `vecferry.ports.Searchable`.

        Args:
            where: a filter, an SQLAlchemy expression, or SQL text.
            ef_search: of an HNSW index for this query (1 to 1000); more finds more and takes longer.
            probes: of an IVFFlat index.
            iterative_scan: ``strict_order`` or ``relaxed_order``: goes on until ``k`` rows pass the filter.
        """
        relation, rows = self._look()
        mine = self.settings
        settings = replace(
            mine,
            ef_search=mine.ef_search if ef_search is None else ef_search,
            probes=mine.probes if probes is None else probes,
            iterative_scan=mine.iterative_scan if iterative_scan is None else iterative_scan,
        )
        schema = describe(relation, rows, self.name)
        query = searching.Query(vector, k, field, self._conditions(where), settings)
        return searching.search(self._server, relation, rows, schema, query)

    def delete(self, ids: Sequence[RecordId]) -> int:
        self._writable()
        relation, rows = self._look()
        self._snapshot.release()
        return searching.delete(self._server, relation, rows, list(ids))

    def stages(self, mode: WriteMode) -> bool:
        return mode is WriteMode.REPLACE

    def shadow(self, tag: str) -> PgVectorStore:
        return PgVectorStore(self._server, publish.shadow_name(self._own_table(), tag), self.settings)

    def publish(self, tag: str) -> Version:
        self._forget()
        return publish.publish(self._server, self._own_table(), tag)

    def discard(self, tag: str) -> None:
        publish.discard(self._server, self._own_table(), tag)

    def versions(self) -> list[Version]:
        return publish.versions(self._server, self._own_table())

    def rollback(self) -> Version:
        self._forget()
        return publish.rollback(self._server, self._own_table())

    def prune(self, keep: int = 0) -> list[str]:
        return publish.prune(self._server, self._own_table(), keep)

    def track(self) -> Cursor:
        return self._journal().install()

    def changes(self, after: Cursor, *, batch_size: int = 1024) -> Iterator[Changes]:
        yield from self._journal().read(after, batch_size, self.fetch)

    def untrack(self) -> None:
        self._journal().remove()

    def wait_for_changes(self, seconds: float) -> bool:
        """Wait until a tracked table is changed; false after ``seconds``. What came before is not seen."""
        return self._journal().wait(seconds)

    def forget_changes(self, before: Cursor) -> int:
        """Let the journal forget what every reader has passed; returns how many entries."""
        return self._journal().forget(before)

    # -- helpers ------------------------------------------------------------------------------

    def _journal(self) -> Journal:
        return Journal(self._server, *self._look())

    @property
    def _layout(self) -> str | None:
        return self.settings.layout if self.settings.layout != "plain" else None

    @property
    def name(self) -> str:
        return str(self._table) if self._table else "select"

    def _look(self, *, afresh: bool = False) -> tuple[Relation, RowMap]:
        """What is there, and how records lie in it; looked up once and again after writes of structure."""
        if self._seen is None or afresh:
            with self._server.raw() as connection:
                if self._table is None:
                    relation = reflect_select(connection, self.settings.select, self.settings.params)
                    place = None
                else:
                    place = frameworks.locate(connection, self._table, self._layout)
                    relation = reflect_place(connection, place, self._table)
                rows = map_rows(relation, self.settings, place)
                relation = with_dims(connection, relation, rows)
            self._seen = (relation, rows)
        return self._seen

    def _forget(self) -> None:
        self._seen, self._key_checked = None, False
        self._close_writer()
        self._snapshot.release()

    def _conditions(self, where: Where | Any) -> list[Any]:
        """The conditions of the layout, of the settings, and of this call."""
        relation, rows = self._look()
        base = self.settings.where if self._table is not None else None
        return [
            *filters.fixed(relation, rows),
            *filters.conditions(relation, rows, base, self.settings.params),
            *filters.conditions(relation, rows, where, self.settings.params),
        ]

    def _check_key(self, relation: Relation, rows: RowMap) -> None:
        """Pages by a key that is not unique would skip rows; where no index promises it, it is counted."""
        if self._key_checked or relation.is_unique(rows.key):
            return
        with self._server.raw() as connection:
            filters.check_unique(connection, relation, rows, self.name)
        self._key_checked = True

    def _writable(self) -> TableName:
        if self._table is None:
            raise ConfigurationError("a select can only be read; name a table to write to")
        return self._table

    def _holds_halves(self) -> bool:
        """Whether the table that is there has float16 columns only, so that float32 would be rounded."""
        if self._seen is None and (self._table is None or not self.exists()):
            return False
        relation, rows = self._look()
        types = {relation.columns[name].type for name in rows.vectors.values()} - {"bit", "sparsevec"}
        return types == {"halfvec"}

    def _own_table(self) -> TableName:
        """The table as a whole, which names may be swapped of.

        Raises:
            UnsupportedError: for a collection in LangChain's shared table.
        """
        name = self._writable()
        with self._server.raw() as connection:
            place = frameworks.locate(connection, name, self._layout)
            table = place.table if place else frameworks.physical_name(name, self._layout)
            if table.name == frameworks.EMBEDDINGS and self._layout in (None, "langchain"):
                raise UnsupportedError(
                    f"{self.url}: LangChain keeps all collections in one table, which cannot be replaced; "
                    "write to a new collection name"
                )
            return publish.qualified(connection, table)

    def _table_writer(self) -> TableWriter:
        if self._writer is None:
            try:
                relation, rows = self._look(afresh=True)
            except NotFoundError as error:
                raise NotFoundError(f"{self.url} was not prepared; call prepare() first") from error
            if not relation.is_table:
                raise SchemaMismatchError(f"{self.name} is a view; write to a table")
            made = bool(relation.memo and relation.memo.made)
            self._writer = TableWriter(self._server, relation, rows, made=made, straight=self._straight)
        return self._writer

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
