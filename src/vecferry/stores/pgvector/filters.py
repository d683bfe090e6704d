"""`where` as SQL: the portable filters (`vecferry.model.filters`), SQLAlchemy expressions and SQL text.

A portable filter means the same as in `vecferry.model.matches`: a key that is missing matches only
``$ne``, ``$nin`` and ``$exists: false``; a list matches when one of its items does; true is not 1; values
of different types do not compare. Every condition is true or false, never NULL, so ``$not`` is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.selectable import AliasedReturnsRows

from vecferry.model import ENVELOPE, to_json
from vecferry.model.filters import FilterVisitor, WhyNothing, tree_of
from vecferry.stores.pgvector.introspection import PgColumn, as_sql
from vecferry.stores.pgvector.table import Table

_SIGNS = {"$eq": "==", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "$eq": lambda a, b: a == b,
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}
# ISO forms as `vecferry.model.typed` writes them; checked before the cast, which would fail on others.
_ISO: dict[type, tuple[str, Any]] = {
    datetime: (r"^\d{4}-\d\d-\d\dT\d\d:\d\d", sa.DateTime()),
    date: (r"^\d{4}-\d\d-\d\d$", sa.Date()),
    time: (r"^\d\d:\d\d", sa.Time()),
    Decimal: (r"^-?(\d+(\.\d+)?([eE][+-]?\d+)?|[iI]nf(inity)?)$", sa.Numeric()),
}
_NUMBERS = ("decimal", "int", "float")
_PYTHON: dict[str, tuple[type, ...]] = {
    "int": (int, float, Decimal),
    "float": (int, float, Decimal),
    "decimal": (int, float, Decimal),
    "str": (str,),
    "uuid": (UUID,),
    "bytes": (bytes,),
    "datetime": (datetime,),
    "date": (date,),
    "time": (time,),
    "bool": (bool,),
}


_LITERALS = frozenset({"uuid", "date", "datetime", "time", "decimal"})
"""Types whose values an expression writes as ``uuid('…')``, ``date('…')`` …"""


def conditions(table: Table, where: Any, params: dict[str, Any]) -> list[Any]:
    """The conditions of a filter in any of its forms, or of a list of filters that all hold.

    Raises:
        ConfigurationError: if it is malformed.
    """
    if where is None:
        return []
    if isinstance(where, list):
        return [one for part in where for one in conditions(table, part, params)]
    if hasattr(where, "__clause_element__"):  # an attribute of a model, such as a boolean or a hybrid
        where = where.__clause_element__()
    if isinstance(where, str):
        where = sa.text(where)
    if isinstance(where, sa.ClauseElement):
        bound: Any = where.params(params) if params else where
        # SQLAlchemy joins text as it is: an OR in it would swallow the conditions beside it.
        bound = Grouping(bound) if isinstance(bound, sa.TextClause) else bound
        return [rebound(bound, table.clause)]
    return [_AsSql(table).visit(tree_of(where))]


# -- portable filters -----------------------------------------------------------------------------


class _AsSql(FilterVisitor[Any]):
    """Every condition is true or false, never NULL."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.document = _as_jsonb(table, table.json) if table.json else None

    def all_of(self, parts: list[Any]) -> Any:
        return sa.and_(sa.true(), *parts)

    def any_of(self, parts: list[Any]) -> Any:
        return sa.or_(sa.false(), *parts)

    def negation(self, part: Any) -> Any:
        return sa.not_(part)

    def compare(self, key: str, operator: str, operand: Any) -> Any:
        return self.any_of(self._places(key, operator, operand))

    def exists(self, key: str, wanted: bool) -> Any:
        found = self.any_of(self._places(key, "$exists", True))
        return found if wanted else sa.not_(found)

    def _places(self, key: str, name: str, operand: Any) -> list[Any]:
        """The condition on the column of the key, and on the json column."""
        column, found = _column_of(self.table, key), []
        if column is not None:
            found.append(_in_column(self.table.clause.c[column.name], column, name, operand))
        if self.document is not None:
            found.append(_in_json(self.document, key, name, operand))
        return found


def _column_of(table: Table, key: str) -> PgColumn | None:
    """The column that a key names: of metadata, or in a table of the application, of its key or text."""
    if key in table.typed:
        return table.columns[table.typed[key]]
    if table.made or table.by_place or key not in (*table.id, *table.key, table.text):
        return None
    return table.columns[key]


def _as_jsonb(table: Table, name: str) -> Any:
    column = table.clause.c[name]
    return sa.type_coerce(column, JSONB) if table.columns[name].type == "jsonb" else sa.cast(column, JSONB)


def _in_column(clause: Any, column: PgColumn, name: str, operand: Any) -> Any:
    if name == "$exists":
        return clause.is_not(None)
    if column.is_json:
        return _in_value(
            sa.type_coerce(clause, JSONB) if column.type == "jsonb" else sa.cast(clause, JSONB),
            name,
            operand,
        )
    if column.category == "A":
        return _in_array(clause, name, operand)
    operand = _comparable(operand, column)
    if operand is None:
        return sa.false()
    if (
        column.value_type == "str"
    ):  # by code point, as Python compares; enumerations and others by their text
        clause = sa.cast(clause, sa.Text) if column.type not in ("text", "varchar") else clause
        clause = clause if name == "$eq" else clause.collate("C")
    if column.type in ("float4", "float8", "numeric"):  # to Postgres NaN is a number, and the largest
        nan = sa.cast(
            sa.literal("NaN", sa.Text()), sa.Numeric() if column.type == "numeric" else sa.Double()
        )
        return sa.func.coalesce(
            sa.and_(_COMPARE[name](clause, sa.literal(operand)), clause != nan), sa.false()
        )
    return sa.func.coalesce(_COMPARE[name](clause, sa.literal(operand)), sa.false())


def _comparable(operand: Any, column: PgColumn) -> Any:
    """The operand in the type of the column's values; ``None`` if it compares with none of them.

    UUIDs, dates and times compare with columns of text by their text, a date with moments as its midnight.
    """
    kind = column.value_type
    if kind == "str" and isinstance(operand, UUID | date | time):
        return str(operand) if isinstance(operand, UUID) else operand.isoformat()
    if kind == "datetime" and type(operand) is date:
        zone = UTC if column.type == "timestamptz" else None
        operand = datetime(operand.year, operand.month, operand.day, tzinfo=zone)
    kinds = _PYTHON.get(kind, (str,))
    if not isinstance(operand, kinds) or (isinstance(operand, bool) and bool not in kinds):
        return None
    if kind == "date" and isinstance(operand, datetime):
        return None
    if isinstance(operand, datetime) and (operand.tzinfo is None) != (column.type == "timestamp"):
        return None
    return operand


def _in_array(clause: Any, name: str, operand: Any) -> Any:
    if isinstance(operand, list | tuple):
        return sa.func.coalesce(sa.func.to_jsonb(clause) == _json(list(operand)), sa.false())
    return _in_value(sa.func.to_jsonb(clause, type_=JSONB), name, operand)


def _in_json(document: Any, key: str, name: str, operand: Any) -> Any:
    """At a key, or where there is none of that very name, at a dotted path."""
    whole = _Place(document, [key])
    if "." not in key:
        if name == "$eq" and type(operand) in (str, int, bool):
            return whole.equals(operand)
        return _in_value(whole.value, name, operand, whole)
    nested = _Place(document, key.split("."))
    return sa.case(
        (whole.value.is_not(None), _in_value(whole.value, name, operand, whole)),
        else_=_in_value(nested.value, name, operand, nested),
    )


# -- filters that cannot match ---------------------------------------------------------------------


class WhyNoRow(WhyNothing):
    """Looks at the columns, and where a key has none, at the types of its JSON values."""

    def __init__(self, connection: psycopg.Connection[Any], table: Table) -> None:
        self.connection, self.table = connection, table

    def why(self, key: str, options: Sequence[Any]) -> str:
        column = _column_of(self.table, key)
        if column is None:
            if not self.table.json:
                known = ", ".join(sorted(self.table.typed)) or "none"
                return f"no column is called {key!r}; there are {known}"
            return self._in_json(key, options)
        if column.name in self.table.ours or column.is_json or column.category == "A":
            return ""
        if not options or any(_comparable(option, column) is not None for option in options):
            return ""
        kind, first = column.value_type, options[0]
        hint = f"; write {kind}({first!r}) in an expression" if kind in _LITERALS else ""
        said = f"column {column.name!r} is {column.sql_type}, which never compares with {first!r}"
        return said + (hint if isinstance(first, str) else "")

    def _in_json(self, key: str, options: Sequence[Any]) -> str:
        document = _as_jsonb(self.table, self.table.json or "")
        value = sa.func.coalesce(_Place(document, [key]).value, _Place(document, key.split(".")).value)
        kind = sa.func.jsonb_typeof(value)
        query = sa.select(kind).where(value.is_not(None), *self.table.own_rows()).group_by(kind)
        kinds = {row[0] for row in self.connection.execute(*as_sql(query))}
        if not kinds:
            return f"no record has the key {key!r}"
        if not options or "array" in kinds or any(kinds & _kinds_of(option) for option in options):
            return ""
        return f"{key!r} holds {' or '.join(sorted(kinds))}, which never compares with {options[0]!r}"


def _kinds_of(operand: Any) -> set[str]:
    """The types of JSON values that an operand may compare with."""
    if operand is None:
        return {"null"}
    if isinstance(operand, bool):
        return {"boolean"}
    if isinstance(operand, int | float | Decimal):
        return {"number", "string"}  # a number beyond JSON is kept as text
    if isinstance(operand, list | tuple | set):
        return {"array", "object"}
    return {"object"} if isinstance(operand, Mapping) else {"string"}


# -- values in JSON -------------------------------------------------------------------------------


class _Place:
    """A value in a metadata document, and what the envelope says of its type (`vecferry.model.typed`)."""

    def __init__(self, document: Any, steps: list[str]) -> None:
        self.document, self.steps = document, steps

    @property
    def value(self) -> Any:
        """The value under keys of nested objects, NULL if there is none."""
        found = self.document
        for step in self.steps:
            found = sa.func.jsonb_extract_path(found, step, type_=JSONB)
        return found

    def equals(self, operand: str | int | bool) -> Any:
        """In a form that a GIN index on the column serves."""
        same = _path(self.document, f"$.{json.dumps(self.steps[0])}", "==", operand)
        if isinstance(operand, bool):
            return same
        if isinstance(operand, str):
            return sa.and_(same, sa.not_(self.typed()))
        return sa.or_(same, sa.and_(self.typed(*_NUMBERS), _in_iso(self.value, "$eq", Decimal(operand))))

    def typed(self, *names: str) -> Any:
        """Whether the value is a text in place of another type (of one of ``names``)."""
        pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in self.steps)
        path = f'$.{json.dumps(ENVELOPE)}."types".{json.dumps(pointer)}'
        wanted = " || ".join(f'@ == "{name}"' for name in names) or '@ != "tuple" && @ != "set"'
        return _exists(self.document, f"{path} ? ({wanted})")


def _path(document: Any, path: str, sign: str, operand: Any) -> Any:
    literal = str(operand) if isinstance(operand, Decimal) else json.dumps(operand)
    return _exists(document, f"{path} ? (@ {sign} {literal})")


def _exists(document: Any, path: str) -> Any:
    return sa.func.coalesce(document.op("@?")(sa.cast(path, _JsonPath())), sa.false())


def _in_value(value: Any, name: str, operand: Any, place: _Place | None = None) -> Any:
    """The comparison on a jsonb value that may be NULL (missing)."""
    if name == "$exists":
        return value.is_not(None)
    if isinstance(operand, int | float | Decimal) and not isinstance(operand, bool):
        return _in_number(value, name, operand, place)
    if isinstance(operand, tuple(_ISO)):
        kind = next(k for k in _ISO if isinstance(operand, k))
        compared = _in_iso(value, name, operand)
        return sa.and_(compared, place.typed(kind.__name__.lower()) if place else sa.true())
    if isinstance(operand, UUID | bytes):
        text = str(operand) if isinstance(operand, UUID) else to_json({"v": operand})[0]["v"]
        typed = place.typed(type(operand).__name__.lower()) if place else sa.true()
        return sa.and_(_path(value, "$", _SIGNS[name], text), typed)
    if operand is None or isinstance(operand, bool):
        return (
            _path(value, "$", _SIGNS[name], operand) if operand is not None or name == "$eq" else sa.false()
        )
    if isinstance(operand, str):
        return sa.and_(
            _path(value, "$", _SIGNS[name], operand), sa.not_(place.typed()) if place else sa.true()
        )
    if name != "$eq":
        return sa.false()
    return sa.func.coalesce(value == _json(to_json({"v": operand})[0]["v"]), sa.false())


def _in_number(value: Any, name: str, operand: int | float | Decimal, place: _Place | None) -> Any:
    """Among numbers, and among those that JSON holds as text: decimals, and what is beyond 64 bits."""
    number = operand if isinstance(operand, Decimal) else Decimal(repr(operand))
    if number.is_nan():
        return sa.false()
    if number.is_finite():
        same = _path(value, "$", _SIGNS[name], number)
    else:  # JSON has no infinity: every number is on this side of it
        passes = name in (("$lt", "$lte") if number > 0 else ("$gt", "$gte"))
        same = _exists(value, '$ ? (@.type() == "number")') if passes else sa.false()
    if place is None:
        return same
    return sa.or_(same, sa.and_(place.typed(*_NUMBERS), _in_iso(value, name, number)))


def _in_iso(value: Any, name: str, operand: Any) -> Any:
    """Dates, times and decimals lie in JSON as text: cast where it is one."""
    kind = next(k for k in _ISO if isinstance(operand, k))
    pattern, type_ = _ISO[kind]
    text = value.op("#>>")(sa.literal_column("'{}'::text[]"))
    if kind is datetime:
        aware = operand.tzinfo is not None
        type_ = sa.DateTime(timezone=aware)
        pattern += r".*(Z|[+-]\d\d:\d\d)$" if aware else r"[0-9:.]*$"
    is_text = sa.func.jsonb_typeof(value) == "string"
    compared = _COMPARE[name](sa.cast(text, type_), sa.literal(operand, type_))
    matching = sa.and_(is_text, text.op("~")(pattern))
    return sa.func.coalesce(sa.case((matching, compared), else_=sa.false()), sa.false())


def _json(value: Any) -> Any:
    return sa.cast(sa.literal(json.dumps(value), sa.Text()), JSONB)


class _JsonPath(sa.types.UserDefinedType[Any]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSONPATH"


# -- the application's own expressions ------------------------------------------------------------


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
