"""A target whose components hold less than the source's: rounded or refused, never wrapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from vecferry.errors import RejectedRecord
from vecferry.model import CollectionSchema, DType, EmbeddingSpace, VectorField, VectorRecord
from vecferry.ports import WriteMode
from vecferry.stores.memory import MemoryStore


def held(dtype: str, *vectors: list[float], **field: Any) -> vf.Collection:
    """A collection whose only field, named ``v``, holds components of that type."""
    store = MemoryStore()
    kept = DType(dtype)
    schema = CollectionSchema(
        fields=(VectorField(**{"name": "v", "dim": 3, "dtype": kept, "metric": "l2", **field}),)
    )
    store.prepare(schema, WriteMode.CREATE)
    collection = vf.Collection(store)
    rows = [np.array(v).astype(kept.numpy) for v in vectors]
    collection.write([VectorRecord(id=i, vectors={"v": row}) for i, row in enumerate(rows)])
    return collection


def values(collection: vf.Collection) -> dict[Any, list[float]]:
    return {r.id: r.vectors["v"].tolist() for batch in collection.scan() for r in batch.records()}


@pytest.mark.parametrize(("dtype", "beyond"), [("float16", 1e5), ("int8", 300.0), ("uint8", -1.0)])
def test_a_component_beyond_the_type_is_refused(dtype: str, beyond: float, tmp_path: Path) -> None:
    source = held("float32", [0.7, 2, 3], [beyond, 2, 3])
    target = held(dtype)
    with pytest.raises(RejectedRecord, match=f"beyond what {dtype} holds"):
        vf.migrate(source, target, mode="upsert")
    target = held(dtype)
    report = vf.migrate(source, target, mode="upsert", on_error="quarantine", state_dir=tmp_path)
    assert report.rejected == 1 and report.verification.ok
    rounded = 1.0 if dtype != "float16" else float(np.float16(0.7))
    assert values(target) == {0: [rounded, 2, 3]}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_verify_sees_what_a_narrow_type_made_of_a_value(dtype: str) -> None:
    source = held("float32", [0.7, 2, 3], [1e5, 2, 3])
    spoilt = held(
        dtype, [0.7 if dtype == "float16" else 1, 2, 3], [np.inf if dtype == "float16" else -96, 2, 3]
    )
    assert vf.verify(source, spoilt).different_ids == [1]


def test_a_transform_must_not_make_nan(tmp_path: Path) -> None:
    def spoil(record: VectorRecord) -> VectorRecord:
        return (
            record.replace(vectors={"v": np.array([np.nan, 1, 1], np.float32)})
            if record.id == 1
            else record
        )

    source = held("float32", [1, 2, 3], [4, 5, 6])
    with pytest.raises(RejectedRecord, match="NaN"):
        vf.migrate(
            source, f"parquet:{tmp_path / 'out.parquet'}", transform=spoil, state_dir=tmp_path / "job"
        )


def test_verify_notes_another_metric_and_another_space() -> None:
    spaces = [EmbeddingSpace(model=name, dim=3) for name in ("one", "two")]
    source = held("float32", [1, 2, 3], space=spaces[0])
    target = held("float32", [1, 2, 3], space=spaces[1], metric="ip")
    proof = vf.verify(source, target, sample_queries=0)
    notes = " / ".join(proof.notes)
    assert proof.ok and "searched by ip in the target, by l2" in notes and "recorded as two" in notes
    assert vf.verify(source, source, sample_queries=0).notes == ()
