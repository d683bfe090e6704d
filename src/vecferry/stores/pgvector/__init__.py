"""Postgres with pgvector: any table, at the speed of binary COPY.

    pgvector://user@host:port/db#schema.table      any server; the password from PGPASSWORD or ~/.pgpass
    pgvector:FOLDER#table                          a real Postgres in that folder, started on demand

The rooms: `address` and `embedded` (which server), `reflect`, `columns`, `mapping` and `memo` (what is
there), `reading`, `copy_read`, `decode`, `partitions` and `snapshot` (out), `ddl`, `row_writer`, `encode`,
`copy_write` and `indexes` (in), `publish`, `searching`, `filters`, `fill`, `tracking`, `errors`.
"""

from vecferry.errors import MissingDependencyError

try:
    import psycopg as _psycopg
    import sqlalchemy as _sqlalchemy
except ImportError:
    raise MissingDependencyError("pgvector:", "pgvector") from None

from vecferry.contrib.fill_postgres import Filled, fill_column
from vecferry.stores.pgvector.models import PgVectorCollection
from vecferry.stores.pgvector.store import PgVectorStore

__all__ = ["Filled", "PgVectorCollection", "PgVectorStore", "fill_column"]
del _psycopg, _sqlalchemy
