"""Rejected records survive on disk as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vecferry.model import RecordBatch, SparseVector, VectorRecord
from vecferry.pipeline.quarantine import Quarantine, quarantined_ids, read_quarantine
from vecferry.ports import Rejection
from vecferry.testing import sample_records


def test_a_record_comes_back_whole(tmp_path: Path) -> None:
    odd = VectorRecord(
        id=(1, "a"),
        text="nul \x00 surrogate \ud800",
        vectors={"": [float("nan"), float("inf"), 0.1], "half": np.array([1, 2], np.float16)},
        sparse_vectors={"s": SparseVector([1, 5], [0.5, 0.25])},
        metadata=sample_records(1)[0].metadata,
    )
    log = Quarantine(tmp_path / "q.jsonl")
    log.add(Rejection(RecordBatch.from_records([odd]), "write", "no"))
    log.sync()
    log.close()
    [back] = read_quarantine(tmp_path / "q.jsonl")
    assert (back.stage, back.reason) == ("write", "no")
    assert (back.record.id, back.record.text, back.record.metadata) == (odd.id, odd.text, odd.metadata)
    np.testing.assert_array_equal(back.record.vectors[""], odd.vectors[""])
    assert back.record.vectors["half"].dtype == np.float16
    assert back.record.sparse_vectors == odd.sparse_vectors


def test_what_was_not_committed_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    log = Quarantine(path)
    one, two = (Rejection(RecordBatch.from_records([{"id": i}]), "check", "x") for i in (1, 2))
    log.add(one)
    length = log.sync()
    log.add(two)
    log.sync()
    log.close()
    Quarantine(path, length).close()
    assert quarantined_ids(path) == {1}
