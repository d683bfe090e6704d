"""`where` as SQL: the portable filters (`vecferry.model.filters`), SQLAlchemy expressions and SQL text.

A portable filter means the same as in `vecferry.model.matches`: a key that is missing matches only
``$ne``, ``$nin`` and ``$exists: false``; a list matches when one of its items does; true is not 1; values
of different types do not compare. Every condition is true or false, never NULL, so ``$not`` is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import Grouping

from vecferry.errors import ConfigurationError, SchemaMismatchError
from vecferry.model import ENVELOPE, Where, check_where, to_json
from vecferry.stores.pgvector.columns import PgColumn, RowMap
from vecferry.stores.pgvector.compiled import as_sql, rebound
from vecferry.stores.pgvector.partitions import ordered
from vecferry.stores.pgvector.reflect import Relation

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


def fixed(relation: Relation, rows: RowMap) -> list[Any]:
    """What is the same in all rows of this collection, as conditions."""
    return [relation.clause.c[name] == value for name, value in rows.fixed.items()]


def conditions(relation: Relation, rows: RowMap, where: Any, params: dict[str, Any]) -> list[Any]:
    """The conditions of a filter in any of its forms, or of a list of filters that all hold.

    Raises:
        ConfigurationError: if it is malformed.
    """
    if where is None:
        return []
    if isinstance(where, list):
        return [one for part in where for one in conditions(relation, rows, part, params)]
    if hasattr(where, "__clause_element__"):  # an attribute of a model, such as a boolean or a hybrid
        where = where.__clause_element__()
    if isinstance(where, str):
        where = sa.text(where)
    if isinstance(where, sa.ClauseElement):
        bound: Any = where.params(params) if params else where
        # SQLAlchemy joins text as it is: an OR in it would swallow the conditions beside it.
        bound = Grouping(bound) if isinstance(bound, sa.TextClause) else bound
        return [rebound(bound, relation.clause)]
    return [_portable(relation, rows, check_where(where))]


def check_unique(connection: psycopg.Connection[Any], relation: Relation, rows: RowMap, name: str) -> None:
    """Whether the key is really one, for views and selects, where nothing promises it.

    Raises:
        SchemaMismatchError: naming a key that stands twice or is NULL.
    """
    key = ordered(relation, rows)
    nulls = sa.or_(*(column.is_(None) for column in key))
    found = sa.select(*key).group_by(*key).having(sa.or_(sa.func.count() > 1, nulls)).limit(1)
    row = connection.execute(*as_sql(found)).fetchone()
    connection.rollback()
    if row is not None:
        raise SchemaMismatchError(
            f"{name}: the key ({', '.join(rows.key)}) is not unique or NULL, e.g. {row!r}; "
            "name the columns of a unique key with key='a,b'"
        )


# -- portable filters -----------------------------------------------------------------------------


def _portable(relation: Relation, rows: RowMap, where: Where) -> Any:
    parts = [_one(relation, rows, key, condition) for key, condition in where.items()]
    return sa.and_(sa.true(), *parts)


def _one(relation: Relation, rows: RowMap, key: str, condition: Any) -> Any:
    if key == "$and":
        return sa.and_(sa.true(), *(_portable(relation, rows, part) for part in condition))
    if key == "$or":
        return sa.or_(sa.false(), *(_portable(relation, rows, part) for part in condition))
    if key == "$not":
        return sa.not_(_portable(relation, rows, condition))
    operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
    return sa.and_(
        sa.true(), *(_compare(relation, rows, key, name, value) for name, value in operators.items())
    )


def _compare(relation: Relation, rows: RowMap, key: str, name: str, operand: Any) -> Any:
    if name in _NEGATED:
        return sa.not_(_compare(relation, rows, key, _NEGATED[name], operand))
    if name == "$in":
        if not isinstance(operand, list | tuple | set | frozenset):
            raise ConfigurationError(f"$in of {key!r} takes a list")
        return sa.or_(sa.false(), *(_compare(relation, rows, key, "$eq", option) for option in operand))
    parts = []
    if key in rows.typed:
        column = relation.columns[rows.typed[key]]
        parts.append(_in_column(relation.clause.c[column.name], column, name, operand))
    if rows.json:
        parts.append(_in_json(_as_jsonb(relation, rows.json), key, name, operand))
    if not parts:  # no such key anywhere
        return sa.true() if (name, bool(operand)) == ("$exists", False) else sa.false()
    if name == "$exists" and not operand:
        return sa.and_(*parts)
    return sa.or_(*parts)


def _as_jsonb(relation: Relation, name: str) -> Any:
    column = relation.clause.c[name]
    return (
        sa.type_coerce(column, JSONB) if relation.columns[name].type == "jsonb" else sa.cast(column, JSONB)
    )


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
    kinds = _PYTHON.get(column.value_type, (str,))
    if not isinstance(operand, kinds) or (isinstance(operand, bool) and bool not in kinds):
        return sa.false()
    if isinstance(operand, datetime) and (operand.tzinfo is None) != (column.type == "timestamp"):
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
