"""`where`: one small filter language for every store.

A filter is a mapping from a metadata key to a value (equality) or to operators, in the style that
Chroma, Pinecone and MongoDB share::

    {"lang": "en", "page": {"$gte": 3, "$lt": 10}, "$or": [{"topic": "search"}, {"tags": "python"}]}

Operators: ``$eq $ne $gt $gte $lt $lte $in $nin $exists``, and ``$and $or $not`` between filters. A key
may be a dotted path into nested objects. A list value matches when one of its items does; a key that is
missing matches only ``$ne``, ``$nin`` and ``$exists: false``; true is not 1; values of different types do
not compare. `parse_where` reads the same thing written as an expression: ``lang == 'en' and page >= 3``.

`tree_of` makes a tree of it, with six kinds of nodes, and `FilterVisitor` walks the tree: `matches` is one
visitor, and each store that compiles filters to its own language is another.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any, Generic, TypeAlias, TypeVar
from uuid import UUID

from vecferry.errors import ConfigurationError
from vecferry.model.typed import type_name

Where: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

_MISSING = object()
_NEGATED = {"$ne": "$eq", "$nin": "$in"}
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
OPERATORS = frozenset({*COMPARISONS, *_NEGATED, "$in", "$exists"})

# -- the tree -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold; true without any."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of the parts holds; false without any."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold. ``$ne`` and ``$nin`` are negations, too."""

    part: Node


@dataclass(frozen=True, slots=True)
class Compare:
    """The value at ``key``, or an item of it, compares so with ``operand``: see `COMPARISONS`."""

    key: str
    operator: str
    operand: Any


@dataclass(frozen=True, slots=True)
class In:
    """The value at ``key``, or an item of it, equals one of the options."""

    key: str
    options: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """Whether there is a value at ``key``, be it null."""

    key: str
    wanted: bool


Node: TypeAlias = And | Or | Not | Compare | In | Exists


def tree_of(where: Any) -> Node:
    """The tree of a filter.

    Raises:
        ConfigurationError: naming the operator or the shape that is wrong.
    """
    if not isinstance(where, Mapping):
        raise ConfigurationError(
            f"a filter is a mapping such as {{'lang': 'en'}}, not {type(where).__name__}; "
            "write an expression with parse_where(\"lang == 'en'\")"
        )
    return _joined([_node(key, condition) for key, condition in where.items()])


def _joined(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _node(key: str, condition: Any) -> Node:
    if key in ("$and", "$or"):
        if not isinstance(condition, list | tuple):
            raise ConfigurationError(f"{key} takes a list of filters")
        parts = tuple(tree_of(part) for part in condition)
        return And(parts) if key == "$and" else Or(parts)
    if key == "$not":
        return Not(tree_of(condition))
    if key.startswith("$"):
        raise ConfigurationError(f"unknown operator {key}; there are $and, $or and $not")
    if not isinstance(condition, Mapping):
        return Compare(key, "$eq", condition)
    unknown = [name for name in condition if name not in OPERATORS]
    if unknown or not condition:
        raise ConfigurationError(
            f"unknown operator {unknown[0] if unknown else condition!r} for {key!r}; "
            f"there are {' '.join(sorted(OPERATORS))}"
        )
    return _joined([_leaf(key, name, operand) for name, operand in condition.items()])


def _leaf(key: str, name: str, operand: Any) -> Node:
    if name in _NEGATED:
        return Not(_leaf(key, _NEGATED[name], operand))
    if name == "$exists":
        return Exists(key, bool(operand))
    if name == "$in":
        if not isinstance(operand, list | tuple | set | frozenset):
            raise ConfigurationError(f"$in of {key!r} takes a list")
        return In(key, tuple(operand))
    return Compare(key, name, operand)


def check_where(where: Any) -> Where:
    """Return the filter if it is well-formed.

    Raises:
        ConfigurationError: naming the operator or the shape that is wrong.
    """
    tree_of(where)
    checked: Where = where
    return checked


class FilterVisitor(Generic[T]):
    """Makes something of a filter, from the leaves up: a predicate, a query, a reason.

    A subclass says what the six nodes become; `one_of` need not be said, being an ``$eq`` with each option.
    """

    def visit(self, node: Node) -> T:
        """What becomes of the node."""
        match node:
            case And(parts):
                return self.all_of([self.visit(part) for part in parts])
            case Or(parts):
                return self.any_of([self.visit(part) for part in parts])
            case Not(part):
                return self.negation(self.visit(part))
            case Compare(key, name, operand):
                return self.compare(key, name, operand)
            case In(key, options):
                return self.one_of(key, options)
            case Exists(key, wanted):
                return self.exists(key, wanted)

    def all_of(self, parts: list[T]) -> T:
        raise NotImplementedError

    def any_of(self, parts: list[T]) -> T:
        raise NotImplementedError

    def negation(self, part: T) -> T:
        raise NotImplementedError

    def compare(self, key: str, operator: str, operand: Any) -> T:
        raise NotImplementedError

    def one_of(self, key: str, options: Sequence[Any]) -> T:
        return self.any_of([self.compare(key, "$eq", option) for option in options])

    def exists(self, key: str, wanted: bool) -> T:
        raise NotImplementedError


# -- asking one record --------------------------------------------------------------------------

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]


class _Predicates(FilterVisitor[Predicate]):
    def all_of(self, parts: list[Predicate]) -> Predicate:
        return lambda metadata: all(part(metadata) for part in parts)

    def any_of(self, parts: list[Predicate]) -> Predicate:
        return lambda metadata: any(part(metadata) for part in parts)

    def negation(self, part: Predicate) -> Predicate:
        return lambda metadata: not part(metadata)

    def compare(self, key: str, operator: str, operand: Any) -> Predicate:
        test = COMPARISONS[operator]

        def holds(metadata: Mapping[str, Any]) -> bool:
            value = lookup(metadata, key)
            if value is _MISSING:
                return False
            if _safely(test, value, operand):
                return True
            return isinstance(value, list | tuple | set) and any(
                _safely(test, one, operand) for one in value
            )

        return holds

    def exists(self, key: str, wanted: bool) -> Predicate:
        return lambda metadata: (lookup(metadata, key) is not _MISSING) is wanted


def predicate(where: Where) -> Predicate:
    """A function that tells whether a record's metadata passes the filter.

    Raises:
        ConfigurationError: if the filter is malformed, or one of another store.
    """
    return _Predicates().visit(tree_of(where))


def matches(where: Where, metadata: Mapping[str, Any]) -> bool:
    """Whether one record's metadata passes the filter; for many records make a `predicate` once."""
    return predicate(where)(metadata)


def lookup(metadata: Mapping[str, Any], key: str, default: Any = _MISSING) -> Any:
    """The value at a key or a dotted path."""
    if key in metadata:
        return metadata[key]
    value: Any = metadata
    for step in key.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return default
        value = value[step]
    return value


def _safely(test: Callable[[Any, Any], bool], value: Any, operand: Any) -> bool:
    sides = isinstance(value, bool), isinstance(operand, bool)
    if sides[0] is not sides[1] and not isinstance(operand, list | tuple | set | frozenset):
        return False  # True is not 1 in a filter
    try:
        return bool(test(value, operand))
    except (TypeError, ArithmeticError):  # a Decimal with NaN
        return False


# -- filters that cannot match ------------------------------------------------------------------

Types: TypeAlias = Mapping[str, Collection[str]]
"""Metadata key → the names (see `type_name`) of the types that its values have."""

_GROUPS = {"int": "a number", "float": "a number", "decimal": "a number"}
_ANYTHING = frozenset({"list", "tuple", "set", "object"})
_READ: dict[str, Callable[[str], Any]] = {
    "uuid": UUID,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
}


class WhyNothing(FilterVisitor[str]):
    """Why no record can pass a filter; the empty text if one may.

    A subclass says what it knows of a key.
    """

    def why(self, key: str, options: Sequence[Any]) -> str:
        """Why no value at ``key`` compares with one of the options; without options, why there is none."""
        raise NotImplementedError

    def all_of(self, parts: list[str]) -> str:
        return next(filter(None, parts), "")

    def any_of(self, parts: list[str]) -> str:
        return next(iter(parts), "an alternative without any part is never true") if all(parts) else ""

    def negation(self, part: str) -> str:
        return ""  # what nothing passes, all pass when it is denied

    def compare(self, key: str, operator: str, operand: Any) -> str:
        return self.why(key, [operand])

    def one_of(self, key: str, options: Sequence[Any]) -> str:
        return self.why(key, options) if options else f"no value of {key!r} is in an empty list"

    def exists(self, key: str, wanted: bool) -> str:
        return self.why(key, []) if wanted else ""


class _WhyByTypes(WhyNothing):
    def __init__(self, types: Types, complete: bool) -> None:
        self.types, self.complete = types, complete

    def why(self, key: str, options: Sequence[Any]) -> str:
        found = _types_at(self.types, key)
        if found is None:
            known = ", ".join(sorted(self.types)) or "none"
            return f"no record has the key {key!r}; there are {known}" if self.complete else ""
        if not options or any(_comparable(option, found) is not _MISSING for option in options):
            return ""
        kinds = " or ".join(sorted(found))
        literal = next((kind for kind in sorted(found) if kind in _READ), None)
        hint = f"; write {literal}('…') in an expression" if literal and isinstance(options[0], str) else ""
        operand = f"{options[0]!r} ({type_name(options[0])})"
        return f"{key!r} holds {kinds}, which never compares with {operand}{hint}"


def why_nothing_matches(where: Where, types: Types, *, complete: bool = False) -> str:
    """Why no record can pass the filter, as far as the types of its keys tell; empty if one may.

    Args:
        types: of the values of each key that is known.
        complete: whether all keys are known, so that another one cannot match.
    """
    return _WhyByTypes(types, complete).visit(tree_of(where))


class _Fitted(FilterVisitor[Node]):
    def __init__(self, types: Types) -> None:
        self.types = types

    def all_of(self, parts: list[Node]) -> Node:
        return And(tuple(parts))

    def any_of(self, parts: list[Node]) -> Node:
        return Or(tuple(parts))

    def negation(self, part: Node) -> Node:
        return Not(part)

    def compare(self, key: str, operator: str, operand: Any) -> Node:
        return Compare(key, operator, self._fitted(key, operand))

    def one_of(self, key: str, options: Sequence[Any]) -> Node:
        return In(key, tuple(self._fitted(key, option) for option in options))

    def exists(self, key: str, wanted: bool) -> Node:
        return Exists(key, wanted)

    def _fitted(self, key: str, operand: Any) -> Any:
        found = _comparable(operand, _types_at(self.types, key) or _ANYTHING)
        return operand if found is _MISSING else found


def fit_where(where: Where, types: Types) -> Where:
    """The filter with operands in the type of the values they are compared with, where that is sure.

    UUIDs, dates and times are compared with values that are texts by their text, a date with datetimes as
    its midnight in UTC.
    """
    return where_of(_Fitted(types).visit(tree_of(where)))


def where_of(node: Node) -> Where:
    """The filter of a tree: the inverse of `tree_of`."""
    match node:
        case And(parts):
            return {"$and": [where_of(part) for part in parts]}
        case Or(parts):
            return {"$or": [where_of(part) for part in parts]}
        case Not(part):
            return {"$not": where_of(part)}
        case Compare(key, name, operand):
            return {key: {name: operand}}
        case In(key, options):
            return {key: {"$in": list(options)}}
        case Exists(key, wanted):
            return {key: {"$exists": wanted}}


def _types_at(types: Types, key: str) -> Collection[str] | None:
    """The types at a key or a dotted path; anything may lie within a key that is known."""
    if key in types:
        return types[key]
    root = key.split(".", maxsplit=1)[0]
    return _ANYTHING if root != key and root in types else None


def _comparable(operand: Any, types: Collection[str]) -> Any:
    """The operand as it compares with values of these types; `_MISSING` if it does with none."""
    name = type_name(operand)
    group = _GROUPS.get(name, name)
    if any(kind in _ANYTHING or _GROUPS.get(kind, kind) == group for kind in types):
        return operand
    if "datetime" in types and type(operand) is date:
        return datetime(operand.year, operand.month, operand.day, tzinfo=UTC)
    if "str" in types and isinstance(operand, UUID | date | time):
        return str(operand) if isinstance(operand, UUID) else operand.isoformat()
    return _MISSING


# -- expressions --------------------------------------------------------------------------------

_AST_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "$eq",
    ast.NotEq: "$ne",
    ast.Gt: "$gt",
    ast.GtE: "$gte",
    ast.Lt: "$lt",
    ast.LtE: "$lte",
    ast.In: "$in",
    ast.NotIn: "$nin",
}


def parse_where(expression: str) -> Where:
    """Read ``key OP literal`` terms joined by ``and``, ``or``, ``not`` and parentheses.

    Literals are those of Python, and ``date('2026-01-31')``, ``datetime('2026-01-31T12:00:00Z')``,
    ``time('12:00')``, ``uuid('…')`` and ``decimal('1.50')``.

    >>> parse_where("lang == 'en' and page >= 3")
    {'$and': [{'lang': {'$eq': 'en'}}, {'page': {'$gte': 3}}]}
    >>> parse_where("day < date('2026-01-31')")
    {'day': {'$lt': datetime.date(2026, 1, 31)}}

    Raises:
        ConfigurationError: if the expression is anything else. Nothing is ever evaluated.
    """
    try:
        return check_where(_parse(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, TypeError, InvalidOperation, RecursionError, MemoryError) as error:
        raise ConfigurationError(
            f"cannot read the filter {expression!r}: {error}; "
            "write for example \"lang == 'en' and page >= 3\""
        ) from None


def _parse(node: ast.expr) -> Where:
    if isinstance(node, ast.BoolOp):
        return {"$and" if isinstance(node.op, ast.And) else "$or": [_parse(v) for v in node.values]}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return {"$not": _parse(node.operand)}
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        name = _AST_OPERATORS.get(type(node.ops[0]))
        if name:
            return {_key(node.left): {name: _literal(node.comparators[0])}}
    raise ValueError(f"{ast.unparse(node)!r} is not a comparison of a key with a value")


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _READ:
        if len(node.args) == 1 and not node.keywords and isinstance(text := _literal(node.args[0]), str):
            return _READ[node.func.id](text)
        raise ValueError(f"{node.func.id}() takes one text")
    return ast.literal_eval(node)


def _key(node: ast.expr) -> str:
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError(f"{ast.unparse(node)!r} is not a metadata key")
