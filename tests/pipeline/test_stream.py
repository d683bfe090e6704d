"""Lanes side by side, and the books: what comes out is the same for any number, and nothing is lost
unsaid.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

import vecferry as vf
from vecferry.errors import FatalStoreError, JobStopped, RejectedRecord, VerificationError
from vecferry.model import CollectionSchema, DenseColumn, DType, RecordBatch, VectorField
from vecferry.pipeline.job import Counters
from vecferry.pipeline.stages import ConformToSchema, RejectNonFinite, Transform
from vecferry.pipeline.stream import flow, lanes_for
from vecferry.pipeline.verify import reconcile
from vecferry.ports import InFlightBatch, Partition
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records
from vecferry.verifying import Verification


class Several(MemoryStore):
    """Takes several writers at once; each is a view of the same collection."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.threads: set[int] = set()
        self.made: list[Several] = []
        self.gate = threading.Barrier(2)

    def writers(self, want: int) -> Sequence[Several]:
        for _ in range(want):
            other = Several()
            other._cabinet, other.threads, other.gate = self._cabinet, self.threads, self.gate
            self.made.append(other)
        return self.made

    def write(self, batch: RecordBatch) -> Any:
        if threading.get_ident() not in self.threads and len(self.threads) < 2:
            self.threads.add(threading.get_ident())
            self.gate.wait(timeout=20)  # two are writing at the same time
        return super().write(batch)


@pytest.mark.parametrize("workers", [2, 5])
def test_lanes_write_at_once_and_change_no_result(workers: int) -> None:
    source, target, alone = vf.Collection(MemoryStore()), Several(), MemoryStore()
    source.write(sample_records(300))
    call: dict[str, Any] = {"batch_size": 10, "where": {"even": True}}
    one = vf.migrate(source, alone, **call).check()
    many = vf.migrate(source, target, workers=workers, **call).check()
    assert len(target.made) == workers and len(target.threads) >= 2
    assert (many.read, many.written) == (one.read, one.written) == (150, 150)
    assert many.verification.digest_target == one.verification.digest_target


def test_lanes_that_are_stopped_go_on_with_each_partition(tmp_path: Path) -> None:
    source, target = vf.Collection(MemoryStore()), Several()
    source.write(sample_records(300))
    seen: list[int] = []
    call: dict[str, Any] = {"batch_size": 10, "workers": 3, "state_dir": tmp_path / "job"}
    with pytest.raises(JobStopped):
        vf.migrate(source, target, should_stop=lambda: len(seen) > 4, on_progress=seen.append, **call)
    target.made.clear()
    report = vf.migrate(source, target, **call).check()
    assert report.resumed and (report.read, report.written, target.count()) == (300, 300, 300)


def test_an_error_in_a_lane_ends_the_job_and_the_next_run_goes_on(tmp_path: Path) -> None:
    class Full(MemoryStore):
        room = 100

        def writers(self, want: int) -> Sequence[MemoryStore]:
            return [self] * want

        def write(self, batch: RecordBatch) -> Any:
            if self.count() + len(batch) > self.room:
                raise FatalStoreError("no room is left")
            return super().write(batch)

    source, target = vf.Collection(MemoryStore()), Full()
    source.write(sample_records(300))
    call: dict[str, Any] = {"workers": 2, "batch_size": 10, "state_dir": tmp_path / "job"}
    with pytest.raises(FatalStoreError, match="no room"):
        vf.migrate(source, target, **call)
    target.room = 1000
    report = vf.migrate(source, target, **call).check()
    assert report.resumed and (report.read, report.written, target.count()) == (300, 300, 300)


def test_a_stage_that_needs_the_order_keeps_one_lane() -> None:
    from vecferry.dedupe import DedupeStage
    from vecferry.pipeline.job import Progressing

    parts = [Progressing(Partition(str(i)), done=i == 0) for i in range(4)]
    assert lanes_for([RejectNonFinite()], parts, 8) == 3
    assert lanes_for([RejectNonFinite()], parts, 2) == 2
    assert lanes_for([DedupeStage("text")], parts, 8) == 1


# -- the books --------------------------------------------------------------------------------


def proof(expected: int, there: int, **more: Any) -> Verification:
    counts = {"expected_count": expected, "target_count": there}
    ids = {"expected_ids": expected, "target_ids": there}
    return Verification(
        ok=True, strategy="merge", digest_expected="", digest_target="", **counts, **ids, **more
    )


def test_counters_add_up() -> None:
    one = Counters(10, 7, 1, {"transform": 2}, {}, 5, {"read": 1.0})
    two = Counters(5, 9, 0, {"transform": 1}, {"embed": 5}, 3, {"read": 0.5, "write": 2.0})
    both = one + two
    assert both == Counters(15, 16, 1, {"transform": 3}, {"embed": 5}, 8, {"read": 1.5, "write": 2.0})
    assert (one.due, two.due, both.due) == (7, 9, 16)
    assert one.dropped == {"transform": 2}, "neither is changed"


@pytest.mark.parametrize(
    ("counters", "expected", "there", "words"),
    [
        (Counters(10, 10), 10, 10, None),
        (Counters(10, 7, 1, {"transform": 2}), 7, 7, None),
        (Counters(10, 9), 10, 10, "acknowledged 9 records of 10"),
        (Counters(10, 10), 11, 11, "source gave 11 records when it was read again and 10"),
        (Counters(10, 10), 10, 9, "holds 9 records, and 10 were due"),
    ],
)
def test_what_does_not_add_up_is_named(
    counters: Counters, expected: int, there: int, words: str | None
) -> None:
    _, faults = reconcile(proof(expected, there), counters, upserted=False)
    assert (words in faults[0]) if words else not faults, faults


def test_ids_that_overwrote_each_other_are_missing() -> None:
    found, faults = reconcile(proof(7, 7), Counters(10, 10), upserted=False)
    assert not found.ok and found.missing_count == 3 and not faults


def test_a_target_that_acknowledges_less_than_it_took_fails_the_report() -> None:
    class Shy(MemoryStore):
        def write(self, batch: RecordBatch) -> Any:
            from dataclasses import replace

            return replace(super().write(batch), written=len(batch) - 1)

    source = vf.Collection(MemoryStore())
    source.write(sample_records(10))
    with pytest.raises(VerificationError, match="acknowledged 9 records of 10"):
        vf.migrate(source, Shy()).check()


def test_a_stage_that_loses_rows_without_a_word_ends_the_job() -> None:
    class Leaky:
        name, ordered = "leaky", False

        def apply(self, inflight: InFlightBatch) -> InFlightBatch:
            return inflight.carry(inflight.batch.slice(0, 1))

        def replay_copy(self) -> Leaky:
            return self

    from vecferry.pipeline.job import Progressing
    from vecferry.pipeline.stream import Reading

    store = MemoryStore()
    vf.Collection(store).write(sample_records(3))
    with pytest.raises(FatalStoreError, match="leaky lost 2 record"):
        list(flow(store, [Progressing(Partition("0", [0, 3]))], Reading(), [Leaky()]))


# -- stages -----------------------------------------------------------------------------------


def carried(stage: Any, batch: RecordBatch) -> InFlightBatch:
    result: InFlightBatch = stage.apply(InFlightBatch(batch, Partition("0"), None, len(batch)))
    return result


def schema(dim: int = 2, dtype: DType = DType.FLOAT32) -> CollectionSchema:
    return CollectionSchema(fields=(VectorField(dim=dim, dtype=dtype),))


def test_a_vector_of_another_width_is_a_rejected_record() -> None:
    batch = RecordBatch(
        ids=["a", "b"], vectors={"": DenseColumn(np.ones((2, 3), np.float32), np.array([True, False]))}
    )
    done = carried(ConformToSchema(schema(2), {"": ""}), batch)
    assert [r.batch.id_list for r in done.rejections] == [["a"]] and "another width" in done.rejections[
        0
    ].reason
    assert done.batch.id_list == ["b"] and "" not in done.batch.vectors
    source = vf.Collection(MemoryStore())
    source.write(sample_records(3))

    def widen(record: vf.VectorRecord) -> vf.VectorRecord:
        return record.replace(vectors={"": np.ones(9, np.float32)}) if record.id == 1 else record

    with pytest.raises(RejectedRecord, match="another width"):
        vf.migrate(source, MemoryStore(), transform=widen, batch_size=1)


def test_texts_become_uuids_where_the_target_has_nothing_else() -> None:
    known = uuid4()
    batch = RecordBatch(
        ids=[str(known), "x", known.hex], vectors={"": DenseColumn(np.ones((3, 2), np.float32))}
    )
    done = carried(ConformToSchema(schema(), {"": ""}, uuid_ids=True), batch)
    assert done.batch.id_list == [UUID(str(known))] and len(done.rejections[0].batch) == 2
    assert "is no UUID" in done.rejections[0].reason


def test_a_transform_of_batches_may_make_more_rows() -> None:
    def twice(batch: RecordBatch) -> RecordBatch:
        ids = [f"{i}-{n}" for i in batch.id_list for n in range(2)]
        return batch.take(np.repeat(np.arange(len(batch)), 2)).replace(ids=ids)

    source, target = vf.Collection(MemoryStore()), MemoryStore()
    source.write(sample_records(4))
    report = vf.migrate(source, target, transform=twice).check()
    assert (report.read, report.added, report.written, target.count()) == (4, {"transform": 4}, 8, 8)
    assert carried(Transform(twice), RecordBatch(ids=[1, 2])).batch.id_list == ["1-0", "1-1", "2-0", "2-1"]
