"""Which server, which table on it, and what its errors mean.

SQLSTATE codes: PostgreSQL documentation, appendix A. A failed *connect* carries no code (libpq reports a
text only), so there, and only there, the server's English text is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
import sqlalchemy.exc
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine

from vecferry.errors import (
    ConfigurationError,
    FatalStoreError,
    NotFoundError,
    RejectedRecord,
    RetryableError,
    SchemaMismatchError,
    TimedOutError,
    VecferryError,
)
from vecferry.ports import StoreURL
from vecferry.stores.pgvector.embedded import server_uri, session_options

EXTENSION_HINT = (
    "the extension is missing: run CREATE EXTENSION vector as a superuser "
    "(after installing the server's pgvector package)"
)

Make = Callable[[str], VecferryError]

_TABLE: dict[str, tuple[Make, str]] = {
    "08": (RetryableError, "the connection was lost; try again"),
    "57P01": (RetryableError, "the server ended the connection; try again"),
    "57P02": (RetryableError, "the server crashed; try again"),
    "57P03": (RetryableError, "the server is starting up; try again"),
    "57P05": (RetryableError, "the session was idle for too long; try again"),
    "57014": (TimedOutError, "statement_timeout; use smaller batches or raise it"),
    "25P02": (RetryableError, "the transaction was aborted; try again"),
    "25P03": (RetryableError, "idle_in_transaction_session_timeout; try again"),
    "25P04": (RetryableError, "transaction_timeout; try again"),
    "40": (RetryableError, "a conflict with another transaction; try again"),
    "55P03": (RetryableError, "another session holds a lock on the table; try again"),
    "55006": (RetryableError, "the object is in use; try again"),
    "53300": (RetryableError, "too many connections; try again or raise max_connections"),
    "53": (FatalStoreError, "the server lacks resources; make room and run again"),
    "58": (FatalStoreError, "the server met a system error; see its log"),
    "XX": (FatalStoreError, "the server met an internal error; see its log"),
    "28": (FatalStoreError, "check user and password (PGPASSWORD, ~/.pgpass or the URL)"),
    "3D000": (NotFoundError, "create the database first"),
    "3F000": (NotFoundError, "create the schema first"),
    "42P01": (NotFoundError, "check the table's name and schema"),
    "42703": (SchemaMismatchError, "the table has changed or the mapping names a wrong column"),
    "42704": (FatalStoreError, EXTENSION_HINT),
    "42501": (FatalStoreError, "ask the owner to GRANT this privilege"),
    "42": (SchemaMismatchError, "check the mapping, the filter or the select"),
    "2BP01": (FatalStoreError, "drop what depends on it first, such as a view, or keep it"),
    "0A000": (FatalStoreError, "the server does not support this"),
    "25006": (FatalStoreError, "the server or the transaction is read-only"),
    "54": (RejectedRecord, "beyond a limit of the server"),
    "22": (RejectedRecord, "the server refuses a value"),
    "23": (RejectedRecord, "a constraint of the table refuses a record"),
}
_FATAL_CONNECT = re.compile(
    r"authentication failed|no password supplied|role .* does not exist|pg_hba", re.I
)
_NO_DATABASE = re.compile(r"database .* does not exist", re.I)
_BUSY = re.compile(r"starting up|shutting down|too many clients|remaining connection slots", re.I)


def translate(error: BaseException, where: str) -> VecferryError | None:
    """The error of ours for a psycopg or SQLAlchemy one; ``None`` for anything else."""
    if isinstance(error, sqlalchemy.exc.DBAPIError) and isinstance(error.orig, psycopg.Error):
        return translate(error.orig, where)
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return RetryableError(f"{where}: no free connection in the pool; try again")
    if not isinstance(error, psycopg.Error):
        return None
    text = _first_line(error)
    state = error.sqlstate
    if state is None:
        return _without_state(error, text, where)
    found = _TABLE.get(state) or _TABLE.get(state[:2])
    make, hint = found or (FatalStoreError, "see the server's log")
    return make(f"{where}: {text} ({state}); {hint}")


def _without_state(error: psycopg.Error, text: str, where: str) -> VecferryError:
    if _NO_DATABASE.search(text):
        return NotFoundError(f"{where}: {text}; create the database first")
    if _FATAL_CONNECT.search(text):
        return FatalStoreError(f"{where}: {text}; {_TABLE['28'][1]}")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or _BUSY.search(text):
        return RetryableError(f"{where}: {text}; is the server running and reachable?")
    return FatalStoreError(f"{where}: {text}")


def _first_line(error: psycopg.Error) -> str:
    message = error.diag.message_primary or str(error) or type(error).__name__
    return " ".join(message.split())[:300]


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise ours instead of Postgres's inside the block. ``where`` names the table, without secrets."""
    try:
        yield
    except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError) as error:
        ours = translate(error, where)
        if ours is None:
            raise
        raise ours from error


_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')
_MAX_NAME = 63  # bytes; Postgres cuts longer names silently

LIBPQ_OPTIONS = frozenset(
    {
        *("host", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation", "channel_binding"),
        *("connect_timeout", "application_name", "target_session_attrs", "passfile", "service", "options"),
    }
)


@dataclass(frozen=True, slots=True)
class TableName:
    """A table, in a schema or (``schema=None``) found through the search path."""

    name: str
    schema: str | None = None

    @classmethod
    def parse(cls, text: str) -> TableName:
        """``table``, ``schema.table``, or either part in double quotes. Case is kept as written.

        Raises:
            ConfigurationError: for anything else, and for names Postgres would cut.
        """
        parts = [m[1].replace('""', '"') if m[1] else m[2] for m in _PART.finditer(text)]
        if text != ".".join(m[0] for m in _PART.finditer(text)) or len(parts) not in (1, 2):
            raise ConfigurationError(f'{text!r} is not a table name; write table, schema.table or "A"."b"')
        for part in parts:
            if len(part.encode()) > _MAX_NAME or "\0" in part:
                raise ConfigurationError(f"{part!r} is too long for Postgres: {_MAX_NAME} bytes at most")
        return cls(parts[-1], parts[0] if len(parts) == 2 else None)

    @property
    def quoted(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name) if self.schema else sql.Identifier(self.name)

    def sibling(self, name: str) -> TableName:
        """Another table in the same schema."""
        return TableName(name, self.schema)

    def __str__(self) -> str:
        plain = re.compile(r"[^\".]+")
        parts = [self.schema, self.name] if self.schema else [self.name]
        return ".".join(p if plain.fullmatch(p) else '"' + p.replace('"', '""') + '"' for p in parts)


def _settle(connection: psycopg.Connection[Any]) -> bool:
    """Transactions and UTF-8 on a connection of the application; returns whether it was in autocommit."""
    autocommit = connection.autocommit
    if autocommit:
        connection.autocommit = False
    if connection.info.encoding != "utf-8":
        connection.execute("SET client_encoding TO 'UTF8'")
        connection.commit()
    return autocommit


class Server:
    """Connections to one database. Made lazily; `close` may be called at any time and undone by use.

    Args:
        url: for display, without secrets.
        folder: of the embedded server, or
        parameters: for libpq, or
        engine: an SQLAlchemy engine of the application (an async one too), which stays the application's.
    """

    def __init__(
        self,
        url: str,
        *,
        folder: str | None = None,
        parameters: dict[str, Any] | None = None,
        engine: sa.Engine | AsyncEngine | None = None,
    ) -> None:
        self.url = url
        self._folder, self._parameters = folder, parameters or {}
        self._given: sa.Engine | None = None
        self._engine: sa.Engine | None = None
        if engine is None:
            return
        if isinstance(engine, AsyncEngine):
            engine = engine.sync_engine
        if engine.dialect.driver == "psycopg" and not engine.dialect.is_async:
            self._given = self._engine = engine
        else:  # psycopg2, asyncpg: the same address by the driver that we need
            address = engine.url.set(drivername="postgresql")
            self._parameters = {"conninfo": address.render_as_string(hide_password=False)}

    @classmethod
    def from_url(cls, url: StoreURL, libpq: dict[str, Any]) -> Server:
        if not url.netloc:
            if not url.path:
                raise ConfigurationError(
                    "pgvector: needs a folder (pgvector:./kb#table) or a server (//host/db)"
                )
            return cls(str(url), folder=url.path)
        known = {"host": url.host or None, "port": url.port, "user": url.user, "password": url.password}
        parameters = {
            k: v for k, v in {**known, "dbname": url.path or None, **libpq}.items() if v is not None
        }
        return cls(str(url), parameters=parameters)

    def __repr__(self) -> str:
        return f"<Server {self.url}>"

    @property
    def local(self) -> bool:
        """Whether the server is on this machine, as far as the address tells."""
        host = str(self._parameters.get("host", ""))
        return self._folder is not None or host in ("localhost", "127.0.0.1", "::1") or host.startswith("/")

    @property
    def engine(self) -> sa.Engine:
        if self._engine is None:
            # A sound default for a tool: few idle connections, many in a burst of parallel readers.
            self._engine = sa.create_engine(
                "postgresql+psycopg://",
                creator=self.connect,
                pool_size=2,
                max_overflow=62,
                pool_pre_ping=True,
            )
        return self._engine

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection outside the pool."""
        if self._given is not None:
            borrowed = self._given.raw_connection()  # as the application makes them: connect_args, events
            connection = borrowed.driver_connection
            assert isinstance(connection, psycopg.Connection)
            borrowed.detach()
            _settle(connection)
            return connection
        parameters = dict(self._parameters)
        if self._folder is not None:
            parameters["conninfo"] = server_uri(self._folder)
            given = parameters.get("options", "")
            parameters["options"] = f"{given} {session_options(self._folder)}".strip()
        parameters.setdefault("application_name", "vecferry")
        # Rows are read and written as UTF-8 bytes, whatever encoding the database has.
        return psycopg.connect(**parameters, client_encoding="UTF8")

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction on a pooled connection; errors come out translated."""
        with translated(self.url), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def raw(self) -> Iterator[psycopg.Connection[Any]]:
        """A pooled psycopg connection; thrown away when the block fails."""
        with translated(self.url):
            borrowed = self.engine.raw_connection()
            connection = borrowed.driver_connection
            assert isinstance(connection, psycopg.Connection)
            try:
                autocommit = _settle(connection)
                yield connection
                if autocommit:  # as the application's engine has it
                    connection.rollback()
                    connection.autocommit = True
            except BaseException:
                borrowed.invalidate()
                raise
            finally:
                borrowed.close()

    def close(self) -> None:
        """Close the idle connections. An engine of the application stays open."""
        if self._engine is not None and self._engine is not self._given:
            self._engine.dispose()
            self._engine = None
