"""Postgres's errors, translated in one table.

SQLSTATE codes: PostgreSQL documentation, appendix A. A failed *connect* carries no code (libpq reports a
text only), so there, and only there, the server's English text is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy.exc

from vecferry.errors import (
    FatalStoreError,
    NotFoundError,
    RejectedRecord,
    RetryableError,
    SchemaMismatchError,
    TimedOutError,
    VecferryError,
)

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
