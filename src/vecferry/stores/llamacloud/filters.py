"""vecferry's filters as the service's ``MetadataFilters``."""

from __future__ import annotations

from math import isfinite
from typing import Any

from vecferry.model import Where

_OPERATORS = {
    "$eq": "==",
    "$ne": "!=",
    "$gt": ">",
    "$gte": ">=",
    "$lt": "<",
    "$lte": "<=",
    "$in": "in",
    "$nin": "nin",
}


def to_service(where: Where) -> dict[str, Any]:
    """A ``MetadataFilters`` object that lets through at least what ``where`` does.

    What the service cannot be asked (a date, a decimal, ``None``) is left out: the answer is filtered here.
    """
    filters: list[dict[str, Any]] = []
    for key, condition in where.items():
        if key == "$and":
            filters.append({"filters": [to_service(part) for part in condition], "condition": "and"})
        elif key == "$or":
            if all(map(_whole, condition)):
                filters.append({"filters": [to_service(part) for part in condition], "condition": "or"})
        elif key == "$not":
            if _whole(condition):
                filters.append({"filters": [to_service(condition)], "condition": "not"})
        else:
            filters += _conditions(key, condition)
    return {"filters": filters, "condition": "and"}


def _whole(where: Where) -> bool:
    """Whether all of it can be asked, so that it may be negated or stand beside others."""
    for key, condition in where.items():
        if key in ("$and", "$or"):
            asked = all(map(_whole, condition))
        elif key == "$not":
            asked = _whole(condition)
        else:
            asked = all(_plain(operand) for operand in _operators(condition).values())
        if not asked:
            return False
    return True


def _conditions(key: str, condition: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, operand in _operators(condition).items():
        if not _plain(operand):
            continue
        if name == "$exists":
            empty = {"key": key, "value": None, "operator": "is_empty"}
            found.append({"filters": [empty], "condition": "not"} if operand else empty)
        else:
            value = list(operand) if name in ("$in", "$nin") else operand
            found.append({"key": key, "value": value, "operator": _OPERATORS[name]})
    return found


def _operators(condition: Any) -> dict[str, Any]:
    return condition if isinstance(condition, dict) else {"$eq": condition}


def _plain(operand: Any) -> bool:
    """Whether JSON holds it as it is."""
    if isinstance(operand, list | tuple | set | frozenset):
        return all(map(_plain, operand))
    return isinstance(operand, str | bool | int) or (isinstance(operand, float) and isfinite(operand))
