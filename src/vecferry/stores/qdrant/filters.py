"""``where`` → Qdrant filters that bound it from above and below.

Qdrant compares what lies in the payload; ``where`` speaks of typed values, dotted keys and Python's
comparisons. So each filter becomes two: `Bounds.upper` lets every matching record through (and perhaps
others), `Bounds.lower` lets only matching ones through (and perhaps not all). Reading asks the server for
``upper`` and checks the rest here; where both are the same, the server's answer is exact. A negation turns
the two around, which is what makes it safe.

A payload index decides what a server's filter finds: an ``integer`` index does not hold 2.5 and a
``datetime`` index compares numbers as moments, so keys with such an index are compared here. Under a strict
mode that refuses filters on keys without an index, the others are compared here as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from vecferry.model import ENVELOPE, FilterVisitor, Where, tree_of

Filter = dict[str, Any]
"""A filter, or one condition of a filter, in Qdrant's own JSON."""

# None stands for "everything"; a `has_id` of no ids stands for "nothing".
_NOTHING: Filter = {"must": [{"has_id": []}]}
_UNTYPED: tuple[Filter, ...] = (
    {"is_empty": {"key": f"{ENVELOPE}.types"}},
    {"is_empty": {"key": f"{ENVELOPE}.floats"}},
)
"""Holds for records none of whose values lies in another form, or with other bits, than it has."""
_RANGES = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_EXACT_INT = 2**53
_MISLEADING = frozenset({"integer", "datetime"})
"""Index types that do not find what a comparison without an index finds."""
_TRUSTED: tuple[tuple[type | tuple[type, ...], frozenset[str | None]], ...] = (
    (bool, frozenset({None, "bool"})),
    (str, frozenset({None, "keyword", "uuid", "text"})),
    ((int, float), frozenset({None, "float"})),
    (datetime, frozenset({None})),
)
"""Operand → the index types that find what it means: a float index knows no moments, and so on."""
_APPROXIMATE = frozenset({"uuid", "text"})
"""Index types that may take two texts for one."""
_SIMPLE_STEP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

Path = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """``upper`` and ``lower``; ``None`` is the filter that lets everything through."""

    upper: Filter | None
    lower: Filter | None

    @property
    def exact(self) -> bool:
        return self.upper == self.lower


_UNKNOWN = Bounds(None, _NOTHING)


@dataclass(frozen=True, slots=True)
class Asking:
    """What a collection can be asked.

    Attributes:
        path: metadata key → the steps to it in the payload; ``()`` where nobody knows.
        indexes: payload path → type of its index.
        indexed_only: whether strict mode refuses to filter by keys without an index.
    """

    path: Path
    indexes: Mapping[str, str] = field(default_factory=dict)
    indexed_only: bool = False

    def index(self, place: str) -> str | None:
        return self.indexes.get(place) or self.indexes.get(place.replace('"', ""))


def bounds(where: Where | None, asking: Asking) -> Bounds:
    """The bounds of a filter."""
    return _Bounder(asking).visit(tree_of(where)) if where else Bounds(None, None)


class _Bounder(FilterVisitor[Bounds]):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def all_of(self, parts: list[Bounds]) -> Bounds:
        return Bounds(_must([p.upper for p in parts]), _must([p.lower for p in parts]))

    def any_of(self, parts: list[Bounds]) -> Bounds:
        return Bounds(_should([p.upper for p in parts]), _should([p.lower for p in parts]))

    def negation(self, part: Bounds) -> Bounds:
        return Bounds(_negated(part.lower), _negated(part.upper))

    def compare(self, key: str, operator: str, operand: Any) -> Bounds:
        places = _places(key, self._asking)
        return _compare(places, operator, operand, self._asking) if places else _UNKNOWN

    def exists(self, key: str, wanted: bool) -> Bounds:
        """Qdrant calls null and the empty list empty as well, so only one direction is certain."""
        places = _places(key, self._asking)
        if not places or self._asking.indexed_only:
            return _UNKNOWN
        there = Bounds(None, {"must": [{"must_not": [{"is_empty": {"key": places[0]}}]}]})
        return there if wanted else self.negation(there)


def _compare(places: list[str], name: str, operand: Any, asking: Asking) -> Bounds:
    trusted = next((kinds for type_, kinds in _TRUSTED if isinstance(operand, type_)), frozenset())
    if any(asking.index(place) not in trusted for place in places):
        return _UNKNOWN
    numeric = isinstance(operand, int | float) and not isinstance(operand, bool)
    if numeric and asking.indexed_only:  # it takes a look at our own key, which has no index
        return _UNKNOWN
    sure, wide = _leaf(name, operand), _leaf(name, operand, ulps=8 if numeric else 0)
    if sure is None or wide is None:
        return _UNKNOWN
    exact = len(places) == 1
    if isinstance(operand, bool):
        hits = [sure(place) for place in places]
        return Bounds({"should": hits}, {"should": hits} if exact else _NOTHING)
    hits = [sure(place) for place in places]
    if numeric:
        # A value whose type JSON lacks (a Decimal, a datetime) lies there as text, a float that the server
        # cannot keep lies there a little off: only we can compare these.
        typed, floats = ({"must_not": [one]} for one in _UNTYPED)
        hits += [typed, *({"must": [wide(place), floats]} for place in places)]
    upper: Filter = {"should": hits}
    certain = exact and not isinstance(operand, date) and not asking.indexed_only
    certain = certain and asking.index(places[0]) not in _APPROXIMATE
    return Bounds(upper, {"must": [*map(sure, places), *_UNTYPED]} if certain else _NOTHING)


def _leaf(name: str, operand: Any, *, ulps: int = 0) -> Callable[[str], Filter] | None:
    """How one place is asked; ``None`` where Qdrant has no such question.

    Args:
        ulps: widen a range of numbers by so many steps of a double on each side.
    """
    if isinstance(operand, bool | str):
        if name != "$eq":
            return None  # texts have no order in Qdrant
        return lambda key: {"key": key, "match": {"value": operand}}
    edges = ["gte", "lte"] if name == "$eq" else [_RANGES[name]]
    if isinstance(operand, int | float) and operand - operand == 0 and abs(operand) < _EXACT_INT:
        number = dict(_widened(edge, float(operand), ulps) for edge in edges)
        return lambda key: {"key": key, "range": number}
    if isinstance(operand, datetime):
        aware = operand if operand.tzinfo else operand.replace(tzinfo=UTC)
        moment = dict.fromkeys(edges, aware.isoformat())
        return lambda key: {"key": key, "range": moment}
    return None


def _widened(edge: str, number: float, ulps: int) -> tuple[str, float]:
    if not ulps:
        return edge, number
    below = edge.startswith("g")
    for _ in range(ulps):
        number = math.nextafter(number, -math.inf if below else math.inf)
    return ("gte" if below else "lte"), number


def _must(filters: list[Filter | None]) -> Filter | None:
    known = [f for f in filters if f is not None]
    if _NOTHING in known or len(known) == 1:
        return _NOTHING if _NOTHING in known else known[0]
    return {"must": known} if known else None


def _should(filters: list[Filter | None]) -> Filter | None:
    if any(f is None for f in filters):
        return None
    known = [f for f in filters if f != _NOTHING]
    if len(known) == 1:
        return known[0]
    return {"should": known} if known else _NOTHING


def _negated(one: Filter | None) -> Filter | None:
    if one is None:
        return _NOTHING
    return None if one == _NOTHING else {"must_not": [one]}


def _places(key: str, asking: Asking) -> list[str]:
    """Where a key may lie: as it is written, and, with dots, as a path into objects.

    Nowhere, if one of these cannot be asked for, or if the server's answer for one would mislead.
    """
    steps = asking.path(key)
    if not steps:
        return []
    *root, last = steps
    paths = [(*root, last)] + ([(*root, *last.split("."))] if "." in last else [])
    places = [place for path in paths if (place := json_path(path)) is not None]
    if len(places) < len(paths):
        return []
    for index in map(asking.index, places):
        if index in _MISLEADING or (index is None and asking.indexed_only):
            return []
    return places


def json_path(steps: tuple[str, ...]) -> str | None:
    """Qdrant's notation for a path; a step that is no plain name is quoted.

    ``None`` where there is none: it knows no empty step, and no escape for a quote or a backslash.
    """
    if any(not step or '"' in step or "\\" in step for step in steps):
        return None
    return ".".join(step if _SIMPLE_STEP.fullmatch(step) else f'"{step}"' for step in steps)
