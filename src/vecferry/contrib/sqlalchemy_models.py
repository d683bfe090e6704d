"""`PgVectorCollection`: a table opened through the SQLAlchemy model that the application already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from vecferry.connecting import Collection
from vecferry.contrib.fill_postgres import Filled, fill_column
from vecferry.errors import ConfigurationError
from vecferry.ports import Embedder, StoreURL
from vecferry.stores.pgvector.options import names
from vecferry.stores.pgvector.server import LIBPQ_OPTIONS, Server, TableName
from vecferry.stores.pgvector.store import PgVectorStore


class PgVectorCollection(Collection):
    """A `Collection` on a table of Postgres."""

    store: PgVectorStore

    @classmethod
    def from_model(
        cls,
        model: Any,
        *,
        vector: str | Sequence[str] | Mapping[str, str] | None = None,
        text: str | None = None,
        url: str | None = None,
        engine: sa.Engine | None = None,
        **options: Any,
    ) -> PgVectorCollection:
        """The table of an ORM class (or an `sqlalchemy.Table`).

        Args:
            vector: attributes of vector columns; one is the unnamed field, several keep their names.
            text: the attribute of the text.
            url: the database, ``pgvector://user@host/db`` or ``pgvector:FOLDER``; or
            engine: the application's SQLAlchemy engine.
            options: further `Options`; ``id``, ``key`` and ``columns`` name attributes.

        Raises:
            ConfigurationError: without ``url`` and ``engine``, or for an attribute that the model has not.
        """
        table = sa.inspect(model).local_table if not isinstance(model, sa.Table) else model
        if isinstance(vector, Mapping):
            options["vector"] = {field: _column(model, name) for field, name in vector.items()}
        elif vector is not None:
            options["vector"] = [_column(model, name) for name in names(vector)]
        for option, value in {
            "text": text,
            **{k: options.get(k) for k in ("id", "key", "columns")},
        }.items():
            if value is not None:
                columns = [_column(model, name) for name in names(value)]
                options[option] = columns[0] if option == "text" else columns
        name = TableName(table.name, table.schema)
        server = _server(url, engine, name, options)
        options["where"] = [_own_rows(model), options.get("where")]
        store = PgVectorStore(server, name, **options)
        return cls(store, store.url)

    def fill(self, column: str, embedder: Embedder, **options: Any) -> Filled:
        """Fill a vector column in place; see `vecferry.stores.pgvector.fill_column`."""
        return fill_column(self.store, column, embedder, **options)


def _own_rows(model: Any) -> Any:
    """What tells the rows of a class from those of others that share its table."""
    mapper = None if isinstance(model, sa.Table) else sa.inspect(model)
    if mapper is None or not mapper.single or mapper.polymorphic_on is None:
        return None
    return mapper.polymorphic_on.in_([m.polymorphic_identity for m in mapper.self_and_descendants])


def _server(url: str | None, engine: sa.Engine | None, name: TableName, options: dict[str, Any]) -> Server:
    if engine is not None:
        return Server(f"{engine.url.render_as_string(hide_password=True)}#{name}", engine=engine)
    if url is None:
        raise ConfigurationError("from_model needs a database: pass url='pgvector://…' or engine=…")
    parsed = StoreURL.parse(url)
    libpq = {key: parsed.options[key] for key in LIBPQ_OPTIONS & parsed.options.keys()}
    options.update({key: value for key, value in parsed.options.items() if key not in libpq})
    return Server.from_url(parsed, libpq)


def _column(model: Any, name: str) -> str:
    """The column's name of an attribute, which may differ."""
    if isinstance(model, sa.Table):
        known = {key: column.name for key, column in model.columns.items()}
    else:
        attributes = sa.inspect(model).column_attrs
        known = {a.key: a.columns[0].name for a in attributes if isinstance(a.columns[0], sa.Column)}
    if name not in known:
        raise ConfigurationError(
            f"{getattr(model, '__name__', model)} has no column {name!r}; it has {sorted(known)}"
        )
    return str(known[name])
