"""What a sync must not lose, delete or overlook when it is used in less usual ways."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vecferry as vf
from vecferry.cli import app
from vecferry.errors import ConfigurationError, PlanError, RequestTooLargeError
from vecferry.model import CollectionSchema, Kind, Metric, RecordBatch, SparseVector, VectorField
from vecferry.ports import WriteMode
from vecferry.serving import sync
from vecferry.serving.syncstate import SyncState
from vecferry.stores.memory import MemoryStore

from .conftest import Moody, WordEmbedder, contents, fill, record, tracked


def put(store: Any, *records: Any) -> None:
    store.write(RecordBatch.from_records(records))


def test_a_filtered_sync_by_column_leaves_the_records_of_others_alone(
    source: Moody,
    target: Moody,
    words: WordEmbedder,
    state: Path,
) -> None:
    put(target, *(record(n, words) for n in range(100, 103)))
    mine = {"n": {"$lt": 10}}
    sync(source, target, by="column:n", where=mine, state=state)
    assert set(contents(target)) == {*range(10), 100, 101, 102}
    source.delete([4])
    assert sync(source, target, by="column:n", where=mine, state=state).deleted == 1
    assert set(contents(target)) == {*range(10), 100, 101, 102} - {4}


def test_by_a_column_a_transform_sees_whole_records(
    source: Moody,
    target: Moody,
    state: Path,
) -> None:
    def low(batch: RecordBatch) -> RecordBatch:
        return batch.take([row for row, m in enumerate(batch.metadata_list) if m["n"] < 5])

    sync(source, target, by="column:n", transform=low, state=state)
    assert set(contents(target)) == set(range(5))


def test_each_column_has_a_high_mark_of_its_own(
    source: Moody,
    target: Moody,
    words: WordEmbedder,
    state: Path,
) -> None:
    put(source, *(record(n, words, version=1) for n in range(30)))
    sync(source, target, by="column:n", state=state)  # up to 29
    put(source, record(3, words, "newer", version=2))
    sync(source, target, by="column:version", state=state)
    assert contents(source) == contents(target)


@pytest.mark.parametrize(
    ("values", "overlap", "message"),
    [
        (("2026-01-01", "2026-01-02"), 60.0, "overlap= cannot go back from"),
        ((3, "x"), 0.0, "do not compare"),
        ((datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)), 0.0, "do not compare"),
    ],
)
def test_columns_that_cannot_be_ordered_are_named(
    target: Moody,
    words: WordEmbedder,
    state: Path,
    values: tuple[Any, Any],
    overlap: float,
    message: str,
) -> None:
    source = fill(Moody(), words, [])
    put(source, *(record(n, words, at=value) for n, value in enumerate(values)))
    with pytest.raises(PlanError, match=message):
        for _ in range(2):
            sync(source, target, by="column:at", overlap=overlap, state=state)


@pytest.mark.parametrize("by", ["digest", "column:n", "journal"])
def test_a_target_that_was_made_anew_is_filled_again(
    target: Moody,
    words: WordEmbedder,
    state: Path,
    by: str,
) -> None:
    source = tracked(target, words)
    sync(source, target, by=by, state=state)
    anew = fill(Moody(), words, [])
    sync(source, anew, by=by, state=state)
    assert contents(source) == contents(anew)


def test_by_journal_what_many_deletions_leave_is_no_new_target(
    target: Moody,
    words: WordEmbedder,
    state: Path,
) -> None:
    source = tracked(target, words)
    sync(source, target, by="journal", state=state)
    for start in range(0, 28, 7):
        source.delete(list(range(start, start + 7)))
        report = sync(source, target, by="journal", state=state)
        assert (report.deleted, report.unchanged) == (7, 0)
    assert contents(source) == contents(target)


def test_by_journal_the_filter_counts(
    target: Moody,
    words: WordEmbedder,
    state: Path,
) -> None:
    source = tracked(target, words)
    put(target, record(99, words, "somebody else's"))
    mine = {"lang": "en"}
    put(source, *(record(n, words, lang="en") for n in range(5)))
    sync(source, target, by="journal", where=mine, state=state)
    put(source, record(5, words, lang="en"), record(6, words, lang="de"), record(0, words, lang="de"))
    put(source, record(99, words, lang="de"))
    report = sync(source, target, by="journal", where=mine, state=state)
    assert (report.changed, report.deleted) == (1, 1)
    assert set(contents(target)) == {1, 2, 3, 4, 5, 99}
    put(source, record(5, words, lang="de"))
    sync(source, target, by="journal", where=mine, state=state)
    assert set(contents(target)) == {1, 2, 3, 4, 99}


def test_no_deletion_is_allowed_with_zero(source: Moody, target: Moody, state: Path) -> None:
    sync(source, target, state=state)
    source.delete([3])
    with pytest.raises(PlanError, match="1 of 30"):
        sync(source, target, state=state, max_deletes=0)
    assert target.count() == 30


def test_where_deletions_are_refused_the_rest_is_done_in_a_file_too(
    source: Moody,
    words: WordEmbedder,
    state: Path,
    tmp_path: Path,
) -> None:
    target = vf.connect(f"jsonl:{tmp_path}/copy.jsonl")
    fill(target.store, words)
    sync(source, target, state=state)
    source.delete(list(range(20)))
    put(source, record(50, words))
    with pytest.raises(PlanError, match="max_deletes"):
        sync(source, target, state=state)
    assert set(contents(target.store)) == {*range(30), 50}


def test_a_sparse_value_alone_that_differs_is_noticed(state: Path) -> None:
    def sparse(value: float) -> MemoryStore:
        store = MemoryStore()
        field = VectorField(kind=Kind.SPARSE, name="words", metric=Metric.IP)
        store.prepare(CollectionSchema(fields=(field,)), WriteMode.UPSERT)
        vector = SparseVector(indices=np.array([10, 30_000]), values=np.array([0.5, value]))
        put(store, {"id": 1, "text": "a", "sparse_vectors": {"words": vector}})
        return store

    source, target = sparse(0.9), sparse(0.1)
    assert sync(source, target, state=state).changed == 1
    assert contents(source) == contents(target)


def test_a_state_that_is_no_state_is_named(source: Moody, target: Moody, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("not a database " * 100)
    for path in (note, tmp_path, note / "below"):
        with pytest.raises(ConfigurationError, match="pass another file"):
            sync(source, target, state=path)
    assert note.read_text().startswith("not a database")


def test_a_filter_with_a_typing_error_is_one_line_on_the_command_line() -> None:
    result = CliRunner().invoke(app, ["sync", "memory:a", "memory:b", "--where", "n >"])
    assert result.exit_code == 2
    assert "cannot read the filter" in result.stderr


# -- equality is that of a verification ---------------------------------------------------------


def one(vector: Any, metric: str = "l2", **more: Any) -> MemoryStore:
    store = MemoryStore()
    field = VectorField(dim=len(vector), metric=metric)
    store.prepare(CollectionSchema(fields=(field,)), WriteMode.UPSERT)
    put(store, {"id": 1, "text": "a", "vector": vector, **more})
    return store


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([3.0, 0.0], [1.0, 0.0]),
        ([1.0, 0.001], [1.0, 0.0]),
        ([1.0, 1e-7], [1.0, 0.0]),
        ([0.0, 0.0], [-0.0, 0.0]),
    ],
)
def test_what_a_verification_calls_different_is_written(
    mine: list[float], theirs: list[float], metric: str, state: Path
) -> None:
    """Lengths count where the store keeps them, and so does every bit."""
    source, target = one(mine, metric), one(theirs, metric)
    assert not vf.verify(source, target).ok
    assert sync(source, target, state=state).changed == 1
    assert vf.verify(source, target).ok
    assert sync(source, target, state=state).quiet


def test_directions_alone_count_where_a_store_normalises(state: Path) -> None:
    class Unit(MemoryStore):
        def capabilities(self) -> Any:
            return replace(super().capabilities(), normalizes=frozenset({Metric.COSINE}))

    source = one([3.0, 4.0], "cosine")
    target = Unit()
    target.prepare(source.describe(), WriteMode.UPSERT)
    put(target, {"id": 1, "text": "a", "vector": np.array([0.6, 0.8], np.float32)})
    assert sync(source, target, state=state).unchanged == 1
    put(target, {"id": 1, "text": "a", "vector": np.array([0.6, 0.80003], np.float32)})
    state.unlink()
    assert sync(source, target, state=state).changed == 1, "a hundred times the tolerance is a change"


# -- as the migration did it ---------------------------------------------------------------------


def halves(text: str) -> list[str]:
    return [text[: len(text) // 2], text[len(text) // 2 :]]


def test_a_target_of_split_texts_is_refused_untouched_or_split_alike(
    words: WordEmbedder, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecferry.embedding.chunking.sentence_splitter", lambda *_: halves)
    monkeypatch.setattr("vecferry.embedding.chunking.TextLimit.splitter", lambda *_: halves)
    source, target = MemoryStore(), MemoryStore()
    source.prepare(CollectionSchema(), WriteMode.UPSERT)
    put(source, *({"id": n, "text": f"first{n} second{n} "} for n in range(5)))
    split: dict[str, Any] = {"embed": words, "long_text": "split", "chunk_size": 5}
    vf.migrate(source, target, **split).check()
    before = contents(target)
    assert len(before) == 10
    with pytest.raises(PlanError, match="split into several records"):
        sync(source, target, state=state, embed=words, max_deletes=1.0)
    assert contents(target) == before
    assert sync(source, target, state=state, **split).quiet
    put(source, {"id": 3, "text": "other words3"})
    source.delete([4])
    report = sync(source, target, state=state, **split)
    assert (report.changed, report.deleted) == (2, 2) and len(contents(target)) == 8
    fresh = MemoryStore()
    vf.migrate(source, fresh, **split).check()
    assert contents(fresh) == contents(target)


def test_embed_takes_what_a_migration_takes(source: Moody, words: WordEmbedder, state: Path) -> None:
    other = WordEmbedder("other-words")
    target = fill(Moody(), other, [])
    assert sync(source, target, state=state, embed=[other, words]).added == 30
    with pytest.raises(PlanError, match="embed="):
        sync(source, target, state=state, long_text="split")


def test_what_is_too_large_for_one_request_is_halved(source: Moody, state: Path) -> None:
    class Narrow(Moody):
        def write(self, batch: RecordBatch) -> Any:
            if len(batch) > 4:
                raise RequestTooLargeError("no more than four")
            return super().write(batch)

    words = WordEmbedder()
    target = fill(Narrow(), words, [])
    assert sync(source, target, state=state).added == 30
    assert contents(source) == contents(target)


def test_digests_of_another_format_are_compared_with_the_target_not_copied(
    source: Moody, target: Moody, words: WordEmbedder, state: Path
) -> None:
    sync(source, target, state=state)
    with SyncState(state) as memory:
        memory.set("format", 1)
    put(target, record(5, words, "changed behind its back"))
    report = sync(source, target, state=state)
    assert (report.changed, report.unchanged) == (1, 29)
