"""The writer: retry, shrink, single out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecferry.core.retry import RetryPolicy
from vecferry.errors import (
    FatalStoreError,
    JobStopped,
    RejectedRecord,
    RequestTooLargeError,
    RetryableError,
    TimedOutError,
)
from vecferry.model import RecordBatch
from vecferry.pipeline.stream import Writer
from vecferry.ports import WriteReceipt

FAST = RetryPolicy(attempts=4, base=0.001, cap=0.002, max_seconds=5)


class Picky:
    """A sink that refuses some ids, some sizes, and fails now and then."""

    def __init__(self, bad: set[int] = frozenset(), most: int = 10**9, naming: bool = False) -> None:  # type: ignore[assignment]
        self.bad, self.most, self.naming = bad, most, naming
        self.rows: list[int] = []
        self.sizes: list[int] = []
        self.faults: list[Exception] = []

    def write(self, batch: RecordBatch) -> WriteReceipt:
        if self.faults:
            raise self.faults.pop()
        if len(batch) > self.most:
            raise RequestTooLargeError("too large")
        found = [i for i in batch.id_list if i in self.bad]
        if found:
            raise RejectedRecord("bad value", ids=found if self.naming else ())
        self.rows += batch.id_list  # type: ignore[arg-type]
        self.sizes.append(len(batch))
        return WriteReceipt(len(batch))


def batch(n: int) -> RecordBatch:
    return RecordBatch.from_records([{"id": i, "vector": [float(i)]} for i in range(n)])


@given(bad=st.sets(st.integers(0, 39), max_size=12), most=st.integers(1, 50), naming=st.booleans())
def test_every_row_is_written_once_or_rejected_alone(bad: set[int], most: int, naming: bool) -> None:
    sink = Picky(bad, most, naming)
    rejections = Writer(sink, FAST).write(batch(40))  # type: ignore[arg-type]
    assert sorted(sink.rows) == [i for i in range(40) if i not in bad]
    assert sorted(i for r in rejections for i in r.batch.id_list) == sorted(bad)
    assert max(sink.sizes, default=0) <= most


class Answering(Picky):
    """A sink that answers for each record of a request."""

    def write(self, batch: RecordBatch) -> WriteReceipt:
        good = [i for i in batch.id_list if i not in self.bad]
        self.rows += good  # type: ignore[arg-type]
        refused = tuple((i, f"no place for {i}") for i in batch.id_list if i in self.bad)
        return WriteReceipt(len(good), refused=refused)


def test_records_that_a_target_refuses_by_themselves_are_rejected() -> None:
    sink = Answering({3, 7})
    writer = Writer(sink, FAST)  # type: ignore[arg-type]
    rejections = writer.write(batch(10))
    assert [(r.batch.id_list, r.reason) for r in rejections] == [
        ([3], "no place for 3"),
        ([7], "no place for 7"),
    ]
    assert writer.written == 8 and sink.rows == [0, 1, 2, 4, 5, 6, 8, 9]


def test_the_order_of_rows_is_kept() -> None:
    sink = Picky({7}, 10)
    Writer(sink, FAST).write(batch(40))  # type: ignore[arg-type]
    assert sink.rows == [i for i in range(40) if i != 7]


def test_a_shrunken_request_grows_again() -> None:
    sink = Picky(most=10)
    writer = Writer(sink, FAST)  # type: ignore[arg-type]
    for _ in range(40):
        writer.write(batch(40))
    sink.most = 1000
    for _ in range(80):
        writer.write(batch(40))
    assert max(sink.sizes[-10:]) == 40


def test_a_passing_fault_is_retried_and_told() -> None:
    sink = Picky()
    sink.faults = [RetryableError("busy"), RetryableError("busy", retry_after=0.001)]
    told: list[Any] = []
    Writer(sink, FAST, on_retry=told.append).write(batch(5))  # type: ignore[arg-type]
    assert sink.rows == [0, 1, 2, 3, 4]
    assert [d.attempt for d in told] == [1, 2]


def test_the_retry_gives_up_at_its_bound() -> None:
    sink = Picky()
    sink.faults = [RetryableError("busy") for _ in range(9)]
    with pytest.raises(RetryableError):
        Writer(sink, FAST).write(batch(5))  # type: ignore[arg-type]
    assert len(sink.faults) == 5


def test_a_final_no_is_not_retried() -> None:
    sink = Picky()
    sink.faults = [RetryableError("never reached"), FatalStoreError("quota")]
    with pytest.raises(FatalStoreError):
        Writer(sink, FAST).write(batch(5))  # type: ignore[arg-type]
    assert len(sink.faults) == 1


def test_a_stop_ends_the_wait() -> None:
    sink = Picky()
    sink.faults = [RetryableError("busy", retry_after=60)]
    with pytest.raises(JobStopped):
        slow = RetryPolicy(attempts=4, max_seconds=600)
        Writer(sink, slow, should_stop=lambda: True).write(batch(5))  # type: ignore[arg-type]


def test_one_record_too_large_by_itself_is_a_bad_record() -> None:
    sink = Picky(most=0)
    rejections = Writer(sink, FAST).write(batch(3))  # type: ignore[arg-type]
    assert [r.batch.id_list for r in rejections] == [[0], [1], [2]]
    assert "too large by itself" in rejections[0].reason


def test_a_request_that_is_not_answered_in_time_is_halved() -> None:
    sink = Picky()
    sink.faults = [TimedOutError("late"), TimedOutError("late")]
    Writer(sink, FAST).write(batch(40))  # type: ignore[arg-type]
    assert sink.sizes == [10] * 4
    assert sink.rows == list(range(40))


def test_a_single_record_that_is_late_is_tried_again_and_never_put_aside() -> None:
    sink = Picky()
    sink.faults = [TimedOutError("late") for _ in range(9)]
    with pytest.raises(TimedOutError):
        Writer(sink, FAST).write(batch(1))  # type: ignore[arg-type]
    assert len(sink.faults) == 5


def test_the_bounds_begin_anew_after_progress() -> None:
    """Faults again and again, with progress in between, do not add up to a failure."""
    sink = Picky(most=1)
    writer = Writer(sink, FAST)  # type: ignore[arg-type]
    write, calls = sink.write, itertools.count(1)

    def flaky(part: RecordBatch) -> WriteReceipt:
        if next(calls) % 3:
            raise RetryableError("busy")
        return write(part)

    sink.write = flaky  # type: ignore[method-assign,assignment]
    writer.write(batch(16))
    assert sorted(sink.rows) == list(range(16))
