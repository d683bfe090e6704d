"""Bringing a target up to its source, again and again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from known import some
from vecferry.errors import (
    ConfigurationError,
    JobLockedError,
    JobStopped,
    PlanError,
    RetryableError,
    SpaceMismatchError,
    UnsupportedError,
)
from vecferry.model import RecordBatch, VectorRecord
from vecferry.ports import WriteMode
from vecferry.serving import DualWriter, sync, untrack
from vecferry.serving.syncstate import SyncState, content_digests
from vecferry.stores.memory import MemoryStore

from .conftest import QUICK, Moody, WordEmbedder, contents, fill, record, schema, tracked


def test_added_changed_and_deleted_by_digest(
    source: Moody, target: Moody, words: WordEmbedder, state: Path
) -> None:
    first = sync(source, target, state=state)
    assert (first.added, first.changed, first.deleted, first.unchanged) == (30, 0, 0, 0)
    assert contents(source) == contents(target)
    source.write(RecordBatch.from_records([record(1, words, "changed"), record(77, words)]))
    source.delete([2, 3])
    second = sync(source, target, state=state)
    assert (second.added, second.changed, second.deleted, second.unchanged) == (1, 1, 2, 27)
    assert contents(source) == contents(target)
    assert sync(source, target, state=state).quiet
    assert "1 added, 1 changed, 2 deleted, 27 unchanged, by digest" in str(second)


def test_the_first_run_after_a_migration_writes_only_what_differs(
    source: Moody, words: WordEmbedder, state: Path
) -> None:
    target = fill(Moody(), words)
    target.write(RecordBatch.from_records([record(4, words, "old text"), record(500, words)]))
    target.delete([9])
    report = sync(source, target, state=state)
    assert (report.added, report.changed, report.deleted, report.unchanged) == (1, 1, 1, 28)
    assert contents(source) == contents(target)


def test_a_vector_alone_that_changed_is_noticed(source: Moody, words: WordEmbedder, state: Path) -> None:
    target = fill(Moody(), words)
    other = contents(source)[5].model_copy(update={"vectors": {"": words.embed(["else"])[0]}})
    source.write(RecordBatch.from_records([other]))
    assert sync(source, target, state=state).changed == 1
    source.write(RecordBatch.from_records([contents(source)[6].replace(vector=words.embed(["x"])[0])]))
    assert sync(source, target, state=state).changed == 1
    assert contents(source) == contents(target)


@pytest.mark.parametrize("kind", ["number", "time"])
def test_by_a_column(source: Moody, target: Moody, words: WordEmbedder, state: Path, kind: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def stamp(n: int) -> Any:
        return n if kind == "number" else start + timedelta(seconds=n)

    source.delete(list(range(30)))
    source.write(RecordBatch.from_records([record(n, words, at=stamp(n)) for n in range(30)]))
    first = sync(source, target, by="column:at", state=state)
    assert first.changed == 30
    source.write(RecordBatch.from_records([record(3, words, "newer", at=stamp(31))]))
    source.delete([8])
    second = sync(source, target, by="column:at", state=state)
    assert (second.changed, second.deleted) == (2, 1)  # the one that was highest is read again
    assert contents(source) == contents(target)
    source.write(RecordBatch.from_records([record(4, words, "committed late", at=stamp(25))]))
    assert sync(source, target, by="column:at", state=state).changed == 1
    assert contents(source) != contents(target)
    assert sync(source, target, by="column:at", state=state, overlap=10).changed > 1
    assert contents(source) == contents(target)


def test_a_record_without_the_column_is_an_error(source: Moody, target: Moody, state: Path) -> None:
    with pytest.raises(PlanError, match="by='digest'"):
        sync(source, target, by="column:updated_at", state=state)


def test_by_journal(target: Moody, words: WordEmbedder, state: Path) -> None:
    source = tracked(target, words)
    assert sync(source, target, by="journal", state=state).added == 30
    source.write(RecordBatch.from_records([record(1, words, "changed"), record(99, words)]))
    source.delete([2])
    report = sync(source, target, by="journal", state=state)
    assert (report.changed, report.deleted) == (2, 1)
    assert contents(source) == contents(target)
    assert sync(source, target, by="journal", state=state).quiet
    untrack(source, target, state=state)
    assert not source.tracking
    assert not state.exists()
    with pytest.raises(UnsupportedError):
        sync(target, source, by="journal", state=state)


def test_changes_made_during_the_first_comparison_are_not_lost(
    target: Moody, words: WordEmbedder, state: Path
) -> None:
    source = tracked(target, words)
    seen: list[Any] = []

    def meddle(progress: Any) -> None:
        if not seen:
            seen.append(progress)
            source.write(RecordBatch.from_records([record(0, words, "behind the reader")]))
            source.delete([29])

    sync(source, target, by="journal", state=state, batch_size=5, on_progress=meddle)
    assert contents(source) == contents(target)


def test_too_many_deletions_are_refused(source: Moody, target: Moody, state: Path) -> None:
    sync(source, target, state=state)
    source.delete(list(range(20)))
    with pytest.raises(PlanError, match=r"20 of 30 records would be deleted.*max_deletes=1.0"):
        sync(source, target, state=state)
    assert target.count() == 30
    assert sync(source, target, state=state, deletes=False).deleted == 0
    assert sync(source, target, state=state, max_deletes=1.0).deleted == 20
    assert target.count() == 10


def test_only_what_the_filter_lets_through(source: Moody, target: Moody, state: Path) -> None:
    sync(source, target, state=state, where={"n": {"$lt": 10}})
    assert set(contents(target)) == set(range(10))


def test_an_embedder_for_a_target_of_another_space(source: Moody, words: WordEmbedder, state: Path) -> None:
    other = WordEmbedder("other-words")
    target = fill(Moody(), other, [])
    with pytest.raises(SpaceMismatchError):
        sync(source, target, state=state)
    sync(source, target, state=state, embedder=other)
    text = some(contents(source)[5].text)
    np.testing.assert_array_equal(contents(target)[5].vector, other.embed([text])[0])
    calls = other.calls
    assert sync(source, target, state=state, embedder=other).quiet
    assert other.calls == calls
    with pytest.raises(SpaceMismatchError):
        sync(source, target, state=state, embedder=words)


def test_a_transform_may_drop_and_rename(source: Moody, target: Moody, state: Path) -> None:
    def even(batch: RecordBatch) -> RecordBatch:
        rows = [row for row, i in enumerate(batch.id_list) if int(str(i)) % 2 == 0]
        part = batch.take(rows)
        return part.replace(ids=[f"doc-{i}" for i in part.id_list])

    sync(source, target, state=state, transform=even)
    assert set(contents(target)) == {f"doc-{i}" for i in range(0, 30, 2)}
    assert sync(source, target, state=state, transform=even).quiet


def test_a_broken_stream_is_taken_up_again(target: Moody, words: WordEmbedder, state: Path) -> None:
    class Fragile(Moody):
        left = 3

        def scan(self, **how: Any) -> Iterator[RecordBatch]:
            for number, batch in enumerate(super().scan(**how)):
                if number and self.left:
                    self.left -= 1
                    raise RetryableError("connection reset")
                yield batch

    source = fill(Fragile(), words)
    assert sync(source, target, state=state, batch_size=4, retry=QUICK).added == 30
    assert contents(source) == contents(target)


def test_a_stopped_or_failed_run_is_made_up_for(
    source: Moody, target: Moody, words: WordEmbedder, state: Path
) -> None:
    sync(source, target, state=state)
    source.write(RecordBatch.from_records([record(n, words, f"v2 {n}") for n in range(0, 30, 3)]))
    source.delete([28])
    polls = iter([False, False, True])
    with pytest.raises(JobStopped):
        sync(source, target, state=state, batch_size=4, should_stop=lambda: next(polls, True))
    assert contents(source) != contents(target)
    # Whatever the broken run wrote may be gone again: it is compared with the target.
    target.write(RecordBatch.from_records([record(0, words, "lost by the crash")]))
    source.delete([1])
    sync(source, target, state=state)
    assert contents(source) == contents(target)


def test_one_at_a_time(source: Moody, target: Moody, state: Path) -> None:
    with SyncState(state), pytest.raises(JobLockedError):
        sync(source, target, state=state)


def test_wrong_calls(source: Moody, target: Moody, state: Path) -> None:
    for by in ("hope", "column:", "column"):
        with pytest.raises(ConfigurationError, match="column:NAME"):
            sync(source, target, by=by, state=state)


def test_through_a_dual_writer_live_writes_are_never_overtaken(
    source: Moody, target: Moody, words: WordEmbedder, state: Path, tmp_path: Path
) -> None:
    dice = random.Random(1)
    with DualWriter(source, target, tmp_path / "j") as writer:

        def meddle(_: Any) -> None:
            for _ in range(3):
                id_ = dice.randrange(40)
                if dice.random() < 0.3:
                    writer.delete([id_])
                else:
                    writer.write([record(id_, words, f"live {dice.random()}")])

        sync(source, target, state=state, writer=writer, batch_size=2, on_progress=meddle, max_deletes=1)
        assert contents(source) == contents(target)
        writer.cut_over()
        assert writer.pending == 0


EVENTS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "sync"]), st.integers(0, 12), st.text(max_size=3)),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, size=st.integers(1, 7))
def test_any_history_ends_equal(events: list[tuple[str, int, str]], size: int) -> None:
    words = WordEmbedder()
    source, target = fill(MemoryStore(), words, []), fill(MemoryStore(), words, [3])
    with TemporaryDirectory() as folder:
        for what, id_, text in [*events, ("sync", 0, "")]:
            if what == "put":
                source.write(RecordBatch.from_records([record(id_, words, f"t {text}")]))
            elif what == "delete":
                source.delete([id_])
            else:
                sync(source, target, state=Path(folder) / "s", batch_size=size, max_deletes=1.0)
    assert contents(source) == contents(target)


def test_digests_depend_on_all_content_and_nothing_else(words: WordEmbedder) -> None:
    base = VectorRecord(id=1, text="t", vector=[1.0, 2.0], metadata={"a": 1, "b": {"c": [1]}})
    same = base.replace(id=2, metadata={"b": {"c": [1]}, "a": 1})
    others = [
        base.replace(text=None),
        base.replace(text="u"),
        base.replace(vectors={"": [1.0, 2.5]}),
        base.replace(vectors={"x": [1.0, 2.0]}),
        base.replace(metadata={"a": "1", "b": {"c": [1]}}),
        base.replace(metadata={"a": 1.5, "b": {"c": [1]}}),
        base.replace(metadata={"a": datetime(2026, 1, 1), "b": {"c": [1]}}),
        base.replace(metadata={"a": "2026-01-01T00:00:00", "b": {"c": [1]}}),
    ]
    [digest] = content_digests(RecordBatch.from_records([base]))
    assert content_digests(RecordBatch.from_records([same])) == [digest]
    digests = [content_digests(RecordBatch.from_records([r]))[0] for r in others]
    assert len({digest, *digests}) == len(others) + 1
    assert schema(words).fields[0].dim == 16
    assert WriteMode.UPSERT
