"""Postgres with pgvector: any table, at the speed of binary COPY.

    pgvector://user@host:port/db#schema.table      any server; the password from PGPASSWORD or ~/.pgpass
    pgvector:FOLDER#table                          a real Postgres in that folder, started on demand

| to know | look at |
|---|---|
| which server, its errors | `server`, `embedded` |
| what is there, and which column holds what | `introspection`, `mapping`, `frameworks`, `table` |
| out | `reading`, `searching`, `filters`, `tracking` |
| in | `ddl`, `writing`, `indexes`, `publish` |
| the bytes of COPY, both ways | `wire` |
"""

from importlib import import_module
from typing import Any

from vecferry.errors import MissingDependencyError

try:
    import psycopg as _psycopg
    import sqlalchemy as _sqlalchemy
except ImportError:
    raise MissingDependencyError("pgvector:", "pgvector") from None

from vecferry.stores.pgvector.store import PgVectorStore

__all__ = ["PgVectorStore"]
del _psycopg, _sqlalchemy

_ABOVE = {
    "Filled": "vecferry.contrib.fill_postgres",
    "fill_column": "vecferry.contrib.fill_postgres",
    "PgVectorCollection": "vecferry.contrib.sqlalchemy_models",
}


def __getattr__(name: str) -> Any:
    """What stands above this room, by the name under which it was known here."""
    if name not in _ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ABOVE[name]), name)
