"""Numbers, depths and payload bytes: what goes in comes out, whatever a server does to it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import grpc as q

import vecferry as vf
from known import some
from servers.qdrant import QdrantServer, drifted
from vecferry.layouts import find_layout
from vecferry.model import (
    CollectionSchema,
    DenseColumn,
    JsonColumn,
    MultiColumn,
    RecordBatch,
    SparseColumn,
    SparseVector,
    VectorField,
    VectorRecord,
)
from vecferry.ports import Fields
from vecferry.stores.qdrant.points import Form, as_json, as_message

from .conftest import fill, read

REAL_TOO = True
SCHEMA = CollectionSchema(fields=(VectorField(dim=2, metric="ip"),))
VALUES = [
    0.42451918914251396,
    1732931234.1234567,
    -0.0,
    1e15,
    1e300,
    5e-324,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    13570027672830659665,
    2**70,
    {"deep": [0.30000000000000004, {"x": 6.123233995736766e-17}]},
    [1, 1.0, 0.6046602879796196],
]


def rows() -> list[VectorRecord]:
    return [
        VectorRecord(id=i, text=f"t{i}", vector=[1.0, i], metadata={"v": value, "n": i})
        for i, value in enumerate(VALUES)
    ]


@pytest.mark.parametrize("layout", ["plain", "langchain", "llamaindex", "both"])
@pytest.mark.parametrize("prefer_grpc", [0, 1])
def test_every_number_comes_back_as_it_was(server: QdrantServer, layout: str, prefer_grpc: int) -> None:
    with vf.connect(server.url("c", layout=layout, prefer_grpc=prefer_grpc)) as there:
        fill(there.store, rows(), SCHEMA)
        for came, went in zip(read(there.store), rows(), strict=True):
            assert repr(came.metadata["v"]) == repr(went.metadata["v"])


def test_numbers_stay_numbers_for_the_application(server: QdrantServer) -> None:
    """So that its range filters find them; only what no JSON store holds becomes text."""
    with vf.connect(server.url("c")) as there:
        fill(there.store, rows(), SCHEMA)
    stored = [some(record.payload)["v"] for record in server.client.scroll("c", limit=100)[0]]
    assert [type(value) for value in stored[:10]] == [float] * 6 + [int] * 4
    assert [repr(v) for v in stored[2:6]] == ["-0.0", "1000000000000000.0", "1e+300", "5e-324"]
    assert stored[11] == str(2**70)


def test_what_an_application_has_changed_since_is_not_put_back(server: QdrantServer) -> None:
    with vf.connect(server.url("c")) as there:
        fill(there.store, rows()[:1], SCHEMA)
        server.client.set_payload("c", {"v": 0.5}, points=[0])
        assert read(there.store)[0].metadata["v"] == 0.5


def test_float_metadata_is_proved_and_the_plan_counts_it(server: QdrantServer, tmp_path: Path) -> None:
    dice = random.Random(1)
    source = tmp_path / "a.jsonl"
    lines = [{"id": i, "metadata": {"score": dice.random()}, "vector": [1.0, 2.0]} for i in range(300)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = vf.migrate(f"jsonl:{source}", server.url("c"), state_dir=tmp_path / "job")
    report.check()
    with vf.connect(server.url("c")) as there:
        (batch,) = vf.connect(f"jsonl:{source}").scan()
        (found,) = there.store.foresee(batch)
    moved = [line for line in lines if drifted(line["metadata"]) != line["metadata"]]
    assert 10 < len(moved) < 60
    assert (found.kind, found.count, found.reversible) == ("metadata", len(moved), True)


def test_a_filter_finds_a_float_that_the_server_has_moved(server: QdrantServer) -> None:
    with vf.connect(server.url("c")) as there:
        fill(there.store, rows(), SCHEMA)
        for where in ({"v": 0.42451918914251396}, {"v": {"$gte": 0.42451918914251396, "$lt": 0.5}}):
            assert [r.id for r in read(there.store, where=where)] == [0]


def test_depths_that_no_message_holds_cross_both_ways(server: QdrantServer) -> None:
    deep: Any = 1
    for _ in range(60):
        deep = {"d": [deep]} if _ % 2 else {"d": deep}
    with vf.connect(server.url("c")) as there:
        fill(there.store, [VectorRecord(id=1, vector=[1.0, 2.0], metadata={"x": deep})], SCHEMA)
        assert there.store._engine.grpc(server.named("c"))
        assert read(there.store)[0].metadata["x"] == deep


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
metadata = st.dictionaries(
    st.sampled_from(["a", "b", "text", "_vecferry", "_payload", "page_content"]), json_values
)


@settings(max_examples=150, deadline=None)
@given(meta=metadata, text=st.none() | st.text(max_size=5), id_=st.integers(-3, 3) | st.text(max_size=3))
@pytest.mark.parametrize("layout", ["plain", "langchain"])
def test_bytes_passed_through_say_what_the_layout_says(layout: str, meta: Any, text: Any, id_: Any) -> None:
    form = Form(SCHEMA, find_layout(layout))
    batch = RecordBatch(
        [id_], {"": DenseColumn(np.ones((1, 2), np.float32))}, texts=[text], metadata=[meta]
    )
    (through,) = form.rows_of(batch.replace(metadata=JsonColumn.of([meta]))).payloads
    foreign = [not isinstance(id_, int) or id_ < 0]
    (made,) = form._encoded(batch, [0], batch.id_list, foreign, None).values()
    assert repr(orjson.loads(through)) == repr(orjson.loads(made)) or orjson.loads(through) == orjson.loads(
        made
    )
    point = {"id": form.rows_of(batch).ids[0], "payload": orjson.loads(through), "vector": [1.0, 1.0]}
    came = form.batch_of([point], Fields.ALL)
    assert (came.id_list, came.text_list[0]) == ([id_], text)
    assert repr(sorted(came.metadata_list[0].items())) == repr(sorted(meta.items()))


def test_packed_messages_are_what_the_vendors_protobuf_reads() -> None:
    """Field by field, with the classes generated from Qdrant's own definitions."""
    schema = CollectionSchema(
        fields=(
            VectorField(name="d", dim=3, metric="ip"),
            VectorField(name="m", kind="multi", dim=2, metric="ip"),
            VectorField(name="s", kind="sparse", metric="ip"),
        )
    )
    payload = {
        "s": "ä",
        "i": -5,
        "big": 2**62,
        "f": 2.5,
        "b": True,
        "no": None,
        "l": [1, [2.0]],
        "o": {"x": {}},
    }
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    batch = RecordBatch(
        [7, "text id"],
        {
            "d": DenseColumn(values, np.array([True, False])),
            "m": MultiColumn.from_rows([np.ones((2, 2), np.float32), None], 2, np.dtype("float32")),
        },
        {"s": SparseColumn.from_rows([SparseVector([3, 70000], [0.5, 1.5]), None])},
        metadata=[payload, {}],
    )
    rows_ = Form(schema, find_layout("plain")).rows_of(batch)
    message = q.UpsertPoints.FromString(as_message("kb", rows_, "shard"))
    assert (message.collection_name, message.wait) == ("kb", True)
    assert [key.keyword for key in message.shard_key_selector.shard_keys] == ["shard"]
    first, second = message.points
    assert (first.id.num, second.id.uuid) == (7, rows_.ids[1])
    assert dict(first.payload)["big"].integer_value == 2**62
    assert dict(first.payload)["i"].integer_value == -5
    assert dict(first.payload)["l"].list_value.values[1].list_value.values[0].double_value == 2.5 - 0.5
    named = first.vectors.vectors.vectors
    assert list(named["d"].dense.data) == [0.0, 1.0, 2.0]
    assert [list(row.data) for row in named["m"].multi_dense.vectors] == [[1.0, 1.0], [1.0, 1.0]]
    assert (list(named["s"].sparse.indices), list(named["s"].sparse.values)) == ([3, 70000], [0.5, 1.5])
    assert not second.vectors.vectors.vectors
    spoken = [orjson.loads(text) for text in as_json(rows_)]
    assert spoken[0]["vector"] == {
        "d": [0.0, 1.0, 2.0],
        "m": [[1.0, 1.0], [1.0, 1.0]],
        "s": {"indices": [3, 70000], "values": [0.5, 1.5]},
    }
    assert spoken[1]["vector"] == {}
    assert spoken[0]["payload"] == payload
