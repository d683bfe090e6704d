"""`where` as SQL: the portable filters (`vecferry.model.filters`), SQLAlchemy expressions and SQL text.

A portable filter means the same as in `vecferry.model.matches`: a key that is missing matches only
``$ne``, ``$nin`` and ``$exists: false``; a list matches when one of its items does; true is not 1; values
of different types do not compare. Every condition is true or false, never NULL, so ``$not`` is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

from vecferry.errors import ConfigurationError
from vecferry.model import ENVELOPE, Where, check_where, to_json
from vecferry.stores.pgvector.introspection import PgColumn, as_sql
from vecferry.stores.pgvector.table import Table

_SIGNS = {"$eq": "==", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_NEGATED = {"$ne": "$eq", "$nin": "$in"}
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


_READ: dict[str, Callable[[str], Any]] = {
    "uuid": UUID,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time.fromisoformat,
}


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
    return [_portable(table, check_where(where))]


# -- portable filters -----------------------------------------------------------------------------


def _portable(table: Table, where: Where) -> Any:
    parts = [_one(table, key, condition) for key, condition in where.items()]
    return sa.and_(sa.true(), *parts)


def _one(table: Table, key: str, condition: Any) -> Any:
    if key == "$and":
        return sa.and_(sa.true(), *(_portable(table, part) for part in condition))
    if key == "$or":
        return sa.or_(sa.false(), *(_portable(table, part) for part in condition))
    if key == "$not":
        return sa.not_(_portable(table, condition))
    operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
    return sa.and_(sa.true(), *(_compare(table, key, name, value) for name, value in operators.items()))


def _compare(table: Table, key: str, name: str, operand: Any) -> Any:
    if name in _NEGATED:
        return sa.not_(_compare(table, key, _NEGATED[name], operand))
    if name == "$in":
        if not isinstance(operand, list | tuple | set | frozenset):
            raise ConfigurationError(f"$in of {key!r} takes a list")
        return sa.or_(sa.false(), *(_compare(table, key, "$eq", option) for option in operand))
    parts = []
    column = _column_of(table, key)
    if column is not None:
        parts.append(_in_column(table.clause.c[column.name], column, name, operand))
    if table.json:
        parts.append(_in_json(_as_jsonb(table, table.json), key, name, operand))
    if not parts:  # no such key anywhere
        return sa.true() if (name, bool(operand)) == ("$exists", False) else sa.false()
    if name == "$exists" and not operand:
        return sa.and_(*parts)
    return sa.or_(*parts)


def _column_of(table: Table, key: str) -> PgColumn | None:
    """The column a key of a filter names: metadata with a column of its own, or a column of the key."""
    if key in table.typed:
        return table.columns[table.typed[key]]
    own = key in table.columns and key in (*table.id, *table.key) and not table.by_place
    return table.columns[key] if own and not table.coded_ids else None


def _as_jsonb(table: Table, name: str) -> Any:
    column = table.clause.c[name]
    return sa.type_coerce(column, JSONB) if table.columns[name].type == "jsonb" else sa.cast(column, JSONB)


def _in_column(clause: Any, column: PgColumn, name: str, operand: Any) -> Any:
    if name == "$exists":
        return clause.is_not(None) if operand else clause.is_(None)
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

    UUIDs, dates and times are also given as text, as they are written on a command line, and compare with
    columns of text by their text.
    """
    kind = column.value_type
    if kind == "str" and isinstance(operand, UUID | date | time):
        return str(operand) if isinstance(operand, UUID) else operand.isoformat()
    if isinstance(operand, str) and kind in _READ:
        try:
            operand = _READ[kind](operand)
        except ValueError:
            return None
        if column.type == "timestamptz" and operand.tzinfo is None:
            operand = operand.replace(tzinfo=UTC)
    elif kind == "datetime" and type(operand) is date:
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


def why_nothing_matches(connection: psycopg.Connection[Any], table: Table, where: Where) -> str:
    """Why no row at all can pass a filter; empty if one may."""
    for key, condition in where.items():
        if key == "$not":
            continue
        if key == "$and":
            reasons = [why_nothing_matches(connection, table, part) for part in condition]
            reason = next(filter(None, reasons), "")
        elif key == "$or":
            reasons = [why_nothing_matches(connection, table, part) for part in condition]
            reason = reasons[0] if reasons and all(reasons) else ""
        else:
            operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
            found = (_why(connection, table, key, name, value) for name, value in operators.items())
            reason = next(filter(None, found), "")
        if reason:
            return reason
    return ""


def _why(connection: psycopg.Connection[Any], table: Table, key: str, name: str, operand: Any) -> str:
    if name in _NEGATED or (name == "$exists" and not operand):
        return ""
    options = list(operand) if name == "$in" and isinstance(operand, list | tuple | set) else [operand]
    if not options:
        return f"no value is in the empty list of {key!r}"
    column = _column_of(table, key)
    if column is not None and column.name not in table.ours:
        if name == "$exists" or column.is_json or column.category == "A":
            return ""
        if any(_comparable(option, column) is not None for option in options):
            return ""
        return f"column {column.name!r} is {column.sql_type}, which never compares with {options[0]!r}"
    if column is not None:
        return ""
    if not table.json:
        return f"no column is called {key!r}; there are {', '.join(sorted(table.typed)) or 'none'}"
    return _why_not_in_json(connection, table, key, name, options)


def _why_not_in_json(
    connection: psycopg.Connection[Any], table: Table, key: str, name: str, options: list[Any]
) -> str:
    document = _as_jsonb(table, table.json or "")
    value = sa.func.coalesce(_Place(document, [key]).value, _Place(document, key.split(".")).value)
    kind = sa.func.jsonb_typeof(value)
    query = sa.select(kind).where(value.is_not(None), *table.own_rows()).group_by(kind)
    kinds = {row[0] for row in connection.execute(*as_sql(query))}
    if not kinds:
        return f"no record has the key {key!r}"
    if name == "$exists" or "array" in kinds or any(kinds & _kinds_of(option) for option in options):
        return ""
    return (
        f"{key!r} holds JSON of type {', '.join(sorted(kinds))}, which never compares with {options[0]!r}"
    )


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
        return value.is_not(None) if operand else value.is_(None)
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
