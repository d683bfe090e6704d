"""However many threads read the target, the result is the same; and they do read at the same time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vecferry as vf
from servers.postgres import postgres
from vecferry.api import jobs
from vecferry.errors import ConfigurationError, FatalStoreError, RetryableError
from vecferry.model import CollectionSchema, RecordBatch, VectorField, VectorRecord, encode_id
from vecferry.ports import Fields, Partition
from vecferry.stores.memory import MemoryStore
from vecferry.testing import sample_records
from vecferry.verifying import Verification, compare, reading

__all__ = ["postgres"]

DIM = 3
SCHEMA = CollectionSchema(fields=(VectorField(dim=DIM, metric="l2"),))
SMALL = 5
"""Records a batch, so that few records make several shares."""


class Shelf(MemoryStore):
    """Records in a list: in any order, also several of one id, in shares of any size.

    Attributes:
        edges: where one share ends and the next begins; none for shares of equal size.
    """

    def __init__(self, rows: list[VectorRecord], edges: list[int] | None = None) -> None:
        super().__init__()
        self.rows, self.edges = rows, edges

    def describe(self) -> CollectionSchema:
        return SCHEMA

    def count(self) -> int:
        return len(self.rows)

    def partitions(self, want: int) -> Any:
        if not self.edges or want == 1:
            return super().partitions(want)
        bounds = [0, *self.edges, len(self.rows)]
        return [Partition(str(i), list(pair)) for i, pair in enumerate(pairwise(bounds))]

    def scan(
        self,
        *,
        partition: Partition | None = None,
        after: Any = None,
        batch_size: int = 1024,
        fields: Fields = Fields.ALL,
        **_: Any,
    ) -> Iterator[RecordBatch]:
        low, high = partition.bounds if partition else (0, len(self.rows))
        for start in range(low if after is None else after, high, batch_size):
            piece = self.rows[start : min(start + batch_size, high)]
            yield RecordBatch.from_records(piece, SCHEMA).replace(cursor=start + len(piece))

    def fetch(self, ids: Any, *, fields: Fields = Fields.ALL) -> RecordBatch:
        wanted = {encode_id(i) for i in ids}
        return RecordBatch.from_records([r for r in self.rows if encode_id(r.id) in wanted], SCHEMA)


def record(i: int) -> VectorRecord:
    vector = np.array([i, i * 0.37, 1], dtype=np.float32)
    return VectorRecord(id=i if i % 3 else f"s{i}", text=f"text {i}", vector=vector, metadata={"n": i})


def check(
    expected: list[VectorRecord],
    target: Any,
    workers: int,
    schema: CollectionSchema = SCHEMA,
    **options: Any,
) -> Verification:
    def stream() -> Iterator[RecordBatch]:
        return (RecordBatch.from_records(expected[i : i + 7], schema) for i in range(0, len(expected), 7))

    with patch.object(reading, "BATCH", SMALL):
        return compare(stream, schema, target, workers=workers, sample_queries=0, **options)


def timeless(proof: Verification) -> Verification:
    return proof.model_copy(update={"seconds": 0.0})


ROWS = 60


@st.composite
def changed(draw: st.DrawFn) -> list[VectorRecord]:
    """A target: any order, some records missing, changed, doubled (as they are or changed) or surplus."""
    some = st.lists(st.integers(0, ROWS - 1), max_size=6)
    gone = set(draw(some))
    rows = [record(i) for i in range(ROWS) if i not in gone]
    for i in draw(some):
        at = i % len(rows)
        rows[at] = draw(st.sampled_from([rows[at].replace(text="x"), moved(rows[at], 0.5)]))
    copies = [rows[i % len(rows)] for i in draw(some)]
    rows += [draw(st.sampled_from([copy, copy.replace(text="y"), moved(copy, 2)])) for copy in copies]
    rows += [record(i + 1000) for i in draw(some)]
    if draw(st.booleans()):
        rows = [rows[i] for i in draw(st.permutations(range(len(rows))))]
    return rows


def moved(row: VectorRecord, by: float) -> VectorRecord:
    assert row.vector is not None
    return row.replace(vectors={"": row.vector + np.float32(by)})


@settings(max_examples=80, deadline=None)
@given(
    rows=changed(),
    edges=st.lists(st.integers(0, ROWS), max_size=6, unique=True).map(sorted),
    workers=st.integers(2, 5),
    limit=st.sampled_from([0, 1, 3, 100]),
    strategy=st.sampled_from(["auto", "hash", "fetch"]),
)
def test_the_result_is_that_of_one_worker(
    rows: list[VectorRecord], edges: list[int], workers: int, limit: int, strategy: str
) -> None:
    expected = [record(i) for i in range(ROWS)]
    options: dict[str, Any] = {"limit": limit, "strategy": strategy, "allow_extra": strategy == "fetch"}
    edges = [edge for edge in edges if edge <= len(rows)]
    alone = check(expected, Shelf(rows, edges), 1, **options)
    together = check(expected, Shelf(rows, edges), workers, **options)
    assert timeless(together) == timeless(alone)


def test_of_two_copies_the_first_is_compared_whoever_finds_which() -> None:
    """The share with the second copy is read first: the look-up begins again, in the order of the whole."""
    rows = [record(i) for i in reversed(range(ROWS))]
    rows[-1] = record(50).replace(text="a later copy of 50")
    waiting = threading.Event()

    class Late(Shelf):
        def scan(self, *, partition: Partition | None = None, **options: Any) -> Iterator[RecordBatch]:
            if partition is not None and partition.key == "0":
                waiting.wait(10)
            yield from super().scan(partition=partition, **options)
            if partition is not None and partition.key == "1":
                waiting.set()

    half = [ROWS // 2]
    alone, together = (check([record(i) for i in range(ROWS)], Late(rows, half), n) for n in (1, 2))
    assert waiting.is_set()
    assert timeless(together) == timeless(alone)
    assert alone.doubled == (encode_id(50),) and not alone.different, "the first copy is as expected"


# -- at the same time -------------------------------------------------------------------------


def test_shares_are_read_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    class Meeting(Shelf):
        def scan(self, *, partition: Partition | None = None, **options: Any) -> Iterator[RecordBatch]:
            batches = super().scan(partition=partition, **options)
            yield next(batches)
            if partition is not None and partition.key in "012":
                meeting.wait(10)  # in the middle of three scans
            yield from batches

    rows = [record(i) for i in range(ROWS)]
    assert check(rows, Meeting(rows[::-1]), 3).ok
    assert not meeting.broken


def test_ids_are_asked_for_at_the_same_time() -> None:
    meeting, calls = threading.Barrier(3), count()

    class Meeting(Shelf):
        def fetch(self, ids: Any, **options: Any) -> RecordBatch:
            if next(calls) < 3:
                meeting.wait(10)
            return super().fetch(ids, **options)

    rows = [record(i) for i in range(ROWS)]
    assert check(rows, Meeting(rows), 3, allow_extra=True).ok
    assert not meeting.broken


def test_in_a_merge_both_sides_are_read_at_the_same_time() -> None:
    meeting = threading.Barrier(2)
    rows = [record(i) for i in range(ROWS)]

    class Meeting(Shelf):
        def scan(self, **options: Any) -> Iterator[RecordBatch]:
            for number, batch in enumerate(super().scan(**options)):
                if number == 2:
                    meeting.wait(10)
                yield batch

    source, target = vf.Collection(Meeting(rows)), vf.Collection(Meeting(rows))
    with (
        patch.object(reading, "BATCH", SMALL),
        patch("vecferry.api.migration.batch_size_for", lambda _: SMALL),
    ):
        proof = vf.verify(source, target, sample_queries=0)
    assert proof.ok and proof.strategy == "merge" and not meeting.broken


# -- the end of it ----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["merge", "hash", "fetch"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("how", ["error", "stop"])
def test_nothing_is_left_behind(strategy: str, workers: int, how: str) -> None:
    """An error of a reader comes out; scans are closed by the threads that ran them; the threads end."""
    scans: list[tuple[int, int]] = []
    asked = count()

    class Closing(Shelf):
        def scan(self, **options: Any) -> Iterator[RecordBatch]:
            mine = threading.get_ident()
            try:
                for batch in super().scan(**options):
                    self.strike()
                    yield batch
            finally:
                scans.append((mine, threading.get_ident()))

        def fetch(self, ids: Any, **options: Any) -> RecordBatch:
            self.strike()
            return super().fetch(ids, **options)

        def strike(self) -> None:
            if how == "error" and next(asked) == 6:
                raise FatalStoreError("the disk is gone")

    rows = [record(i) for i in range(ROWS)]
    target = Closing(rows[::-1] if strategy == "hash" else rows)
    options: dict[str, Any] = {"allow_extra": strategy == "fetch", "strategy": strategy}
    gc.disable()  # what is closed is closed by intent
    try:
        if how == "error":
            with pytest.raises(FatalStoreError, match="the disk is gone") as caught:
                check(rows, target, workers, **options)
            assert caught.traceback
        else:
            done: list[int] = []
            least = 5 if strategy == "merge" else 12  # the index is filled in nine steps
            options |= {"on_progress": done.append, "should_stop": lambda: len(done) >= least}
            proof = check(rows, target, workers, **options)
            assert not proof.ok and "stopped" in str(proof)
        for thread in [t for t in threading.enumerate() if "verify" in t.name]:
            thread.join(5)
            assert not thread.is_alive()
    finally:
        gc.enable()
    assert all(begun == closed for begun, closed in scans) and (scans or strategy == "fetch")


@pytest.mark.parametrize("strategy", ["merge", "hash", "fetch"])
def test_each_thread_waits_out_passing_faults(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecferry.core.retry._sleep_unless", lambda seconds, should_stop: not should_stop())
    turn, lock = count(), threading.Lock()

    class Flaky(Shelf):
        def scan(self, **options: Any) -> Iterator[RecordBatch]:
            for batch in super().scan(**options):
                self.strike()
                yield batch

        def fetch(self, ids: Any, **options: Any) -> RecordBatch:
            self.strike()
            return super().fetch(ids, **options)

        def strike(self) -> None:
            with lock:
                if next(turn) % 3 == 1:
                    raise RetryableError("busy")

    rows = [record(i) for i in range(ROWS)]
    target = Flaky(rows[::-1] if strategy == "hash" else rows)
    proof = check(rows, target, 3, allow_extra=strategy == "fetch", strategy=strategy)
    assert proof.ok and proof.target_count == ROWS and next(turn) > 12


def test_nobody_is_no_worker() -> None:
    with pytest.raises(ConfigurationError, match="workers=0"):
        check([], Shelf([]), 0)
    with pytest.raises(ConfigurationError, match="workers"):
        vf.migrate("memory:", "memory:", workers=0)


# -- a real server ----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["hash", "fetch"])
def test_a_table_is_read_by_several_connections(strategy: str, postgres: Any) -> None:
    """The keys come in another order than the records, so that the shares are looked up in the index."""
    url = postgres.url("items")
    rows = [record(i) for i in range(400)]
    with vf.connect(url, index="none") as goal:
        goal.write(RecordBatch.from_records(rows, SCHEMA))
    expected = [*rows[:390], rows[390].replace(text="x"), *(record(i) for i in range(2000, 2003))]
    options: dict[str, Any] = {"strategy": strategy, "allow_extra": strategy == "fetch"}
    with vf.connect(url) as goal:
        backends: set[int] = set()
        together = threading.Barrier(2)
        with watched(goal.store, backends, together):
            proof = check(expected, goal.store, 2, **options)
        assert len(backends) >= 2 and not together.broken
        alone = check(expected, goal.store, 1, **options)
    assert timeless(proof) == timeless(alone)
    assert proof.different_ids == [390 if 390 % 3 else "s390"] and proof.missing_count == 3
    assert proof.extra_count == (0 if strategy == "fetch" else 9)
    with postgres.connect(url) as connection:
        left = connection.execute(
            "select count(*) from pg_stat_activity where application_name = 'vecferry'"
        ).fetchone()
    assert left == (0,), "every connection is closed again"


@contextmanager
def watched(store: Any, backends: set[int], together: threading.Barrier) -> Iterator[None]:
    """Notes the server processes that read for ``store``; the first two of them meet."""
    raw, turn = type(store._server).raw, count()

    @contextmanager
    def noted(server: Any) -> Iterator[Any]:
        with raw(server) as connection:
            if "verify" in threading.current_thread().name:
                backends.add(connection.info.backend_pid)
                if next(turn) < 2:
                    together.wait(10)
            yield connection

    with patch.object(type(store._server), "raw", noted):
        yield


# -- every kind of store ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pgvector", "qdrant", "parquet", "faiss"])
def test_migrate_verify_and_repair_by_three_threads(kind: str, postgres: Any, tmp_path: Path) -> None:
    url = {
        "pgvector": str(postgres.url("kb")) if kind == "pgvector" else "",
        "qdrant": f"qdrant:{tmp_path / 'q'}#kb",
        "parquet": f"parquet:{tmp_path / 'p'}",
        "faiss": f"faiss:{tmp_path / 'f'}",
    }[kind]
    source, rows = f"jsonl:{tmp_path / 'in.jsonl'}", sample_records(120, unit=True)
    with vf.connect(source) as origin:
        origin.write(rows[::-1])
    with patch.object(reading, "BATCH", 10):
        for mode, where in (("create", {"n": {"$lt": 40}}), ("upsert", None)):
            job = tmp_path / mode
            report = vf.migrate(source, url, mode=mode, where=where, workers=3, state_dir=job)
            report.check()
        assert report.verification.strategy == "fetch"
        with vf.connect(url) as goal:
            goal.delete([rows[5].id])
            goal.write([rows[7].replace(text="another")])
        found = vf.verify(source, url, workers=3, strategy="hash")
        assert found.missing_ids == [5] and found.different_ids == [7]
        assert jobs.repair(source, url, workers=3).ok
