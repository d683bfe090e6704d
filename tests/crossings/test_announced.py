"""Whatever a store keeps in another form is named and counted by the plan."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import vecferry as vf
from servers.postgres import postgres
from vecferry.model import RecordId, VectorRecord, encode_id

__all__ = ["postgres"]

RECORDS: dict[RecordId, dict[str, Any]] = {
    (7, "a"): {"when": datetime(2020, 1, 1, tzinfo=UTC)},
    1: {"a": -0.0},
    2: {"a": 1e16, "b": 1.5},
    3: {"a": float("inf")},
    4: {"a": 2**70},
    5: {"a": {1: "one"}},
    6: {"a": [b"x", {"deep": (1, 2)}]},
    7: {"a": 1, "b": 1.0, "c": [True, None, "x"], "d": {"e": 2**53 + 1}},
}


@pytest.mark.parametrize("kind", ["pgvector", "pgvector-langchain", "qdrant"])
def test_every_changed_form_is_announced(kind: str, postgres: Any, tmp_path: Path) -> None:
    source = vf.connect("memory:announced")
    source.write([VectorRecord(id=id_, vector=[1, 2], metadata=m) for id_, m in RECORDS.items()])
    urls = {"pgvector": postgres.url, "pgvector-langchain": lambda: postgres.url(layout="langchain")}
    url = urls.get(kind, lambda: f"qdrant:{tmp_path}#c")()
    plan = vf.plan(source, url, metric="l2")
    found = {ls.detail.split(" values")[0]: ls.count for ls in plan.losses if ls.kind == "metadata"}
    names = ("datetime", "non-finite float", "big int", "non-text-keyed object", "bytes", "tuple")
    unusual = {} if kind == "qdrant" else {"unusual float": 2}  # Qdrant keeps -0.0 and 1e16 as numbers
    assert found == {**unusual, **dict.fromkeys(names, 1)}
    assert any(loss.kind == "id" and "tuple" in loss.detail and loss.count == 1 for loss in plan.losses)
    plan.run().check()
    with vf.connect(url) as target:
        came = {encode_id(r.id): repr(r.metadata) for r in target.records()}
    assert came == {encode_id(id_): repr(metadata) for id_, metadata in RECORDS.items()}
