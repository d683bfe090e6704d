"""What a sync must not lose, delete or overlook when it is used in less usual ways."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vecferry as vf
from vecferry.cli import app
from vecferry.errors import ConfigurationError, PlanError
from vecferry.model import CollectionSchema, Kind, Metric, RecordBatch, SparseVector, VectorField
from vecferry.ports import WriteMode
from vecferry.serving import sync
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
