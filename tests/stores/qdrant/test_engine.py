"""Filters and floats held against the engine of the server itself, which runs here without one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from hypothesis import HealthCheck, given, reject, settings

from known import some
from vecferry.layouts import find_layout
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord, matches
from vecferry.stores.qdrant.filters import Asking, bounds
from vecferry.stores.qdrant.points import Form, as_kept

from .test_filters import METADATA, wheres

PLAIN = Form(CollectionSchema(fields=(VectorField(dim=2, metric="ip"),)), find_layout("plain"))
INDEXES = {
    "integer": "Integer",
    "float": "Float",
    "keyword": "Keyword",
    "datetime": "Datetime",
    "bool": "Bool",
}


def converted(condition: Any) -> Any:
    """A filter of Qdrant's JSON, or a condition, as the engine takes it."""
    if "key" in condition:
        return edge.FieldCondition(condition["key"], **comparison(condition))
    if "is_empty" in condition:
        return edge.IsEmptyCondition(condition["is_empty"]["key"])
    if "has_id" in condition:
        return edge.HasIdCondition(set(condition["has_id"]))
    parts_of: dict[str, Any] = {k: [converted(one) for one in parts] for k, parts in condition.items()}
    return edge.Filter(**parts_of)


def comparison(condition: dict[str, Any]) -> dict[str, Any]:
    if "match" in condition:
        if isinstance(condition["match"]["value"], bool):
            reject()  # the engine's Python takes true for 1
        return {"match": edge.MatchValue(condition["match"]["value"])}
    limits = condition["range"]
    moments = any(isinstance(limit, str) for limit in limits.values())
    return {"range": (edge.RangeDateTime if moments else edge.RangeFloat)(**limits)}


class Shard:
    """Points in the engine, with an index of one type on the key ``k`` and below ``metadata``."""

    def __init__(self, path: Path, index: str | None) -> None:
        params = edge.EdgeVectorParams(2, edge.Distance.Dot)
        path.mkdir(parents=True)
        self.shard = edge.EdgeShard.create(str(path), edge.EdgeConfig(params))
        rows = [VectorRecord(id=i, vector=[1.0, 0.0], metadata=m) for i, m in enumerate(METADATA)]
        made = PLAIN.rows_of(RecordBatch.from_records(rows))
        points = [
            edge.Point(i, [1.0, 0.0], json.loads(p)) for i, p in zip(made.ids, made.payloads, strict=True)
        ]
        self.shard.update(edge.UpdateOperation.upsert_points(points))
        self.indexes = {}
        if index is not None:
            kind = getattr(edge.PayloadSchemaType, INDEXES[index])
            self.shard.update(edge.UpdateOperation.create_field_index("k", kind))
            self.indexes = {"k": index}

    def ids(self, condition: Any) -> set[int]:
        request = edge.ScrollRequest(
            limit=10_000, filter=None if condition is None else converted(condition)
        )
        points, _ = self.shard.scroll(request)
        return {int(str(point.id)) for point in points}


@pytest.fixture(scope="module", params=[None, *INDEXES])
def shard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    found = Shard(tmp_path_factory.mktemp("edge") / "shard", request.param)
    yield found
    found.shard.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=wheres)
def test_the_bounds_hold_whatever_index_there_is(shard: Shard, where: dict[str, Any]) -> None:
    asking = Asking(PLAIN.layout.path, shard.indexes)
    found = bounds(where, asking)
    wanted = {i for i, metadata in enumerate(METADATA) if matches(where, metadata)}
    assert shard.ids(found.lower) <= wanted <= shard.ids(found.upper)


def floats() -> list[float]:
    dice = random.Random(7)
    found = [dice.random() for _ in range(3000)]
    found += [1.7e9 + dice.random() * 1e8 for _ in range(1000)]
    found += [dice.uniform(-180, 180) for _ in range(1000)]
    found += [dice.random() * 10.0 ** dice.randint(-300, 300) for _ in range(3000)]
    return [*found, 0.0, -0.0, 1e15, 1e300, 5e-324, 1.0, 2.5, 2.0**63, 0.1 + 0.2]


def test_the_rule_of_floats_is_the_servers(tmp_path: Path) -> None:
    """It keeps payloads as JSON text and parses that without exact round-trip."""
    values = floats()
    path = tmp_path / "floats"
    path.mkdir()
    shard = edge.EdgeShard.create(str(path), edge.EdgeConfig(edge.EdgeVectorParams(2, edge.Distance.Dot)))
    points = [edge.Point(i, [1.0, 0.0], {"x": value}) for i, value in enumerate(values)]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    came, _ = shard.scroll(edge.ScrollRequest(limit=len(values), with_payload=True))
    shard.close()
    for point in came:
        assert repr(some(point.payload)["x"]) == repr(as_kept(values[int(str(point.id))])), point.id
    changed = sum(as_kept(value) != value for value in values[:3000])
    assert 0.05 < changed / 3000 < 0.2, "about one in nine of random numbers"
    assert all(as_kept(as_kept(value)) == as_kept(value) for value in values[:5000]), "stable afterwards"
