"""The on-disk hash join: sorted in bounded memory, found again, and what two keys that are alike do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecferry.model import RecordBatch, VectorRecord
from vecferry.verifying import hash_join
from vecferry.verifying.hash_join import KEY_FIELDS, HashIndex, Runs


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Many runs and many ranges out of few records."""
    with patch.object(hash_join, "MOST_BYTES", 7 * 24):
        yield


def entries(keys: list[tuple[int, int]], start: int = 0) -> np.ndarray:
    return np.array([(a, b, start + i) for i, (a, b) in enumerate(keys)], dtype=KEY_FIELDS)


halves = st.sampled_from([0, 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(st.tuples(halves, halves), max_size=60), limit=st.integers(0, 5))
def test_runs_sort_any_number_of_records(keys: list[tuple[int, int]], limit: int, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("runs") / "runs"
    runs = Runs(KEY_FIELDS, path)
    for at in range(0, len(keys), 5):
        runs.add(entries(keys[at : at + 5], at))
        if at == 20:  # a process that goes on where another was, also where more was written
            told = runs.spilled()
            path.write_bytes(path.read_bytes() + b"torn")
            runs = Runs(KEY_FIELDS, path, told)
    found = [tuple(entry) for piece in runs.ranges() for entry in piece.tolist()]
    assert found == sorted((a, b, i) for i, (a, b) in enumerate(keys))
    later = sorted(i for i, key in enumerate(keys) if key in keys[:i])
    assert runs.collided(limit) == (len(later), later[:limit])


def index_of(folder: Path, records: list[VectorRecord], keys: np.ndarray) -> HashIndex:
    index = HashIndex(folder, ["e"], ["t"])
    for at in range(0, len(records), 4):
        batch = RecordBatch.from_records(records[at : at + 4])
        some = keys[at : at + 4]
        columns = {"t": batch.vectors.get("t") or batch.sparse_vectors.get("t")}
        index.add(some, some + np.uint64(1), {"e": some + np.uint64(2)}, columns)
    return index


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["dense", "multi", "sparse"]))
def test_what_was_put_in_is_found_again(data: st.DataObject, kind: str, tmp_path_factory) -> None:
    """Of equal keys the last; keys that agree in one half are two keys; vectors come back as they were."""
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
    keys = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    rng = np.random.default_rng(0)
    shapes = {"dense": lambda i: (3,), "multi": lambda i: (1 + i % 3, 3)}
    records = [
        VectorRecord(id=i)
        if i % 5 == 4
        else VectorRecord(id=i, sparse_vectors={"t": {j: 1.5 * j for j in range(1 + i % 3)}})
        if kind == "sparse"
        else VectorRecord(id=i, vectors={"t": rng.normal(size=shapes[kind](i)).astype(np.float32)})
        for i in range(len(pairs))
    ]
    folder = tmp_path_factory.mktemp("index") / "index"
    index = index_of(folder, records, keys)
    collided, _ = index.seal(10)
    assert collided == len(pairs) - len(set(pairs)) == len(pairs) - len(index)
    index = HashIndex(folder, ["e"], ["t"], token=index.token)  # as another process would
    asked = np.array([(a, b) for a in range(5) for b in range(5)], dtype=np.uint64)
    places = index.find(asked)
    for (a, b), place in zip(asked.tolist(), places.tolist(), strict=True):
        assert (place >= 0) is ((a, b) in pairs)
        if place >= 0:
            last = len(pairs) - 1 - pairs[::-1].index((a, b))
            at = np.array([place])
            assert index.rows(at).tolist() == [last]
            assert index.docs(at).tolist() == [[a + 1, b + 1]]
            assert index.hashes("e", at).tolist() == [[a + 2, b + 2]]
            column = index.vectors("t", at)
            kept: Any = None if column is None else column[0]
            put = records[last].vectors.get("t", records[last].sparse_vectors.get("t"))
            assert np.array_equal(kept, put) if isinstance(put, np.ndarray) else kept == put


def test_marks_behind_the_point_to_go_on_from_are_taken_back(tmp_path: Path) -> None:
    keys = np.array([(i, i) for i in range(20)], dtype=np.uint64)
    index = index_of(tmp_path / "index", [VectorRecord(id=i) for i in range(20)], keys)
    index.seal(0)
    places = index.find(keys)
    assert index.mark(places[:10], 0, np.arange(10))[0].all()
    assert index.mark(places[10:], 1, np.arange(10))[0].all()
    index.flush()
    index = HashIndex(tmp_path / "index", ["e"], ["t"], token=index.token)
    index.forget([7, 4])
    assert index.unmarked(99) == (9, [7, 8, 9, 14, 15, 16, 17, 18, 19])
    first, overtaken = index.mark(places[[6, 8, 8]], 0, np.array([30, 31, 32]))
    assert first.tolist() == [False, True, False] and not overtaken
    assert index.mark(places[[12]], 0, np.array([33]))[1], "it was found in a later share before"
    index.forget()
    assert index.unmarked(2) == (20, [0, 1])
