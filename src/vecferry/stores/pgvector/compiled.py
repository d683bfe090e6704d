"""SQLAlchemy's expressions as text for psycopg.

COPY takes no server-side parameters; psycopg quotes them on the client, so they stay parameters here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import AliasedReturnsRows

from vecferry.errors import ConfigurationError

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


def as_sql(clause: Any) -> tuple[sql.SQL, dict[str, Any]]:
    """The statement, and its parameters by name, ready for psycopg."""
    compiled = clause.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    try:
        values = dict(compiled.construct_params() or {})
    except sa.exc.InvalidRequestError as error:  # ":name" in a text, and no value for it
        reason = str(error).split(" (Background")[0]
        raise ConfigurationError(f"{reason}; give it in params={{…}}, or write \\: for a colon") from None
    for name, process in getattr(compiled, "_bind_processors", {}).items():
        if callable(process) and name in values:
            values[name] = process(values[name])
    return sql.SQL(str(compiled)), values


def rebound(expression: Any, clause: sa.FromClause) -> Any:
    """The expression with a model's table, and its columns, replaced by ``clause``, also in subqueries.

    Otherwise SQLAlchemy would add the model's table to the FROM list a second time. Other tables, and
    aliases of this one, stay: they are other rows. For a view or a select, which a model names otherwise,
    it is the tables that the expression speaks of outside its subqueries.
    """
    columns = (part for part in visitors.iterate(expression) if isinstance(part, sa.Column))
    own = {str(clause.name)} & set(map(_table_name, columns)) if hasattr(clause, "name") else set()
    mine = own or _tables_beside(expression)

    def replace(element: Any, **_: Any) -> Any:
        if isinstance(element, AliasedReturnsRows):
            return element
        if isinstance(element, sa.Table) and element.name in mine:
            return clause
        of_mine = isinstance(element, sa.Column) and _table_name(element) in mine
        if of_mine and element.name in clause.c:
            return sa.type_coerce(clause.c[element.name], element.type)
        return None

    return visitors.replacement_traverse(expression, {}, replace)


def _tables_beside(expression: Any) -> set[str]:
    """The tables whose columns stand in the expression itself, not in its subqueries."""
    found, left = set(), [expression]
    while left:
        element = left.pop()
        if isinstance(element, sa.Column):
            found |= {_table_name(element)} - {""}
        elif not isinstance(element, sa.SelectBase):
            left.extend(element.get_children())
    return found


def _table_name(column: Any) -> str:
    return column.table.name if isinstance(column.table, sa.Table) else ""
