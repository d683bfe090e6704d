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

from vecferry.core.moved import moved
from vecferry.errors import MissingDependencyError

try:
    import psycopg as _psycopg
    import sqlalchemy as _sqlalchemy
except ImportError:
    raise MissingDependencyError("pgvector:", "pgvector") from None

from vecferry.stores.pgvector.store import PgVectorStore

__all__ = ["PgVectorStore"]
del _psycopg, _sqlalchemy

__getattr__ = moved(
    __name__,
    {
        "Filled": "vecferry.contrib.fill_postgres:Filled",
        "fill_column": "vecferry.contrib.fill_postgres:fill_column",
        "PgVectorCollection": "vecferry.contrib.sqlalchemy_models:PgVectorCollection",
    },
)
