"""`where`: one small filter language for every store.

A filter is a mapping from a metadata key to a value (equality) or to operators, in the style that
Chroma, Pinecone and MongoDB share::

    {"lang": "en", "page": {"$gte": 3, "$lt": 10}, "$or": [{"topic": "search"}, {"tags": "python"}]}

Operators: ``$eq $ne $gt $gte $lt $lte $in $nin $exists``, and ``$and $or $not`` between filters. A key
may be a dotted path into nested objects. A list value matches when one of its items does.
`parse_where` reads the same thing written as an expression: ``lang == 'en' and page >= 3``.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from vecferry.errors import ConfigurationError

Where: TypeAlias = Mapping[str, Any]

_MISSING = object()
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
    "$in": lambda value, options: any(_safely(operator.eq, value, one) for one in _listed(options)),
}
_NEGATED = {"$ne": "$eq", "$nin": "$in"}
OPERATORS = frozenset({*_COMPARE, *_NEGATED, "$exists"})


def check_where(where: Any) -> Where:
    """Return the filter if it is well-formed.

    Raises:
        ConfigurationError: naming the operator or the shape that is wrong.
    """
    if not isinstance(where, Mapping):
        raise ConfigurationError(
            f"a filter is a mapping such as {{'lang': 'en'}}, not {type(where).__name__}; "
            "write an expression with parse_where(\"lang == 'en'\")"
        )
    for key, condition in where.items():
        _check_condition(key, condition)
    return where


def _check_condition(key: str, condition: Any) -> None:
    if key in ("$and", "$or"):
        if not isinstance(condition, list | tuple):
            raise ConfigurationError(f"{key} takes a list of filters")
        for part in condition:
            check_where(part)
    elif key == "$not":
        check_where(condition)
    elif key.startswith("$"):
        raise ConfigurationError(f"unknown operator {key}; there are $and, $or and $not")
    elif isinstance(condition, Mapping):
        unknown = [name for name in condition if name not in OPERATORS]
        if unknown or not condition:
            raise ConfigurationError(
                f"unknown operator {unknown[0] if unknown else condition!r} for {key!r}; "
                f"there are {' '.join(sorted(OPERATORS))}"
            )


def matches(where: Where, metadata: Mapping[str, Any]) -> bool:
    """Whether one record's metadata passes the filter. Values that do not compare do not match."""
    if not isinstance(where, Mapping):
        check_where(where)  # a filter of another store, say
    return all(_matches_one(key, condition, metadata) for key, condition in where.items())


def _matches_one(key: str, condition: Any, metadata: Mapping[str, Any]) -> bool:
    if key == "$and":
        return all(matches(part, metadata) for part in condition)
    if key == "$or":
        return any(matches(part, metadata) for part in condition)
    if key == "$not":
        return not matches(condition, metadata)
    value = lookup(metadata, key)
    if not isinstance(condition, Mapping):
        return _compare("$eq", value, condition)
    return all(_compare(name, value, operand) for name, operand in condition.items())


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


def _compare(name: str, value: Any, operand: Any) -> bool:
    if name == "$exists":
        return (value is not _MISSING) is bool(operand)
    if name in _NEGATED:
        return not _compare(_NEGATED[name], value, operand)
    if value is _MISSING:
        return False
    test = _COMPARE[name]
    options = [value, *value] if isinstance(value, list | tuple | set) else [value]
    return any(_safely(test, option, operand) for option in options)


def _safely(test: Callable[[Any, Any], bool], value: Any, operand: Any) -> bool:
    sides = isinstance(value, bool), isinstance(operand, bool)
    if sides[0] is not sides[1] and not isinstance(operand, list | tuple | set | frozenset):
        return False  # True is not 1 in a filter
    try:
        return bool(test(value, operand))
    except (TypeError, ArithmeticError):  # a Decimal with NaN
        return False


def _listed(options: Any) -> Any:
    return options if isinstance(options, list | tuple | set | frozenset) else [options]


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

    >>> parse_where("lang == 'en' and page >= 3")
    {'$and': [{'lang': {'$eq': 'en'}}, {'page': {'$gte': 3}}]}

    Raises:
        ConfigurationError: if the expression is anything else. Nothing is ever evaluated.
    """
    try:
        return _parse(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError) as error:
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
            return {_key(node.left): {name: ast.literal_eval(node.comparators[0])}}
    raise ValueError(f"{ast.unparse(node)!r} is not a comparison of a key with a value")


def _key(node: ast.expr) -> str:
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError(f"{ast.unparse(node)!r} is not a metadata key")
