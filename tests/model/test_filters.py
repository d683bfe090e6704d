"""Filters as a tree: one meaning for every visitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecferry.errors import ConfigurationError
from vecferry.model import FilterVisitor, matches, parse_where, predicate, tree_of, type_name
from vecferry.model.filters import fit_where, where_of, why_nothing_matches

scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b", 1.5, Decimal("1.5")])
    | st.just(UUID(int=1)) | st.just(date(2026, 1, 31)) | st.just(datetime(2026, 1, 31, tzinfo=UTC))
)  # fmt: skip
values = scalars | st.lists(scalars, max_size=3)
keys = st.sampled_from(["k", "o.k", "o", "gone"])
metadata = st.fixed_dictionaries({}, optional={"k": values, "o": st.dictionaries(st.just("k"), values)})
conditions = st.one_of(
    scalars,
    st.dictionaries(
        st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), scalars, min_size=1, max_size=2
    ),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=3), min_size=1),
    st.dictionaries(st.just("$exists"), st.booleans(), min_size=1),
)
filters = st.recursive(
    st.dictionaries(keys, conditions, max_size=2),
    lambda inner: (
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=2)})
        | st.fixed_dictionaries({"$or": st.lists(inner, max_size=2)})
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=5,
)


def plainly(where: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """What the words of the docstring say, without a tree."""
    return all(_plainly_one(key, condition, record) for key, condition in where.items())


def _plainly_one(key: str, condition: Any, record: Mapping[str, Any]) -> bool:
    if key == "$and":
        return all(plainly(part, record) for part in condition)
    if key == "$or":
        return any(plainly(part, record) for part in condition)
    if key == "$not":
        return not plainly(condition, record)
    found = [record[key]] if key in record else []
    if not found and "." in key:
        found = [inner["k"] for inner in [record.get("o")] if isinstance(inner, Mapping) and "k" in inner]
    operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
    return all(_holds(found, name, operand) for name, operand in operators.items())


def _holds(found: list[Any], name: str, operand: Any) -> bool:
    if name == "$exists":
        return bool(found) is operand
    if name in ("$ne", "$nin"):
        return (
            not _holds(found, "$" + name[2:].replace("e", "eq"), operand)
            if name == "$ne"
            else not _holds(found, "$in", operand)
        )
    if name == "$in":
        return any(_holds(found, "$eq", option) for option in operand)
    items = [item for value in found for item in ([value, *value] if isinstance(value, list) else [value])]
    return any(_passes(item, name, operand) for item in items)


def _passes(item: Any, name: str, operand: Any) -> bool:
    if isinstance(item, bool) is not isinstance(operand, bool):
        return False
    try:
        return {
            "$eq": lambda: bool(item == operand),
            "$gt": lambda: bool(item > operand),
            "$gte": lambda: bool(item >= operand),
            "$lt": lambda: bool(item < operand),
            "$lte": lambda: bool(item <= operand),
        }[name]()
    except TypeError:
        return False


@settings(max_examples=300, deadline=None)
@given(filters, metadata)
def test_a_tree_means_what_the_filter_says(where: dict[str, Any], record: dict[str, Any]) -> None:
    due = plainly(where, record)
    assert matches(where, record) is predicate(where)(record) is due
    assert matches(where_of(tree_of(where)), record) is due


@settings(max_examples=200, deadline=None)
@given(filters, st.lists(metadata, max_size=4))
def test_a_filter_that_cannot_match_does_not_match(
    where: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    types: dict[str, set[str]] = {}
    for record in records:
        for key, value in record.items():
            types.setdefault(key, set()).add(type_name(value))
    if why_nothing_matches(where, types, complete=True):
        fitted = fit_where(where, types)
        assert not any(matches(where, record) or matches(fitted, record) for record in records)


class Shown(FilterVisitor[str]):
    """A store's compiler, as small as one can be."""

    def all_of(self, parts: list[str]) -> str:
        return "(" + " & ".join(parts) + ")"

    def any_of(self, parts: list[str]) -> str:
        return "(" + " | ".join(parts) + ")"

    def negation(self, part: str) -> str:
        return f"!{part}"

    def compare(self, key: str, operator: str, operand: Any) -> str:
        return f"{key}{operator}{operand!r}"

    def exists(self, key: str, wanted: bool) -> str:
        return f"{key}?{wanted}"


def test_a_visitor_says_six_things() -> None:
    where = {
        "a": {"$gte": 1, "$ne": 2},
        "$or": [{"b": {"$nin": [1, "x"]}}, {"$not": {"c": {"$exists": True}}}],
    }
    assert Shown().visit(tree_of(where)) == "((a$gte1 & !a$eq2) & (!(b$eq1 | b$eq'x') | !c?True))"
    assert Shown().visit(tree_of({})) == "()"


TYPES: dict[str, Sequence[str]] = {
    "n": ["int", "float"], "s": ["str"], "u": ["uuid"], "d": ["date", "null"], "at": ["datetime"],
    "l": ["list"], "o": ["object"], "flag": ["bool"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n == 'x'", "'n' holds float or int, which never compares with 'x' (str)"),
        ("n > 1 and flag == 1", "'flag' holds bool"),
        ("flag == True", ""),
        ("gone == 1", "no record has the key 'gone'; there are at, d, flag"),
        ("gone != 1", ""),
        ("not (n == 'x')", ""),
        ("n == 'x' or s == 'x'", ""),
        ("n == 'x' or gone == 1", "'n' holds"),
        ("n in ['x', 1]", ""),
        ("n in []", "no value of 'n' is in an empty list"),
        ("u == 'x'", "'u' holds uuid"),
        ("u == '00000000-0000-0000-0000-000000000001'", "'u' holds uuid"),
        ("u == uuid('00000000-0000-0000-0000-000000000001')", ""),
        ("d >= date('2026-01-31')", ""),
        (
            "d >= '2026-01-31'",
            "'d' holds date or null, which never compares with '2026-01-31' (str); write date(",
        ),
        ("s == uuid('00000000-0000-0000-0000-000000000001')", ""),
        ("l == 1 or o.deep.down == 1", ""),
        ("s == 1", "'s' holds str, which never compares with 1 (int)"),
    ],
)
def test_why_nothing_matches(text: str, reason: str) -> None:
    found = why_nothing_matches(parse_where(text), TYPES, complete=True)
    assert found.startswith(reason) and bool(found) is bool(reason)


def test_unknown_keys_may_match_where_not_all_are_known() -> None:
    assert why_nothing_matches({"gone": 1}, TYPES) == ""


@pytest.mark.parametrize(
    ("where", "record"),
    [
        ({"at": {"$gte": date(2026, 1, 31)}}, {"at": datetime(2026, 1, 31, tzinfo=UTC)}),
        ({"s": {"$in": [date(2026, 1, 31)]}}, {"s": "2026-01-31"}),
        ({"s": UUID(int=1)}, {"s": str(UUID(int=1))}),
    ],
)
def test_operands_become_what_they_are_compared_with(where: dict[str, Any], record: dict[str, Any]) -> None:
    assert not matches(where, record)
    assert matches(fit_where(where, TYPES), record)
    assert matches(fit_where({"$not": where}, TYPES), record) is False


def test_literals_of_a_command_line() -> None:
    assert parse_where("u in [uuid('00000000-0000-0000-0000-000000000001')]") == {
        "u": {"$in": [UUID(int=1)]}
    }
    assert parse_where("at < datetime('2026-01-31T00:00:00Z')") == {
        "at": {"$lt": datetime(2026, 1, 31, tzinfo=UTC)}
    }
    assert parse_where("price == decimal('1.50')") == {"price": {"$eq": Decimal("1.50")}}
    for bad in (
        "a == uuid('x')",
        "a == date()",
        "a == date(2026)",
        "a == open('x')",
        "a == decimal('x')",
        "a in 3",
    ):
        with pytest.raises(ConfigurationError):
            parse_where(bad)
