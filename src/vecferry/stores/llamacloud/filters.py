"""vecferry's filters as the service's ``MetadataFilters``."""

from __future__ import annotations

from typing import Any

from vecferry.records import Where

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
    """A ``MetadataFilters`` object that lets through at least what ``where`` does."""
    filters: list[dict[str, Any]] = []
    for key, condition in where.items():
        if key in ("$and", "$or"):
            parts = [to_service(part) for part in condition]
            filters.append({"filters": parts, "condition": key[1:]})
        elif key == "$not":
            filters.append({"filters": [to_service(condition)], "condition": "not"})
        else:
            filters += _conditions(key, condition)
    return {"filters": filters, "condition": "and"}


def _conditions(key: str, condition: Any) -> list[dict[str, Any]]:
    operators = condition if isinstance(condition, dict) else {"$eq": condition}
    found = []
    for name, operand in operators.items():
        if name == "$exists":
            empty = {"key": key, "value": None, "operator": "is_empty"}
            found.append({"filters": [empty], "condition": "not"} if operand else empty)
        else:
            value = list(operand) if name in ("$in", "$nin") else operand
            found.append({"key": key, "value": value, "operator": _OPERATORS[name]})
    return found
