"""`PgVectorStore`: a table (view, select) of vectors in Postgres, in both directions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from vecferry.errors import (
    ConfigurationError,
    NotFoundError,
    PlanError,
    SchemaMismatchError,
    UnsupportedError,
    VecferryError,
)
from vecferry.model import (
    CollectionSchema,
    DType,
    Kind,
    Loss,
    Metric,
    RecordBatch,
    RecordId,
    VectorRecord,
    Where,
)
from vecferry.model.filters import tree_of
from vecferry.ports import (
    Capabilities,
    Changes,
    Cursor,
    Fields,
    Kept,
    Partition,
    StoreURL,
    Version,
    WriteMode,
    WriteReceipt,
)
from vecferry.stores.pgvector import ddl, filters, frameworks, indexes, publish, searching, shape
from vecferry.stores.pgvector.introspection import as_sql, look_at_texts, reflect_select
from vecferry.stores.pgvector.mapping import map_table, open_place
from vecferry.stores.pgvector.options import Options
from vecferry.stores.pgvector.reading import RowReader, Snapshot, begin_read
from vecferry.stores.pgvector.server import LIBPQ_OPTIONS, Server, TableName
from vecferry.stores.pgvector.table import (
    PLACE,
    VENDOR,
    Table,
    advance_sequence,
    check_unique,
    find_partitions,
    known_columns,
    measured,
    rows_of_others,
)
from vecferry.stores.pgvector.tracking import Journal
from vecferry.stores.pgvector.writing import RowEncoder, TableWriter

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
        options: see `Options`; given as keyword arguments too.
    """

    def __init__(
        self,
        server: Server | sa.Engine | AsyncEngine,
        table: TableName | str | None,
        options: Options | None = None,
        **more: Any,
    ) -> None:
        if not isinstance(server, Server):
            shown = server.url.render_as_string(hide_password=True)
            server = Server(shown, engine=server)
        self.options = replace(options or Options(), **more)
        self._table = TableName.parse(table) if isinstance(table, str) else table
        self._server = server
        self.url = server.url
        self._snapshot = Snapshot(server)
        self._seen: Table | None = None
        self._writer: TableWriter | None = None
        self._straight = self._key_checked = False
        self._replacement: PgVectorStore | None = None
        self._known: set[str] = set()
        self._live: TableName | None = None  # of a shadow: the table in whose place it will be
        self._tag = ""

    @classmethod
    def from_url(
        cls, url: StoreURL, *, engine: sa.Engine | AsyncEngine | None = None, **options: Any
    ) -> PgVectorStore:
        """``pgvector://user@host:port/db#schema.table`` or ``pgvector:FOLDER#table``."""
        libpq = {name: options.pop(name) for name in LIBPQ_OPTIONS & options.keys()}
        server = Server(str(url), engine=engine) if engine is not None else Server.from_url(url, libpq)
        if not url.fragment and "select" not in options:
            raise ConfigurationError(f"{url} names no table; write it behind a #: {url}#documents")
        table = TableName.parse(url.fragment) if url.fragment else None
        return cls(server, table, Options(**options))

    def __repr__(self) -> str:
        return f"<PgVectorStore {self.url}>"

    # -- source -------------------------------------------------------------------------------

    def describe(self) -> CollectionSchema:
        table = self._look()
        schema, losses = table.schema(self.name), []
        if table.fixed:
            with self._server.raw() as connection:
                others = rows_of_others(connection, table)
            if others:
                detail = f"rows of other collections in {table.shown} stay where they are"
                losses = [Loss(kind="rows", detail=detail, count=others, reversible=True, where="source")]
        losses += frameworks.find_differing(self._server, table)
        columns = {"of": self.url, "columns": sorted(table.typed)}
        changes = {
            "count": self.count(),
            "losses": (*schema.losses, *losses),
            "settings": {**schema.settings, VENDOR: columns},
        }
        return schema.model_copy(update=changes)

    def count(self) -> int:
        table = self._look()
        query = sa.select(sa.func.count()).select_from(table.clause).where(*self._conditions(None))
        statement, values = as_sql(query)
        with self._server.raw() as connection:
            row = connection.execute(statement, values).fetchone()
        return int(row[0]) if row else 0

    def partitions(self, want: int) -> Sequence[Partition]:
        table = self._look(afresh=True)
        self._check_key(table)
        conditions, total = self._conditions(None), self.count()
        with self._server.raw() as connection:
            begin_read(connection, self._snapshot.name())
            return find_partitions(connection, table, want, conditions, total)

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Cursor | None = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        where: Where | Any = None,
    ) -> Iterator[RecordBatch]:
        table = self._look()
        self._check_key(table)
        low, high = partition.bounds if partition and partition.bounds else (None, None)
        low = low if after is None else after
        reader = RowReader(table, fields)
        conditions = [*self._conditions(where), *table.in_range(low, high)]
        select = reader.select().where(*conditions)
        if table.key != (PLACE,) or self._conditions(where):
            select = select.order_by(*table.ordered())  # rows lie in the order of their places
        snapshot = self._snapshot.name() if partition else None
        with self._server.raw() as connection:
            begin_read(connection, snapshot)
            yield from reader.stream(connection, select, batch_size)

    # -- sink ---------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        able = _CAPABILITIES
        if self.options.metadata == "columns":
            able = replace(able, metadata_types=_JSON | ddl.VALUE_TYPES.keys())
        if self._layout is not None:
            able = replace(
                able,
                kinds=frozenset({Kind.DENSE}),
                dtypes=able.dtypes - {DType.BIT},
                several_fields=False,
                missing_vectors=self._layout != "langchain-v2",
            )
        have = self._existing()
        if have is not None and not have.coded_ids and len(have.id) == 1:
            uuids = have.columns[have.id[0]].id_kind == "uuid"
            able = replace(able, id_types=frozenset({"uuid"})) if uuids else able
        types = (
            {have.columns[n].type for n in have.vectors.values()} - {"bit", "sparsevec"} if have else set()
        )
        if have is not None and any(have.columns[n].is_multi for n in have.vectors.values()):
            able = replace(able, kinds=able.kinds | {Kind.MULTI})
        halves = self.options.dtype == "float16" or types == {"halfvec"}
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
        self._known = known_columns(schema, self.url)
        with self._server.raw() as connection:
            connection.autocommit = False
            ddl.ensure_extension(connection)
            if mode is WriteMode.REPLACE:
                publish.drop(connection, table)
            like = self._to_be_like(connection) if mode is WriteMode.REPLACE else None
            if like is not None:
                shape.clone(connection, like, table, schema)
                self._straight = True
            else:
                self._straight = ddl.prepare(connection, table, schema, mode, self.options, self.url)
            if self._live is not None and mode is not WriteMode.RESUME:
                publish.note_shadow(connection, table, mode, self._tag)
            connection.commit()

    def _to_be_like(self, connection: Any) -> Table | None:
        """The table that this shadow replaces, if the application gave it anything."""
        if self._live is None:
            return None
        place = frameworks.locate(connection, self._live, None)
        if place is None or place.collection is not None:
            return None
        live = map_table(
            open_place(connection, place, self._live), replace(self.options, layout=None), place
        )
        more = shape.has_more(connection, live)
        if more and self.options.layout not in (None, live.layout):
            raise SchemaMismatchError(
                f"{self._live} is a {live.layout} table that has more than vecferry would give it; "
                f"leave layout={self.options.layout!r} out, or write to a new table"
            )
        return live if more else None

    def write(self, batch: RecordBatch) -> WriteReceipt:
        if self._replacement is not None:
            return self._replacement.write(batch)
        self._snapshot.release()  # what this store reads next includes what it wrote
        if self._live is not None:
            self._make_room(batch)
        return self._table_writer().write(batch)

    def _make_room(self, batch: RecordBatch) -> None:
        """A table that is replaced may have had no place for texts, or for metadata."""
        table = self._table_writer().table
        texts = table.text is None and any(text is not None for text in batch.texts or ())
        room = table.json is not None or not batch.metadata
        missing = {} if room else {key for row in batch.metadata or () for key in row} - table.typed.keys()
        if texts or missing:
            with self._server.raw() as connection:
                ddl.add_columns(connection, table, text=texts, json=bool(missing))
                connection.commit()
            self._close_writer()

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
        table = self._look(afresh=True)
        if wrote:
            advance_sequence(self._server, table)
        self._forget()
        if self._live is None:
            self._build_indexes()
        else:  # nobody searches it yet: the proof reads meanwhile, and `settle` or `publish` waits
            again = PgVectorStore(self._server, table.name, self.options)
            again._live = self._live
            indexes.BUILDS.start(self._build_key, again._build_indexes)

    def _build_indexes(self, *, analyze: bool = True) -> None:
        """Those that are missing. Idempotent."""
        table = self._look(afresh=True)
        options = self._with_indexes_of_live(table)
        schema = table.schema(self.name).model_copy(update={"count": self.count()})
        indexes.build(self._server, table, schema, options, shadow=self._live is not None, analyze=analyze)
        self._forget()

    @property
    def _build_key(self) -> str:
        return f"{self._server.url} {self._table}"

    def settle(self, seconds: float | None = None) -> float | None:
        """Wait until the indexes of a table under construction are complete."""
        begun = time.monotonic()
        if not indexes.BUILDS.wait(self._build_key, seconds):
            return None
        if self._live is not None and not indexes.BUILDS.done(self._build_key):  # by a run that ended
            self._build_indexes(analyze=False)
        return time.monotonic() - begun

    def _with_indexes_of_live(self, table: Table) -> Options:
        """The indexes of the table that is replaced, and how to build those that do not fit any more."""
        if self._live is None or table.metadata is None or not table.metadata.like:
            return self.options
        with self._server.raw() as connection:
            place = frameworks.locate(connection, self._live, None)
            if place is None:
                return self.options
            live = map_table(
                open_place(connection, place, self._live), replace(self.options, layout=None), place
            )
            anew = shape.add_indexes(connection, live, table, table.schema(self.name))
            connection.commit()
        if not anew or self.options.index:
            return self.options
        return replace(self.options, index=next(iter(anew.values())))

    def writers(self, want: int) -> Sequence[TableWriter]:
        """Further writers of the prepared table, each with a connection of its own."""
        if self._replacement is not None:
            return self._replacement.writers(want)
        table = self._table_writer().table
        if self._live is not None and (table.text is None or table.json is None):
            return []  # a place for texts or metadata may have to be made
        more = [TableWriter(self._server, table, self._known, straight=self._straight) for _ in range(want)]
        self._snapshot.release()
        return more

    def stamp(self) -> dict[str, Any]:
        """Count and newest transaction of the rows: whoever adds, changes or deletes one changes it."""
        if self._table is not None and not self.exists():
            return {"kind": "store", "absent": True}
        table = self._look()
        newest: list[Any] = []
        if table.relation.is_table:
            newest = [sa.func.max(sa.literal_column("xmin::text::bigint"))]
        query = sa.select(sa.func.count(), *newest).select_from(table.clause)
        with self._server.raw() as connection:
            statement, values = as_sql(query.where(*self._conditions(None)))
            row: Sequence[Any] = connection.execute(statement, values).fetchone() or (0, None)
            connection.commit()
        return {"kind": "store", "count": row[0], **({"transaction": row[1]} if newest else {})}

    def close(self) -> None:
        self._close_writer()
        self._snapshot.release()
        if self._live is None:  # a shadow shares the connections of its table
            self._server.close()

    # -- abilities ----------------------------------------------------------------------------

    def fetch(self, ids: Sequence[RecordId], *, fields: Fields = Fields.ALL) -> RecordBatch:
        table = self._look()
        return searching.fetch(self._server, table, list(ids), fields, self._conditions(None))

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
        indexes.BUILDS.wait(self._build_key)  # what is searched is the index
        table = self._look()
        mine = self.options
        options = replace(
            mine,
            ef_search=mine.ef_search if ef_search is None else ef_search,
            probes=mine.probes if probes is None else probes,
            iterative_scan=mine.iterative_scan if iterative_scan is None else iterative_scan,
        )
        schema = table.schema(self.name)
        query = searching.Query(vector, k, field, self._conditions(where), options)
        return searching.search(self._server, table, schema, query)

    def search_exact(
        self, vectors: Sequence[Any], k: int = 10, *, field: str = ""
    ) -> list[list[VectorRecord]]:
        """See `vecferry.ports.ExactSearchable`: every row is looked at."""
        table = self._look()
        schema, conditions = table.schema(self.name), self._conditions(None)
        queries = [searching.Query(v, k, field, conditions, self.options, exact=True) for v in vectors]
        return [searching.search(self._server, table, schema, query) for query in queries]

    def delete(self, ids: Sequence[RecordId]) -> int:
        self._writable()
        table = self._look()
        self._snapshot.release()
        return searching.delete(self._server, table, list(ids))

    def stages(self, mode: WriteMode) -> bool:
        """A new table is built beside its name, too, and one that another job publishes first stays."""
        if mode is not WriteMode.CREATE or self._layout == "langchain" or self._table is None:
            return mode is WriteMode.REPLACE
        return not self.exists() or publish.is_begun(self._server, self._own_table())

    def shadow(self, tag: str) -> PgVectorStore:
        own = self._own_table()
        shadow = PgVectorStore(self._server, publish.shadow_name(own, tag), self.options)
        shadow._live, shadow._tag = own, tag
        return shadow

    def publish(self, tag: str) -> Version:
        self._forget()
        shadow = self.shadow(tag)
        if shadow.exists():
            shadow.settle()
        version = publish.publish(self._server, self._own_table(), tag)
        advance_sequence(self._server, self._look())
        return version

    def discard(self, tag: str) -> None:
        with suppress(VecferryError):
            indexes.BUILDS.wait(self.shadow(tag)._build_key)
        publish.discard(self._server, self._own_table(), tag)

    def versions(self) -> list[Version]:
        return publish.versions(self._server, self._own_table())

    def rollback(self) -> Version:
        self._forget()
        return publish.rollback(self._server, self._own_table())

    def roll_to(self, tag: str) -> Version:
        self._forget()
        return publish.roll_to(self._server, self._own_table(), tag)

    def prune(self, keep: int = 0) -> list[str]:
        return publish.prune(self._server, self._own_table(), keep)

    def check_filter(self, where: Where | Any) -> None:
        """See `vecferry.ports.ChecksFilters`; expressions and SQL text are taken at their word."""
        if not isinstance(where, Mapping):
            return
        table = self._look()
        with self._server.raw() as connection:
            reason = filters.WhyNoRow(connection, table).visit(tree_of(where))
            connection.commit()
        if reason:
            raise PlanError(f"{self.url}: the filter matches nothing: {reason}; correct where=")

    def foresee(self, batch: RecordBatch) -> Iterable[Loss]:
        """What an existing table of the application will hold in another form."""
        table = self._existing()
        return [] if table is None else RowEncoder(table).changed(batch)

    def kept(self, schema: CollectionSchema) -> Kept:
        """What an upsert does not touch: columns of the application that the records do not bring."""
        table = self._existing()
        if table is None:
            return Kept()
        known = known_columns(schema, self.url)
        own = {key for key, name in table.typed.items() if table.keeps(name, known) or name in table.id}
        ours = table.ours
        text = table.text is not None and table.text not in ours and table.layout == "plain"
        return Kept(text=text, metadata=own.__contains__)

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
        return Journal(self._server, self._look())

    @property
    def _layout(self) -> str | None:
        return self.options.layout if self.options.layout != "plain" else None

    @property
    def name(self) -> str:
        return str(self._table) if self._table else "select"

    def _look(self, *, afresh: bool = False) -> Table:
        """What is there, and how records lie in it; looked up once and again after writes of structure."""
        if self._seen is None or afresh:
            with self._server.raw() as connection:
                if self._table is None:
                    place, relation = (
                        None,
                        reflect_select(connection, self.options.select, self.options.params),
                    )
                else:
                    place = frameworks.locate(connection, self._table, self._layout)
                    relation = open_place(connection, place, self._table)
                relation = look_at_texts(connection, relation, self.options.vector_columns.values())
                found = measured(connection, map_table(relation, self.options, place))
                self._seen = found.in_order_of_places() if self._live is not None else found
        return self._seen

    def _forget(self) -> None:
        self._seen, self._key_checked = None, False
        self._close_writer()
        self._snapshot.release()

    def _conditions(self, where: Where | Any) -> list[Any]:
        """The conditions of the layout, of the options, and of this call."""
        table, params = self._look(), self.options.params
        base = self.options.where if self._table is not None else None
        return [
            *table.own_rows(),
            *filters.conditions(table, base, params),
            *filters.conditions(table, where, params),
        ]

    def _check_key(self, table: Table) -> None:
        """Pages by a key that is not unique would skip rows; where no index promises it, it is counted."""
        if self._key_checked or table.key_is_unique:
            return
        with self._server.raw() as connection:
            check_unique(connection, table, self.name)
        self._key_checked = True

    def _writable(self) -> TableName:
        if self._table is None:
            raise ConfigurationError("a select can only be read; name a table to write to")
        return self._table

    def _existing(self) -> Table | None:
        """The table that is there, if one is."""
        if self._seen is None and (self._table is None or not self.exists()):
            return None
        return self._look()

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
                table = self._look(afresh=True)
            except NotFoundError as error:
                raise NotFoundError(f"{self.url} was not prepared; call prepare() first") from error
            if not table.relation.is_table:
                raise SchemaMismatchError(f"{self.name} is a view; write to a table")
            self._writer = TableWriter(self._server, table, self._known, straight=self._straight)
        return self._writer

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
