"""Serving on real stores: FAISS folders, Qdrant's local mode, Postgres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecferry as vf
from servers.postgres import Postgres, postgres
from vecferry.records import RecordBatch
from vecferry.serving import DualWriter, FallbackCollection, sync
from vecferry.stores.memory import MemoryStore

from .conftest import WordEmbedder, contents, fill, record

__all__ = ["postgres"]


@pytest.fixture(params=["faiss", "qdrant", "pgvector"])
def open_target(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    if request.param == "faiss":
        return lambda: vf.connect(f"faiss:{tmp_path}/kb").store
    if request.param == "qdrant":
        return lambda: vf.connect(f"qdrant:{tmp_path}/qdrant#kb").store
    server: Postgres = request.getfixturevalue("postgres")
    url = server.url("kb")
    return lambda: vf.connect(url).store


def migrated(source: MemoryStore, open_target: Callable[[], Any], tmp_path: Path) -> None:
    target = open_target()
    vf.migrate(source, target, state_dir=tmp_path / "job").check()
    target.close()


def same(source: MemoryStore, target: Any) -> None:
    ours, theirs = contents(source), contents(target)
    assert ours.keys() == theirs.keys()
    for id_, found in theirs.items():
        assert (found.text, found.metadata) == (ours[id_].text, ours[id_].metadata)
        np.testing.assert_allclose(found.vector, ours[id_].vector, atol=1e-5)


def test_sync_after_a_migration(
    open_target: Callable[[], Any], words: WordEmbedder, tmp_path: Path
) -> None:
    source = fill(MemoryStore(), words)
    migrated(source, open_target, tmp_path)
    source.write(RecordBatch.from_records([record(1, words, "changed"), record(77, words)]))
    source.delete([2, 3])
    for expected in ((1, 1, 2, 28), (0, 0, 0, 29)):
        target = open_target()
        report = sync(source, target, state=tmp_path / "sync")
        found = (report.added, report.changed, report.deleted)
        assert found == expected[:3], report
        same(source, target)
        target.close()


def test_dual_writes_and_searches(
    open_target: Callable[[], Any], words: WordEmbedder, tmp_path: Path
) -> None:
    old = fill(MemoryStore(), words)
    migrated(old, open_target, tmp_path)
    new = open_target()
    kb = FallbackCollection(old, new, names=("old", "new"), embedder=words)
    with DualWriter(old, new, tmp_path / "journal") as writer:
        writer.write([record(5, words, "a changed text"), record(200, words, "a new text")])
        writer.delete([6])
        for side in ("old", "new"):
            kb.primary = side
            assert [kb.search(text)[0].id for text in ("a changed text", "a new text")] == [5, 200]
            assert 6 not in {hit.id for hit in kb.search("record number n6 about topic t6", 30)}
            assert kb.search("a new text", where={"n": {"$lt": 3}})[0].metadata["n"] < 3
        writer.cut_over()
        writer.write([record(7, words, "after the cut-over")])
        same(old, new)
    kb.close()
