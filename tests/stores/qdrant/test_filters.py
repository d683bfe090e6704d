"""``where`` on Qdrant picks exactly what it picks in Python, whatever the server can and cannot compare."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from vecferry.layouts import find_layout
from vecferry.model import VectorRecord, matches, parse_where
from vecferry.stores.qdrant import QdrantStore
from vecferry.stores.qdrant.filters import Asking, bounds, json_path

from .conftest import DIM, fill, vectors

Open = Callable[..., QdrantStore]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2,
    -3,
    1.0,
    2.5,
    2**53 + 1,
    2**70,
    float("nan"),
    "a",
    "b",
    "1",
    "",
    [],
    [1, "a"],
    [2.5, None],
    {"in": 1},
    {"in": {"deep": "a"}},
    Decimal("2.5"),
    Decimal(1),
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2025, 6, 1, 12, 30, tzinfo=UTC),
    datetime(2025, 6, 1),
    "2025-06-01T12:30:00+00:00",
    b"x",
]
KEYS = ["k", "l", "k.in", "k.in.deep", "dot.ted", "odd key", 'quo"te']
operands = st.sampled_from([v for v in VALUES if not isinstance(v, dict | bytes)])
comparisons = st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"])
conditions = st.one_of(
    operands.filter(lambda v: not isinstance(v, list)),
    st.builds(lambda name, value: {name: value}, comparisons, operands),
    st.builds(
        lambda name, values: {name: values},
        st.sampled_from(["$in", "$nin"]),
        st.lists(operands, max_size=3),
    ),
    st.builds(lambda wanted: {"$exists": wanted}, st.booleans()),
)
leaves = st.dictionaries(st.sampled_from(KEYS), conditions, min_size=1, max_size=2)
wheres = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=4,
)


def everything() -> list[dict[str, Any]]:
    """Each value alone and with another, and some under odd keys."""
    found: list[dict[str, Any]] = [{}, {"dot.ted": 1}, {"dot": {"ted": 1}}, {"odd key": "a"}, {'quo"te': 1}]
    for i, value in enumerate(VALUES):
        found += [{"k": value}, {"k": VALUES[i - 3], "l": VALUES[-i - 1]}]
    return found


METADATA = everything()
SCORES = vectors(len(METADATA)).sum(axis=1) / np.linalg.norm(vectors(len(METADATA)), axis=1)
RANKED = np.argsort(-SCORES).tolist()


@pytest.fixture(scope="module", params=["plain", "langchain", "llamaindex"])
def collection(request: pytest.FixtureRequest) -> Any:
    """All of it in memory, in one of the layouts."""
    from vecferry.stores.qdrant.connection import Address

    store = QdrantStore(Address(path=":memory:"), f"filters-{request.param}", layout=request.param)
    values = vectors(len(METADATA))
    fill(store, [VectorRecord(id=i, vector=values[i], metadata=m) for i, m in enumerate(METADATA)])
    yield store
    store._engine.drop(store.collection)
    store.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=wheres)
def test_a_filter_picks_what_it_picks_in_python(collection: QdrantStore, where: dict[str, Any]) -> None:
    wanted = [i for i, meta in enumerate(METADATA) if matches(where, meta)]
    found = [i for batch in collection.scan(where=where) for i in batch.id_list]
    assert found == wanted
    hits = collection.search(np.ones(DIM), 3, where=where)
    assert [hit.id for hit in hits] == [i for i in RANKED if i in set(wanted)][:3]


@pytest.mark.parametrize("layout", ["plain", "langchain", "llamaindex", "both"])
@pytest.mark.parametrize("key", ["text", "doc_id", "_vecferry"])
def test_metadata_named_as_the_layouts_own_keys_is_filtered(folder: Open, layout: str, key: str) -> None:
    rows: list[dict[str, Any]] = [{key: "x"}, {key: 7}, {key: {"deep": 1}}, {"other": 1}]
    store = fill(
        folder(layout=layout),
        [VectorRecord(id=i, vector=np.ones(DIM), text="t", metadata=m) for i, m in enumerate(rows)],
    )
    for condition in ("x", "t", 7, {"$gt": 1}, {"$exists": True}, {"$exists": False}, {"$ne": "x"}):
        for where in ({key: condition}, {"$not": {key: condition}}, {f"{key}.deep": condition}):
            wanted = [i for i, row in enumerate(rows) if matches(where, row)]
            assert [i for batch in store.scan(where=where) for i in batch.id_list] == wanted, where
    store.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=wheres)
def test_the_lower_bound_holds_only_matches(collection: QdrantStore, where: dict[str, Any]) -> None:
    """Negations stand on it."""
    layout = find_layout(collection.describe().layout)
    lower = bounds(where, Asking(layout.path)).lower
    wanted = {"filter": lower, "with_payload": False}
    pages = list(collection._engine.pages(collection.collection, wanted, most=10_000))
    assert all(matches(where, METADATA[point["id"]]) for page in pages for point in page)


def test_the_server_does_the_work_where_it_can(folder: Open) -> None:
    store = fill(
        folder(),
        [VectorRecord(id=i, vector=np.ones(DIM), metadata={"n": i, "t": f"t{i % 3}"}) for i in range(30)],
    )
    path = store._address.path
    store.close()
    client = QdrantClient(path=path)
    expected = {"n >= 10 and n < 20": 10, "t == 't1' or n == 3": 11, "not t == 't1'": 20}
    for expression, count in expected.items():
        upper = bounds(parse_where(expression), Asking(find_layout("plain").path)).upper
        assert upper is not None
        assert client.count("c", models.Filter(**upper)).count == count, expression
    client.close()


@pytest.mark.parametrize(
    ("steps", "path"),
    [
        (("a",), "a"),
        (("a", "b"), "a.b"),
        (("a.b",), '"a.b"'),
        (("metadata", "odd key"), 'metadata."odd key"'),
        (('quo"te',), None),
        (("a", ""), None),
    ],
)
def test_paths_are_quoted_where_they_must_be(steps: tuple[str, ...], path: str | None) -> None:
    assert json_path(steps) == path
