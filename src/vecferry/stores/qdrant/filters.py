"""``where`` → Qdrant filters that bound it from above and below.

Qdrant compares what lies in the payload; ``where`` speaks of typed values, dotted keys and Python's
comparisons. So each filter becomes two: `Bounds.upper` lets every matching record through (and perhaps
others), `Bounds.lower` lets only matching ones through (and perhaps not all). Reading asks the server for
``upper`` and checks the rest here; where both are the same, the server's answer is exact. A negation turns
the two around, which is what makes it safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from qdrant_client import models

from vecferry.model import ENVELOPE, Where
from vecferry.stores.qdrant.config import json_path

# None stands for "everything"; a `has_id` of no ids stands for "nothing".
Condition = Any
_NOTHING = models.Filter(must=[models.HasIdCondition(has_id=[])])
_TYPED = models.IsEmptyCondition(is_empty=models.PayloadField(key=f"{ENVELOPE}.types"))
_RANGES = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_EXACT_INT = 2**53
Path = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """``upper`` and ``lower`` as filters; ``None`` is the filter that lets everything through."""

    upper: models.Filter | None
    lower: models.Filter | None

    @property
    def exact(self) -> bool:
        return self.upper == self.lower


def bounds(where: Where | None, path: Path) -> Bounds:
    """The bounds of a filter, for metadata at ``path(key)`` in the payload (``()``: nobody knows)."""
    if not where:
        return Bounds(None, None)
    return _all([_one(key, condition, path) for key, condition in where.items()])


def _one(key: str, condition: Any, path: Path) -> Bounds:
    if key == "$and":
        return _all([bounds(part, path) for part in condition])
    if key == "$or":
        return _any([bounds(part, path) for part in condition])
    if key == "$not":
        return _not(bounds(condition, path))
    if not isinstance(condition, Mapping):
        condition = {"$eq": condition}
    return _all([_operator(key, name, operand, path) for name, operand in condition.items()])


def _operator(key: str, name: str, operand: Any, path: Path) -> Bounds:
    if name == "$ne":
        return _not(_operator(key, "$eq", operand, path))
    if name == "$nin":
        return _not(_operator(key, "$in", operand, path))
    places = _places(key, path)
    if not places:
        return Bounds(None, _NOTHING)
    if name == "$exists":
        return _exists(places, bool(operand))
    if name == "$in":
        values = list(operand) if isinstance(operand, list | tuple | set) else [operand]
        return _any([_compare(places, "$eq", value) for value in values])
    return _compare(places, name, operand)


def _compare(places: list[str], name: str, operand: Any) -> Bounds:
    make = _leaf(name, operand)
    if make is None:
        return Bounds(None, _NOTHING)
    hits: list[Condition] = [make(place) for place in places]
    exact = len(places) == 1
    if isinstance(operand, bool):
        upper = lower = models.Filter(should=hits)
        return Bounds(upper, lower if exact else _NOTHING)
    # A value whose type JSON lacks (a Decimal, a datetime) lies there as text: only we can compare it.
    numeric = isinstance(operand, int | float)
    typed = models.Filter(must_not=[_TYPED])
    upper = models.Filter(should=[*hits, typed] if numeric else hits)
    certain = exact and not isinstance(operand, date)
    return Bounds(upper, models.Filter(must=[*hits, _TYPED]) if certain else _NOTHING)


def _leaf(name: str, operand: Any) -> Callable[[str], Condition] | None:
    """How one place is asked; ``None`` where Qdrant has no such question."""
    if isinstance(operand, bool | str):
        if name != "$eq":
            return None  # texts have no order in Qdrant
        return lambda key: models.FieldCondition(key=key, match=models.MatchValue(value=operand))
    edges = ["gte", "lte"] if name == "$eq" else [_RANGES[name]]
    if isinstance(operand, int | float) and operand - operand == 0 and abs(operand) <= _EXACT_INT:
        number = dict.fromkeys(edges, float(operand))
        return lambda key: models.FieldCondition(key=key, range=models.Range(**number))
    if isinstance(operand, datetime):
        aware = operand if operand.tzinfo else operand.replace(tzinfo=UTC)
        moment: Any = dict.fromkeys(edges, aware)
        return lambda key: models.FieldCondition(key=key, range=models.DatetimeRange(**moment))
    return None


def _exists(places: list[str], wanted: bool) -> Bounds:
    """Qdrant calls null and the empty list empty as well, so only one direction is certain."""
    empty = [models.IsEmptyCondition(is_empty=models.PayloadField(key=place)) for place in places]
    there = Bounds(None, models.Filter(must=[models.Filter(must_not=[one]) for one in empty[:1]]))
    return there if wanted else _not(there)


def _all(parts: list[Bounds]) -> Bounds:
    if len(parts) == 1:
        return parts[0]
    return Bounds(_must([p.upper for p in parts]), _must([p.lower for p in parts]))


def _any(parts: list[Bounds]) -> Bounds:
    if len(parts) == 1:
        return parts[0]
    return Bounds(_should([p.upper for p in parts]), _should([p.lower for p in parts]))


def _not(part: Bounds) -> Bounds:
    return Bounds(_negated(part.lower), _negated(part.upper))


def _must(filters: list[models.Filter | None]) -> models.Filter | None:
    known = [f for f in filters if f is not None]
    return _NOTHING if _NOTHING in known else models.Filter(must=known) if known else None


def _should(filters: list[models.Filter | None]) -> models.Filter | None:
    if any(f is None for f in filters):
        return None
    known = [f for f in filters if f != _NOTHING]
    return models.Filter(should=known) if known else _NOTHING


def _negated(one: models.Filter | None) -> models.Filter | None:
    if one is None:
        return _NOTHING
    return None if one == _NOTHING else models.Filter(must_not=[one])


def _places(key: str, path: Path) -> list[str]:
    """Where a key may lie: as it is written, and, with dots, as a path into objects.

    Nowhere, if one of these cannot be asked for.
    """
    steps = path(key)
    if not steps:
        return []
    *root, last = steps
    places = [json_path((*root, last))]
    if "." in last:
        places.append(json_path((*root, *last.split("."))))
    known = [place for place in places if place is not None]
    return known if len(known) == len(places) else []
