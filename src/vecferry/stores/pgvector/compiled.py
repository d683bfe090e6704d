"""SQLAlchemy's expressions as text for psycopg.

COPY takes no server-side parameters; psycopg quotes them on the client, so they stay parameters here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


def as_sql(clause: Any) -> tuple[sql.SQL, dict[str, Any]]:
    """The statement, and its parameters by name, ready for psycopg."""
    compiled = clause.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    values = dict(compiled.construct_params() or {})
    for name, process in getattr(compiled, "_bind_processors", {}).items():
        if callable(process) and name in values:
            values[name] = process(values[name])
    return sql.SQL(str(compiled)), values


def rebound(expression: Any, clause: sa.FromClause) -> Any:
    """The expression with columns of a table of the same name (a model's) replaced by those of ``clause``.

    Otherwise SQLAlchemy would add the model's table to the FROM list a second time.
    """
    from sqlalchemy.sql import visitors

    def replace(element: Any, **_: Any) -> Any:
        if isinstance(element, sa.Column) and element.name in clause.c:
            return sa.type_coerce(clause.c[element.name], element.type)
        return None

    return visitors.replacement_traverse(expression, {}, replace)
